"""What can be known before any model is loaded: each mistake is one line that says how to mend it."""

import json
import math
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config import packaged
from rlhf.errors import UserError
from rlhf.launcher.settings import is_on, whole
from rlhf.models import check_model_folder
from rlhf.ports import choose_port
from rlhf.runs import check_output_dir

# Keys that name what a verb reads: files, model folders, and what may be either or something else.
_FILES = [
    "text", "demonstrations", "eval_demonstrations", "preferences", "eval_preferences", "eval_ties", "prompts",
    "eval_prompts", "chat_template_path", "new_chat_template", "deepspeed",
]  # fmt: skip
_MODELS = ["model_name_or_path", "ref_model", "value_model", "reward_model", "policies"]
_LENGTHS = {
    "sft": ["max_length"],
    "reward": ["max_length"],
    "dpo": ["max_length"],
    "ppo": ["max_prompt_length", "max_new_tokens"],
}

# Bytes of a checkpoint for each trained weight beside the weight itself: Adam's two moments in float32; under
# DeepSpeed also the float32 copy that it updates, and the weights once more in its own format.
_MOMENTS = 8
_MASTER = 4


@dataclass(frozen=True)
class Place:
    """Where the job is to run.

    Args:
        num_ranks: processes on this node.
        num_gpus: GPUs on this node; None where the ranks use CPUs.
        address, port: where the ranks meet; the address is this node's own on the first node.
        is_first: whether this is the first node.
    """

    num_ranks: int
    num_gpus: int | None
    address: str
    port: int
    is_first: bool = True


def check(verb: str, settings: dict[str, Any], place: Place) -> list[str]:
    """All mistakes that can be seen now, one line each; none: nothing stands in the way."""
    checks = [
        lambda: check_gpus(place),
        lambda: check_gpu_memory(place),
        lambda: check_port(place),
        lambda: check_output_dir(settings["output_dir"], is_on(settings, "resume")) if place.is_first else None,
        *[lambda key=key: check_file(key, settings) for key in _FILES],
        *[lambda key=key: check_models(key, settings) for key in _MODELS],
        lambda: check_rewards(settings),
        lambda: check_lengths(verb, settings),
        lambda: check_tokenizer(settings),
        lambda: check_disk(settings),
    ]
    mistakes = []
    for one in checks:
        try:
            one()
        except UserError as error:
            mistakes.append(str(error))
    return mistakes


def check_gpus(place: Place) -> None:
    """Raise UserError where there are fewer GPUs than ranks."""
    if place.num_gpus is not None and place.num_ranks > place.num_gpus:
        raise UserError(
            f"gpus: {place.num_ranks} asked for and {place.num_gpus} there; set --gpus {place.num_gpus}, or make more "
            "visible with CUDA_VISIBLE_DEVICES"
        )


def check_gpu_memory(place: Place) -> None:
    """Raise UserError where a GPU that a rank will use has less than half its memory free: another process is there.

    As `nvidia-smi` says; nothing is known where there is none.
    """
    if place.num_gpus is None:
        return
    for index, free, total in gpu_memory()[: place.num_ranks]:
        if free < total / 2:
            raise UserError(
                f"gpus: GPU {index} has {_gib(free)} of {_gib(total)} free, another process has the rest; end it "
                "(`nvidia-smi` names it), or leave that GPU out with CUDA_VISIBLE_DEVICES"
            )


def gpu_memory() -> list[tuple[str, int, int]]:
    """The visible GPUs in the order of ranks: number, free bytes, all bytes.

    Asked of `nvidia-smi`: PyTorch would have to open each GPU for it, and keep some of its memory. Empty where that
    does not answer, or says nothing of memory.
    """
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        rows = [[word.strip() for word in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
        told = [(index, uuid, int(free) * 2**20, int(total) * 2**20) for index, uuid, free, total in rows]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [(index, free, total) for index, _, free, total in told]
    found = []
    for name in visible.split(","):
        for index, uuid, free, total in told:
            if name.strip() == index or (name.strip().startswith("GPU-") and uuid.startswith(name.strip())):
                found.append((index, free, total))
    return found


def check_port(place: Place) -> None:
    """Raise UserError where the first node cannot listen at its address and port."""
    if not place.is_first:
        return
    try:
        choose_port(place.address, place.port)
    except UserError as error:
        mend = f"main_address or main_port: {error}".replace("--port, or 0 for any free one", "--main_port")
        raise UserError(mend) from None


def check_file(key: str, settings: dict[str, Any]) -> None:
    """Raise UserError where a file that the verb reads is not there."""
    value = settings.get(key)
    if isinstance(value, str) and not packaged(value).is_file():
        raise UserError(f"{key}: {value}: no such file; check the path")


def check_models(key: str, settings: dict[str, Any]) -> None:
    """Raise UserError where a model folder is not there or holds none."""
    for path in _listed(settings.get(key)):
        try:
            check_model_folder(path)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None


def check_rewards(settings: dict[str, Any]) -> None:
    """Raise UserError where a reward is a folder that is not there; addresses and functions are asked later."""
    for name in _listed(settings.get("reward")):
        if ":" not in name:
            check_models("reward", {"reward": name})


def check_lengths(verb: str, settings: dict[str, Any]) -> None:
    """Raise UserError where the sequences asked for are over the model's context."""
    model = _model_config(settings)
    context = model.get("max_position_embeddings") or model.get("n_positions")
    if not isinstance(context, int):
        return
    for key in _LENGTHS.get(verb, []):
        length = whole(settings, key)
        if length is not None and length > context:
            raise UserError(
                f"{key}: {length} tokens do not fit the context of {settings['model_name_or_path']}, which is "
                f"{context}; set --{key} {context} or less"
            )


def check_tokenizer(settings: dict[str, Any]) -> None:
    """Raise UserError where the tokenizer has ids that the model has no row for, or the pad id is such a one."""
    model, path = _model_config(settings), settings.get("model_name_or_path")
    rows, pad = model.get("vocab_size"), model.get("pad_token_id")
    if not isinstance(rows, int):
        return
    if isinstance(pad, int) and not -1 <= pad < rows:
        raise UserError(
            f"{path}: its config.json has pad_token_id {pad} and vocab_size {rows}; set pad_token_id to the "
            "tokenizer's pad, below vocab_size"
        )
    ids = _tokenizer_ids(Path(str(path)) / "tokenizer.json")
    if ids and max(ids) >= rows:
        raise UserError(
            f"{path}: its tokenizer has ids up to {max(ids)} and the model {rows} rows; take the tokenizer files that "
            "came with the model, or resize its embeddings"
        )


def check_disk(settings: dict[str, Any]) -> None:
    """Raise UserError where the checkpoints asked for do not fit the disk."""
    needed, what = bytes_needed(settings)
    folder = Path(settings["output_dir"]).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{settings['output_dir']}: {_gib(needed)} are needed for {what}, and {_gib(free)} are free; free some, "
            "lower --save_total_limit, or set --save_only_model true (which cannot be resumed)"
        )


def bytes_needed(settings: dict[str, Any]) -> tuple[int, str]:
    """Bytes on disk that a training writes at most at one time, and of what.

    A new checkpoint is whole before the oldest goes, so there is one more than `save_total_limit`; without a limit
    two are counted. The finished model comes on top. Nothing where the model is not on this disk, or an adapter is
    trained, which is small.
    """
    path = settings.get("model_name_or_path")
    if not isinstance(path, str) or not Path(path).is_dir() or is_on(settings, "use_peft"):
        return 0, "nothing"
    count = model_size(Path(path))
    sharded = "deepspeed" in settings
    half = settings.get("dtype") in ("bfloat16", "float16") or (sharded and is_on(settings, "bf16"))
    weights = (2 if half else 4) * count
    beside = 0 if is_on(settings, "save_only_model") else _MOMENTS * count
    if beside and sharded:
        beside += _MASTER * count + weights
    limit = whole(settings, "save_total_limit")
    checkpoints = 0 if settings.get("save_strategy") in ("no", False) else 2 if limit is None else max(limit, 1) + 1
    total = weights + checkpoints * (weights + beside)
    return total, f"{checkpoints} checkpoints of {_gib(weights + beside)} and the model" if checkpoints else "the model"


def model_size(folder: Path) -> int:
    """How many weights are in a folder's safetensors, from their headers alone."""
    count = 0
    for path in folder.glob("*.safetensors"):
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            count += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
        except (OSError, ValueError, MemoryError, OverflowError, KeyError):
            continue  # a broken file is told of where it is loaded
    return count


def _listed(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, list) else [value]) if one is not None]


def _model_config(settings: dict[str, Any]) -> dict[str, Any]:
    """config.json of the model to train (its text part); empty where it is not on this disk."""
    found = _read_json(Path(str(settings.get("model_name_or_path"))) / "config.json")
    return found["text_config"] if isinstance(found.get("text_config"), dict) else found


def _tokenizer_ids(path: Path) -> list[int]:
    tokenizer = _read_json(path)
    vocabulary = tokenizer.get("model", {}).get("vocab")
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    return ids + [token["id"] for token in tokenizer.get("added_tokens", [])]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"
