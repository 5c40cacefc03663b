"""Where memory ran out: which model, in which part of the work, read from the error's own traceback.

Each place is known by a function's name on the stack, ours, transformers' and torch's;
`tests/test_launch_memory.py` holds the names to the libraries that are installed.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from rlhf.launcher.memory import is_out_of_memory

# Functions of which the outermost on the stack tells the phase: what runs inside them belongs to it.
_PHASES = {
    "load_for_training": "loading",
    "load_causal": "loading",
    "load_classifier": "loading",
    "load_rewards": "loading",
    "build_models": "loading",
    "_move_model_to_device": "loading",
    "_prepare_for_training": "loading",
    "prepare": "loading",
    "_load_from_checkpoint": "loading",
    "_load_optimizer_and_scheduler": "loading",
    "generate": "rollout",
    "_weigh": "scoring",
    "_score": "scoring",
    "_save_checkpoint": "saving",
    "save_model": "saving",
    "backward": "backward",
    "compute_loss": "forward",
    "_loss": "forward",
    "_imitate": "forward",
    "prediction_step": "forward",
}
_EVALUATIONS = {"evaluate", "evaluation_loop"}
_STEP_OWNERS = ("torch.optim", "deepspeed", "accelerate.optimizer")


@dataclass(frozen=True)
class Cause:
    """What a rank was doing when its memory ran out.

    Args:
        model: `policy`, `reference model`, `value model`, `reward model`, or `policy and value model`.
        phase: loading, rollout, scoring, forward, backward, optimizer step, saving, or training where none is known.
        evaluating: whether that was in an evaluation.
        step: what the rank said that it was at (`step 7`); empty before its first step.
        asked: how much it asked for, as PyTorch says it (`2.00 GiB`); empty where it does not say.
        rows, width: the shape of the tokens that went through the model at a time; 0 where there were none.
    """

    model: str
    phase: str
    evaluating: bool = False
    step: str = ""
    asked: str = ""
    rows: int = 0
    width: int = 0

    def __str__(self) -> str:
        where = f"{self.phase} of the {self.model}"
        if self.evaluating:
            where += ", in the evaluation"
        if self.step and not (self.evaluating and "evaluation" in self.step):
            where += f", {self.step}"
        if self.rows:
            where += (
                f", {self.rows} rows of {self.width} tokens" if self.rows > 1 else f", a row of {self.width} tokens"
            )
        return f"{where}; {self.asked} asked for" if self.asked else where


def cause_of(error: BaseException, verb: str, step: str = "") -> Cause | None:
    """The cause of an error that says, itself or in what it was raised from, that memory ran out; None for others.

    Args:
        error: as it was caught, with its traceback.
        verb: what ran: its own model has another name in `reward`.
        step: how far the rank was, in words.
    """
    found = _out_of_memory(error)
    if found is None:
        return None
    frames = [frame for one in _chain(error) if one.__traceback__ for frame in _frames(one.__traceback__)]
    model, phase = _model_and_phase(frames, verb)
    rows, width = _shape(frames)
    evaluating = any(frame.f_code.co_name in _EVALUATIONS for frame in frames)
    return Cause(model, phase, evaluating, step, _asked(str(found)), rows, width)


def write_cause(path: Path, cause: Cause) -> None:
    """Leave it for the launcher."""
    part = path.with_name(f".{path.name}")
    part.write_text(json.dumps(asdict(cause)), encoding="utf-8")
    part.replace(path)


def read_cause(path: Path) -> Cause | None:
    """What a rank left; None where it left nothing."""
    try:
        return Cause(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _out_of_memory(error: BaseException) -> BaseException | None:
    """The innermost of an error and those it was raised from that says so."""
    found = None
    for one in _chain(error):
        if isinstance(one, MemoryError) or is_out_of_memory([type(one).__name__, str(one)]):
            found = one
    return found


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


def _frames(trace: TracebackType | None) -> Iterator[FrameType]:
    """From the outermost to the innermost."""
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _model_and_phase(frames: list[FrameType], verb: str) -> tuple[str, str]:
    names = [frame.f_code.co_name for frame in frames]
    phase = next((_PHASES[name] for name in names if name in _PHASES), "training")
    if phase in ("backward", "training", "forward") and any(_is_step(frame) for frame in frames):
        phase = "optimizer step"
    own = "reward model" if verb == "reward" else "policy"
    both = "policy and value model" if verb == "ppo" else own
    if phase == "loading":
        return _loaded(frames, own), phase
    if phase in ("rollout", "saving"):
        return own if phase == "rollout" else both, phase
    if phase == "scoring" and "_score" in names:
        return "reward model", phase
    if phase in ("backward", "optimizer step", "training"):
        return both, phase
    return _running(frames, own), phase


def _is_step(frame: FrameType) -> bool:
    owner = str(frame.f_globals.get("__name__", ""))
    return frame.f_code.co_name == "step" and owner.startswith(_STEP_OWNERS)


def _loaded(frames: list[FrameType], own: str) -> str:
    """Which model was being loaded, by who asked for it."""
    names = {frame.f_code.co_name for frame in frames}
    if "_value_model" in names:
        return "value model"
    if "load_rewards" in names:
        return "reward model"
    for frame in frames:
        code, values = frame.f_code.co_name, frame.f_locals
        if code == "run" and frame.f_globals.get("__name__") == "rlhf.ppo.run" and "model" in values:
            return "reference model" if "load_for_training" in names else own
        if code == "__init__" and type(values.get("self")).__name__ == "Reference":
            return "reference model"
        if "ref_model" in values and "create_model_from_path" in names:
            return "reference model"
    return own


def _running(frames: list[FrameType], own: str) -> str:
    """Which model's forward pass it was: that of the first module on the stack that is one we know."""
    known: dict[int, str] = {}
    for frame in frames:
        values = frame.f_locals
        owner = values.get("self")
        for holder in (owner, values.get("networks")):
            if (value := getattr(holder, "value_model", None)) is not None:
                known[id(value)] = "value model"
        for name in ("ref_model", "reference"):
            model = getattr(owner, name, None)
            for one in (model, getattr(model, "model", None)):
                if one is not None:
                    known[id(_bare(one))] = "reference model"
        if frame.f_code.co_name == "kept_hidden":
            return known.get(id(_bare(values.get("model"))), own)
        if id(_bare(owner)) in known and frame.f_code.co_name in ("forward", "_call_impl"):
            return known[id(_bare(owner))]
        if frame.f_code.co_name == "compute_ref_log_probs":
            return "reference model"
        if "ref_model_kwargs" in values and "ref_outputs" not in values:  # TRL's DPO loss, with and without PEFT
            return "reference model"
        if frame.f_code.co_name == "token_logps" and _caller(frame) == "_weigh_by_reference":
            return "reference model"
    return own


def _caller(frame: FrameType) -> str:
    return frame.f_back.f_code.co_name if frame.f_back is not None else ""


def _bare(model: Any) -> Any:
    """Without the wrappers of DDP and DeepSpeed."""
    import torch

    while isinstance(model, torch.nn.Module) and isinstance(inner := model._modules.get("module"), torch.nn.Module):
        model = inner
    return model


def _shape(frames: list[FrameType]) -> tuple[int, int]:
    """Of the newest tokens on the stack."""
    for frame in reversed(frames):
        values = frame.f_locals
        episodes = getattr(values.get("flat"), "episodes", None)  # in PPO's backward passes (rlhf/ppo/update.py)
        if frame.f_code.co_name == "learn" and episodes:
            return len(episodes), max(episode.length for episode in episodes)
        held = [values, *[values.get(name) for name in ("inputs", "kwargs", "model_kwargs")]]
        for holder in held:
            ids: Any = holder.get("input_ids") if isinstance(holder, Mapping) else None
            if getattr(ids, "ndim", 0) == 2:
                return int(ids.shape[0]), int(ids.shape[1])
    return 0, 0


def _asked(text: str) -> str:
    if found := re.search(r"[Tt]ried to allocate ([\d.]+ [KMGT]iB)", text):
        return found[1]
    if found := re.search(r"tried to allocate (\d+) bytes", text):
        count = int(found[1])
        return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"
    return ""
