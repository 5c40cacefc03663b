"""What every trainer here shares: its log goes to the run folder, it resumes, it saves a plain checkpoint."""

import atexit
import faulthandler
import json
import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback
from transformers.utils import logging
from trl import ModelConfig, get_quantization_config

from rlhf.data.encode import CutReport
from rlhf.errors import UserError
from rlhf.extension_lock import take_over_left_locks
from rlhf.hardware import denormals_flushed
from rlhf.models import load_causal
from rlhf.resume import NumRanks, drop_torn_checkpoints, newest_checkpoint, prepare_resume
from rlhf.runs import RunFolder, is_main_process
from rlhf.throughput import Throughput

Row = TypeVar("Row")
Encoded = TypeVar("Encoded")

_SKIPPED_AT_MOST = 20  # log rows in a row

STOPPED = 75  # EX_TEMPFAIL: the exit code after SIGUSR1, with a checkpoint written; the same command resumes


class RunLog(TrainerCallback):
    """Copies every log row to metrics.jsonl, and ends the run where the loss is no number, or the gradient for long."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.skipped: list[int] = []  # steps in a row whose gradient was no number

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        logs = {key: value for key, value in (logs or {}).items() if not key.startswith("total_flos")}
        if state.is_world_process_zero:
            self.folder.log(step=state.global_step, **logs)
        loss = logs.get("loss")
        if isinstance(loss, float) and not math.isfinite(loss):
            raise UserError(
                f"step {state.global_step}: the loss is {loss}; lower --learning_rate, or train in float32 "
                "(--bf16 false), then start again"
            )
        if isinstance(norm := logs.get("grad_norm"), float):
            self.skipped = [] if math.isfinite(norm) else [*self.skipped, state.global_step]
            # DeepSpeed leaves such steps out and goes on. A few are float16 finding its scale.
            if len(self.skipped) == _SKIPPED_AT_MOST:
                raise UserError(
                    f"step {state.global_step}: the gradient is no number since step {self.skipped[0]} ({norm}), so "
                    "nothing is learned; lower --learning_rate, or train in float32 (--bf16 false), then start again"
                )


class Progress(ProgressCallback):
    """Trainer's bar with rate and time left, its newest figures behind it instead of on lines of their own."""

    _SHOWN: ClassVar = {
        "loss": "loss",
        "score": "score",
        "kl": "kl",
        "rewards/accuracies": "accuracy",
        "accuracy": "accuracy",
    }

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        figures = {name: (logs or {})[key] for key, name in self._SHOWN.items() if key in (logs or {})}
        if state.is_world_process_zero and self.training_bar is not None and figures:
            self.training_bar.set_postfix({name: f"{float(value):.3g}" for name, value in figures.items()})


class Heartbeat(TrainerCallback):
    """Says in a file how far this rank is, for `rlhf launch`, which sees by it whether the rank hangs."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._write(f"step {state.global_step + 1}")

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._write(f"step {state.global_step + 1}")

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._write(f"the evaluation after step {state.global_step}")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._write(f"what follows the checkpoint of step {state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._write(f"what follows the last step, {state.global_step}")

    def _write(self, where: str) -> None:
        part = self.path.with_suffix(".part")
        with suppress(OSError):  # a full disk is the run's to report
            part.write_text(where, encoding="utf-8")
            part.replace(self.path)  # whoever reads it meanwhile must not find half of it


class StopOnSignal(TrainerCallback):
    """After SIGUSR1 to any rank, all save a checkpoint at the end of the step and stop training."""

    def __init__(self) -> None:
        self.asked = False
        self.stopped = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch SIGUSR1 meanwhile; from now on SIGUSR2 writes where this process stands to stderr."""
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGUSR1"):
            yield
            return
        before = signal.signal(signal.SIGUSR1, self._ask)
        with suppress(OSError):  # stderr may be closed
            faulthandler.register(signal.SIGUSR2, file=2, all_threads=False)
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, before)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        asked = self.asked
        if args.world_size > 1:  # to save takes all ranks, at the same step
            flag = torch.tensor(int(asked), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            asked = bool(flag.item())
        if asked and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True
        return control


def train(trainer: Any, folder: RunFolder, resume: bool) -> dict[str, float]:
    """Train (from the newest whole checkpoint with `resume`), save, and return the last metrics.

    The model is saved at the top of the run folder as a plain Hugging Face folder. On SIGUSR1 a checkpoint is
    written after the step and the process exits with code 75; `resume` goes on from there, on as many ranks or on
    another number of them.
    """
    drop_torn_checkpoints(folder.path)
    last = newest_checkpoint(folder.path) if resume else None
    for callback in prepare_resume(trainer, Path(last)) if last else []:
        trainer.add_callback(callback)
    if resume:
        folder.rewind(int(last.rsplit("-", 1)[1]) if last else 0)
        if is_main_process():
            where = f"goes on from {Path(last).name}" if last else "has no whole checkpoint yet, and begins anew"
            print(f"{folder.path}: {where}", flush=True)
    trainer.callback_handler.callbacks.insert(0, Throughput(trainer))  # first, so that all loggers see its figures
    trainer.add_callback(RunLog(folder))
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(Progress())
    _wait_before_rotation(trainer)
    stop = StopOnSignal()
    for callback in (stop, NumRanks(), *([Heartbeat(beat)] if (beat := os.environ.get("RLHF_BEAT")) else [])):
        trainer.add_callback(callback)
    with _quiet():
        with stop.listening(), denormals_flushed():
            result = trainer.train(resume_from_checkpoint=last)
        if stop.stopped:
            _leave_at_checkpoint()
        trainer.save_model(str(folder.path))
    folder.tokens_trained = _tokens_trained(folder.path / "metrics.jsonl")
    if is_main_process():
        # A pickle of the arguments, which run.json holds readably: a checkpoint here needs no unpickling.
        (folder.path / "training_args.bin").unlink(missing_ok=True)
    return {"train_loss": result.training_loss, "steps": trainer.state.global_step}


def _wait_before_rotation(trainer: Any) -> None:
    """Let rank 0 drop an older checkpoint only when every rank has written its part of the new one.

    Trainer does not wait: a rank killed between the two would leave no whole checkpoint where one is kept. A rank's
    random state is the last that it writes.
    """
    save: Callable[[str], None] = trainer._save_rng_state

    def save_and_wait(output_dir: str) -> None:
        save(output_dir)
        trainer.accelerator.wait_for_everyone()

    trainer._save_rng_state = save_and_wait


def _tokens_trained(log: Path) -> int:
    """The tokens of all steps: TRL counts them in `num_tokens`, from 0 again in each attempt of a resumed run."""
    if not is_main_process() or not log.is_file():
        return 0
    total = last = 0
    for row in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
        count = int(row.get("num_tokens") or row.get("eval_num_tokens") or last)
        total += last if count < last else 0
        last = count
    return total + last


@contextmanager
def _quiet() -> Iterator[None]:
    """What libraries tell each other while training; nobody who waits for a run can act on it."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*pin_memory.*")
            yield
    finally:
        logging.set_verbosity(level)  # TrainingArguments take a quiet log for a wish to see no bar


def final_evaluation(trainer: Any) -> dict[str, float]:
    """The evaluation of the finished model: the one at the last step, else a new one."""
    for row in reversed(trainer.state.log_history):
        if row.get("step") == trainer.state.global_step and "eval_loss" in row:
            return row
    return trainer.evaluate()


def model_path(model_config: ModelConfig) -> str:
    """The model to start from. Raises UserError where none is named."""
    if not model_config.model_name_or_path:
        raise UserError("model_name_or_path: is not set; name a model folder, a run folder or a Hub id")
    return model_config.model_name_or_path


def load_for_training(model_config: ModelConfig, training: Any) -> Any:
    """The causal model in the precision to train in, quantized for QLoRA where asked."""
    options: dict[str, Any] = {}
    quantization = get_quantization_config(model_config)
    if quantization is not None:
        options["quantization_config"] = quantization
    if model_config.attn_implementation:
        options["attn_implementation"] = model_config.attn_implementation
    path = model_path(model_config)
    return load_causal(path, model_config.dtype, bool(training.trust_remote_code), **options)


def _leave_at_checkpoint() -> None:
    """Exit once all ranks have written their part: torchrun ends the others when one is gone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
    if is_main_process():
        print("stopped at a checkpoint; go on with --resume true")
    sys.exit(STOPPED)


def set_up(arguments: Any) -> None:
    """Settings that every trainer here needs whatever the config says."""
    import datasets

    from rlhf.hardware import spare_broken_amx

    logging.disable_progress_bar()  # loading and saving take less time than their bars' lines
    datasets.disable_progress_bars()
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed looks for one, and warns
    if arguments.bf16 and arguments.use_cpu:
        spare_broken_amx()
    arguments.logging_nan_inf_filter = False  # else a NaN is logged as the last good loss
    if arguments.output_dir in (None, "trainer_output"):
        raise UserError("output_dir: is not set; name the run's folder, as in --output_dir runs/sft")
    arguments.resume_from_checkpoint = None
    atexit.register(_leave_group)
    if arguments.deepspeed:
        import deepspeed

        take_over_left_locks()  # before anything is compiled
        # ZeRO-3 cuts up weights while they load, and must know by then how many ranks there are.
        deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)


def _leave_group() -> None:
    """A rank that ends while its group's threads still run may be aborted, its work all done."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def leave() -> None:
    """End this process with exit code 0 if it is a rank; to be called when all is done. Else nothing happens.

    Gloo's threads drop their last tensors a moment after an operation is over. One that asks for the
    interpreter's lock for it while Python takes itself down aborts the process, whose work is all done
    (github.com/pytorch/pytorch/issues/190489). So Python is not taken down: what was to run at the end has run.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    atexit._run_exitfuncs()  # `_leave_group` and the libraries'; no public name does it
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def encode_rows(
    rows: Iterable[Row],
    encode: Callable[[Row, CutReport], Encoded | None],
    what: str,
    max_length: int,
    source: str,
) -> tuple[list[Encoded], CutReport]:
    """Encode rows with a progress bar, count what did not fit, and say so.

    Raises UserError where nothing is left.
    """
    from tqdm import tqdm

    cut = CutReport()
    bar = tqdm(list(rows), desc=f"tokenize {what}", unit=" rows", leave=False, disable=not is_main_process())
    encoded = [result for row in bar if (result := encode(row, cut)) is not None]
    if not encoded:
        raise UserError(f"{source}: no example fits max_length {max_length}; raise --max_length")
    sentence = cut.sentence(what, max_length)
    if sentence and is_main_process():
        print(sentence)
    return encoded, cut
