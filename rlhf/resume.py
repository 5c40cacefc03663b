"""Which checkpoint to go on from, and how: also where another number of ranks goes on with it."""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import ExportableState

from rlhf.errors import UserError
from rlhf.runs import is_main_process

# The last file that transformers writes into a checkpoint: without it the checkpoint was cut off.
_LAST_WRITTEN = "trainer_state.json"

# DeepSpeed's name for the file that names the folder of a universal checkpoint. It is written last.
_LATEST = "latest_universal"
_UNIVERSAL = "universal"

_PATIENCE = 20  # seconds between two signs of life while the checkpoint is converted


class NumRanks(TrainerCallback, ExportableState):
    """Writes into trainer_state.json how many ranks the checkpoint has files of, and the examples of a step."""

    num_ranks = 1
    global_batch = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.num_ranks = args.world_size
        self.global_batch = global_batch(args)
        state.stateful_callbacks["NumRanks"] = self.state()  # a resumed state has only what its checkpoint had

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"num_ranks": self.num_ranks, "global_batch": self.global_batch}}


class OnOtherRanks(TrainerCallback):
    """After a resume on another number of ranks: puts right what DeepSpeed left, and draws random numbers anew."""

    def __init__(self, trainer: Any, universal: Path | None) -> None:
        self.trainer = trainer
        self.universal = universal
        self.drawn = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.universal is None:
            return
        engine = self.trainer.model_wrapped
        # What this training saves and loads again (the best model, say) is no universal checkpoint.
        engine._config.load_universal_checkpoint = False
        # ZeRO-3 gives all groups of weights the settings of the first: its weight decay and learning rate.
        saved = torch.load(self.universal / "zero" / "optimizer_state.pt", map_location="cpu", weights_only=False)
        for group, settings in zip(engine.optimizer.optimizer.param_groups, saved["param_groups"], strict=True):
            group.update({key: value for key, value in settings.items() if key != "params"})
        # And one tensor as the count of steps, which each group then raises by one: Adam's bias correction goes wrong.
        for moments in engine.optimizer.optimizer.state.values():
            if torch.is_tensor(moments.get("step")):
                moments["step"] = moments["step"].clone()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Of some ranks there is no random state, and from the seed they would draw what was drawn before."""
        if not self.drawn:
            set_seed(random.Random(f"{args.seed} {state.global_step} {args.process_index}").getrandbits(32))
        self.drawn = True


def prepare_resume(trainer: Any, checkpoint: Path) -> list[TrainerCallback]:
    """Make a checkpoint loadable by as many ranks as there are now. Returns the callbacks that this takes.

    Where DeepSpeed cut its optimizer for another number of ranks, rank 0 converts it to DeepSpeed's universal
    format, in `universal/` inside the checkpoint, and the trainer is told to load that. All ranks must call this.

    Raises UserError where the checkpoint cannot be gone on with: another global batch, ZeRO-3 after ZeRO-1 or 2
    or the other way round, DeepSpeed after none, an optimizer other than Adam on another number of ranks.
    """
    noted, args = _noted(checkpoint), trainer.args
    num_ranks = noted.get("num_ranks", 1)
    _check_batch(checkpoint, num_ranks, noted.get("global_batch"), args)
    sharded = next(checkpoint.glob("global_step*"), None)
    if not _check_sharding(checkpoint, sharded, trainer) or sharded is None:
        return [OnOtherRanks(trainer, None)] if num_ranks != args.world_size else []
    if num_ranks == args.world_size:
        return []
    _convert_together(checkpoint, sharded, num_ranks, args)
    trainer.accelerator.state.deepspeed_plugin.hf_ds_config.config["checkpoint"] = {"load_universal": True}
    return [OnOtherRanks(trainer, checkpoint / _UNIVERSAL)]


def global_batch(args: Any) -> int:
    """The examples of one optimizer step, of all ranks."""
    return args.train_batch_size * args.world_size * args.gradient_accumulation_steps


def _noted(checkpoint: Path) -> dict[str, Any]:
    """What NumRanks wrote; empty in a checkpoint from before it."""
    state = json.loads((checkpoint / _LAST_WRITTEN).read_text(encoding="utf-8"))
    return (state.get("stateful_callbacks") or {}).get("NumRanks", {}).get("attributes", {})


def _check_batch(checkpoint: Path, num_ranks: int, before: int | None, args: Any) -> None:
    """With another global batch a step is not what it was, and the place in the data would be lost."""
    now, ranks = global_batch(args), args.world_size
    if not before or before == now:
        return
    each = f"--per_device_train_batch_size times --gradient_accumulation_steps must be {before // ranks}"
    mend = f"keep it: {each}" if before % ranks == 0 else f"resume on a number of ranks that divides {before}"
    raise UserError(
        f"{checkpoint}: was made with {before} examples a step, on {_ranks(num_ranks)}, and now there would be {now}, "
        f"on {_ranks(ranks)}; {mend}"
    )


def _check_sharding(checkpoint: Path, sharded: Path | None, trainer: Any) -> bool:
    """Whether DeepSpeed's parts are there and wanted."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if plugin is None and sharded is None:
        return False
    if plugin is None:
        raise UserError(
            f"{checkpoint}: its optimizer is DeepSpeed's; resume with the same --deepspeed (launch: --zero)"
        )
    if sharded is None:
        raise UserError(f"{checkpoint}: has no optimizer of DeepSpeed; resume without --deepspeed (launch: --zero 0)")
    # Only ZeRO-3 cuts up the weights as well, and so each rank has a file of them.
    cut_weights = any(sharded.glob("*zero_pp_rank_*_model_states.pt"))
    if cut_weights != (plugin.zero_stage == 3):
        there = "ZeRO-3" if cut_weights else "ZeRO-1 or 2"
        raise UserError(f"{checkpoint}: is of {there}, and this is ZeRO-{plugin.zero_stage}; resume with {there}")
    return True


def _ranks(num: int) -> str:
    return "1 rank" if num == 1 else f"{num} ranks"


def _convert_together(checkpoint: Path, sharded: Path, num_ranks: int, args: Any) -> None:
    """Convert on rank 0, while the others wait. Short waits, each a sign of life: it may take an hour."""
    job = None
    if is_main_process() and not _is_converted(checkpoint):
        print(f"{checkpoint.name}: is of {_ranks(num_ranks)}; converted for any number, here {args.world_size}")
        job = _Conversion(checkpoint, sharded)
    try:
        outcome: list[str | None] = [None]
        while outcome[0] is None:
            if beat := os.environ.get("RLHF_BEAT"):
                with suppress(OSError):  # a full disk is the run's to report
                    Path(beat).write_text("the conversion of the checkpoint", encoding="utf-8")
            outcome = ["" if job is None else job.wait(_PATIENCE)] if is_main_process() else outcome
            if args.world_size > 1:  # all go on, or all end
                torch.distributed.broadcast_object_list(outcome)
    finally:
        if job is not None:
            job.end()
    if outcome[0]:
        raise UserError(
            f"{checkpoint}: cannot be converted from {_ranks(num_ranks)} to {args.world_size} ({outcome[0]}); resume "
            f"on {_ranks(num_ranks)}, or mend that"
        )


def _is_converted(checkpoint: Path) -> bool:
    return (checkpoint / _LATEST).is_file() and (checkpoint / _UNIVERSAL).is_dir()


class _Conversion:
    """DeepSpeed's converter in a process of its own: it forks, and the memory that it takes comes back."""

    def __init__(self, checkpoint: Path, sharded: Path) -> None:
        self.checkpoint = checkpoint
        for left in (*checkpoint.glob(f"{_UNIVERSAL}.partial*"), checkpoint / _UNIVERSAL):  # of one that was cut off
            shutil.rmtree(left, ignore_errors=True)
        # A name of its own: the converter of a rank that was killed may still be at work.
        self.partial = Path(tempfile.mkdtemp(prefix=f"{_UNIVERSAL}.partial-", dir=checkpoint))
        self.errors = (self.partial / "stderr").open("w+", encoding="utf-8")
        # Paths from the checkpoint: the converter takes them for patterns, and a folder may be named a+b.
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        command += ["--input_folder", sharded.name, "--output_folder", f"{self.partial.name}/{_UNIVERSAL}"]
        self.process = subprocess.Popen(
            command,
            cwd=checkpoint,
            env={**os.environ, "DS_ACCELERATOR": "cpu"},
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
        )

    def wait(self, seconds: float) -> str | None:
        """None while it works; then what went wrong, empty where all is well."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        if code != 0:
            self.errors.seek(0)
            return (self.errors.read().strip().splitlines() or [f"exit code {code}"])[-1]
        try:
            self._put_in_place()
        except OSError as error:
            return str(error)
        return ""

    def _put_in_place(self) -> None:
        made = self.partial / _UNIVERSAL
        settings = made / "zero" / "optimizer_state.pt"
        state = torch.load(settings, map_location="cpu", weights_only=False)
        if "fp32_flat_groups" in state:
            # ZeRO-3's converter leaves all of rank 0's optimizer here, for each rank to load: they need the step.
            del state["fp32_flat_groups"]
            moments = state["optimizer_state_dict"]["state"]
            state["optimizer_state_dict"]["state"] = {0: {"step": moments[0]["step"]}}
            torch.save(state, settings)
        made.rename(self.checkpoint / _UNIVERSAL)
        (self.partial / _LATEST).rename(self.checkpoint / _LATEST)  # from here on it is whole

    def end(self) -> None:
        """Leave no process and no half-made files."""
        self.process.kill()
        self.process.wait()
        self.errors.close()
        shutil.rmtree(self.partial, ignore_errors=True)


def drop_torn_checkpoints(folder: Path) -> None:
    """Remove checkpoints that a kill or a full disk cut off, so that resume finds the newest whole one."""
    if not is_main_process():
        return
    for checkpoint in folder.glob("checkpoint-*"):
        if not is_whole(checkpoint):
            shutil.rmtree(checkpoint, ignore_errors=True)


def newest_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint; None where there is none. The same on all ranks, whoever removes torn ones."""
    steps = {
        int(checkpoint.name.rsplit("-", 1)[1]): checkpoint
        for checkpoint in folder.glob("checkpoint-*")
        if checkpoint.name.rsplit("-", 1)[1].isdigit() and is_whole(checkpoint)
    }
    return str(steps[max(steps)]) if steps else None


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end, by all its ranks.

    Rank 0 writes trainer_state.json last of its own files, when others may not have written theirs yet: their
    random states, and under DeepSpeed their parts of the optimizer.
    """
    try:
        state = json.loads((checkpoint / _LAST_WRITTEN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    callbacks = state.get("stateful_callbacks") or {}
    num_ranks = callbacks.get("NumRanks", {}).get("attributes", {}).get("num_ranks", 1)
    parts = list(checkpoint.glob("rng_state*.pth"))
    # save_only_model leaves no random states, and nothing of any rank but the first.
    if num_ranks > 1 and parts and len(parts) < num_ranks:
        return False
    for sharded in checkpoint.glob("global_step*"):
        shards = list(sharded.glob("*zero_pp_rank_*_optim_states.pt"))
        if len(shards) < num_ranks or not (checkpoint / "latest").is_file():
            return False
        parts += [*shards, *sharded.glob("*_model_states.pt")]
    return all(zipfile.is_zipfile(part) for part in parts)
