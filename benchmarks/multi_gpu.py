"""Which setting for which model on which hardware: the planner's own search, over models, machines and stages.

    python benchmarks/multi_gpu.py [--only sft|dpo|ppo ...] [--jobs N] [--tables]

Nothing is loaded and no GPU is used: each model is a folder with its `config.json` alone. A cell of a table is what
`rlhf plan` chooses for all weights, and, where that does not fit or needs host memory, for LoRA. Prints the Markdown
tables of docs/multi-gpu.md and writes benchmarks/results/multi_gpu.json; --tables prints them from that file.
Takes about a quarter of an hour on one core.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "multi_gpu.json"
GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """A model's `config.json`, and where its numbers are from."""

    name: str
    kind: str  # transformers' model_type
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    tied: bool
    source: str

    @property
    def num_weights(self) -> int:
        """All weights, by hand: embedding, head, and in a layer attention, feed-forward and norms."""
        kv = self.hidden // self.heads * self.kv_heads
        attention = 2 * self.hidden**2 + 2 * self.hidden * kv
        biases = self.hidden + 2 * kv if self.kind == "qwen2" else 0
        layer = attention + biases + 3 * self.hidden * self.inner + 2 * self.hidden
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.layers * layer + self.hidden

    def write(self, folder: Path) -> Path:
        """A folder that the planner can read."""
        values = {
            "model_type": self.kind,
            "architectures": ["Qwen2ForCausalLM" if self.kind == "qwen2" else "LlamaForCausalLM"],
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.inner,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 32768,
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(values))
        return folder


_QWEN = "arXiv 2412.15115 table 1, and config.json of Qwen/Qwen2.5-{} on huggingface.co"
_LLAMA = "arXiv 2407.21783 table 3, and config.json of meta-llama/Llama-3.1-{} on huggingface.co"
SHAPES = [
    Shape("Qwen2.5 0.5B", "qwen2", 896, 24, 14, 2, 4864, 151936, True, _QWEN.format("0.5B")),
    Shape("Qwen2.5 1.5B", "qwen2", 1536, 28, 12, 2, 8960, 151936, True, _QWEN.format("1.5B")),
    Shape("Qwen2.5 7B", "qwen2", 3584, 28, 28, 4, 18944, 152064, False, _QWEN.format("7B")),
    Shape("Llama 3.1 8B", "llama", 4096, 32, 32, 8, 14336, 128256, False, _LLAMA.format("8B")),
    Shape("Qwen2.5 14B", "qwen2", 5120, 48, 40, 8, 13824, 152064, False, _QWEN.format("14B")),
    Shape("Qwen2.5 32B", "qwen2", 5120, 64, 40, 8, 27648, 152064, False, _QWEN.format("32B")),
    Shape("Llama 3.1 70B", "llama", 8192, 80, 64, 8, 28672, 128256, False, _LLAMA.format("70B")),
]


@dataclass(frozen=True)
class Machines:
    """`nodes` of `gpus` GPUs; `memory` is what PyTorch reports of one such GPU, in GiB."""

    name: str
    gpus: int
    nodes: int
    memory: float


# What out-of-memory messages call "total capacity" on an RTX 4090, an L40S, an H100 and an H200.
_24, _48, _80, _141 = 23.5, 44.4, 79.1, 139.8
MACHINES = [
    Machines("1 x 24 GB", 1, 1, _24),
    Machines("1 x 48 GB", 1, 1, _48),
    Machines("1 x 80 GB", 1, 1, _80),
    Machines("1 x 141 GB", 1, 1, _141),
    Machines("8 x 24 GB", 8, 1, _24),
    Machines("8 x 80 GB", 8, 1, _80),
    Machines("8 x 141 GB", 8, 1, _141),
    Machines("2 nodes of 8 x 80 GB", 8, 2, _80),
    Machines("4 nodes of 8 x 80 GB", 8, 4, _80),
    Machines("16 nodes of 8 x 80 GB", 8, 16, _80),
]
_PLAIN = {"bf16": True, "gradient_checkpointing": False, "output_dir": "run"}
_LENGTH = {"max_length": 2048, "per_device_train_batch_size": 8}
# The reward is a function or a server: a reward model in the process is 4 bytes a weight more, on every GPU.
_PPO = {
    "prompts": "prompts.jsonl",
    "reward": ["http://localhost:8000"],
    "max_prompt_length": 512,
    "max_new_tokens": 512,
    "per_device_train_batch_size": 64,
    "micro_batch_tokens": 16_384,
}
VALUES: dict[str, dict[str, Any]] = {
    "sft": _PLAIN | _LENGTH | {"demonstrations": "demonstrations.jsonl"},
    "dpo": _PLAIN | _LENGTH | {"preferences": "preferences.jsonl"},
    "ppo": _PLAIN | _PPO,
}
_LORA = {"use_peft": True, "lora_r": 16, "lora_target_modules": "all-linear", "dtype": "bfloat16"}
_4BIT = _LORA | {"load_in_4bit": True}


@dataclass(frozen=True)
class Way:
    """A way to train: all weights or LoRA, and what is left out to make it fit."""

    name: str
    values: dict[str, Any]
    lora: bool = False
    one_gpu: bool = False  # 4-bit weights are planned for without sharding only


_NO_KL = {"num_kl_prompts": 0}
WAYS: dict[str, list[Way]] = {
    "sft": [Way("", {}), Way("LoRA", _LORA, True), Way("4-bit LoRA", _4BIT, True, True)],
    "dpo": [
        Way("", {}),
        Way("no KL", _NO_KL),
        Way("LoRA", _LORA, True),
        Way("LoRA, no KL", _LORA | _NO_KL, True),
        Way("4-bit LoRA, no KL", _4BIT | _NO_KL, True, True),
    ],
    "ppo": [
        Way("", {}),
        Way("shared", {"value_model_kind": "shared"}),
        Way("LoRA", _LORA | {"value_model_kind": "shared"}, True),
        Way("4-bit LoRA", _4BIT | {"value_model_kind": "shared"}, True, True),
    ],
}


class Plans:
    """A model's plans for one verb: a stage is made once a way, so that its dry runs serve all machines."""

    def __init__(self, verb: str, shape: Shape, folder: Path) -> None:
        self.verb, self.shape = verb, shape
        self.path = shape.write(folder / shape.name.replace(" ", "-"))
        self._stages: dict[str, Any] = {}

    def row(self, machines: Machines) -> dict[str, Any]:
        """What is chosen on these machines: for all weights, and for LoRA where that is not enough."""
        full = self._first([way for way in WAYS[self.verb] if not way.lora], machines)
        lora = None
        if not full["fits"] or full["setting"]["offload"] != "none":
            lora = self._first([way for way in WAYS[self.verb] if way.lora], machines)
        return {"verb": self.verb, "model": self.shape.name, "machines": machines.name, "full": full, "lora": lora}

    def _first(self, ways: list[Way], machines: Machines) -> dict[str, Any]:
        """The first way that fits without offloading, else the first that fits, else what needs least."""
        able = [way for way in ways if machines.gpus * machines.nodes == 1 or not way.one_gpu]
        found = []
        for way in able:
            found.append(self.plan(way, machines))
            if found[-1]["fits"] and found[-1]["setting"]["offload"] == "none":
                return found[-1]
        fitting = [plan for plan in found if plan["fits"]]
        return fitting[0] if fitting else min(found, key=lambda plan: plan["peak"])

    def plan(self, way: Way, machines: Machines) -> dict[str, Any]:
        """The planner's search."""
        from rlhf.planner.options import PlanOptions
        from rlhf.planner.search import search

        options = PlanOptions(gpus=machines.gpus, nodes=machines.nodes, gpu_memory=machines.memory)
        if self.verb == "ppo" and not way.lora:  # ZeRO-3 asks for it; without it is the same model
            way = Way(way.name, way.values | {"ref_model": str(self.path)})
        found = search(self._stage(way, options), options, machines.memory)
        chosen = found.without_offload or found.chosen
        return {
            "way": way.name,
            "fits": found.fits,
            "setting": asdict(chosen.setting),
            "peak": chosen.peak,
            "phase": chosen.worst.phase,
            "host": chosen.host * machines.gpus,
        }

    def _stage(self, way: Way, options: Any) -> Any:
        from rlhf.config import from_values
        from rlhf.planner.stages import Stage

        if way.name not in self._stages:
            values = VALUES[self.verb] | {"model_name_or_path": str(self.path)} | way.values
            self._stages[way.name] = Stage(self.verb, from_values(_config_type(self.verb), values, self.verb), options)
        return self._stages[way.name]


def _config_type(verb: str) -> Any:
    import importlib

    from rlhf.loop import STAGES

    return importlib.import_module(STAGES[verb]).Config


def compute(verbs: list[str], jobs: int) -> list[dict[str, Any]]:
    """All rows of these verbs, `jobs` processes at a time."""
    asked = [(verb, shape) for verb in verbs for shape in SHAPES]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        return [row for rows in pool.map(rows_of, *zip(*asked, strict=True)) for row in rows]


def rows_of(verb: str, shape: Shape, machines: list[Machines] = MACHINES) -> list[dict[str, Any]]:
    """One model's rows of one verb."""
    with tempfile.TemporaryDirectory() as folder:
        plans = Plans(verb, shape, Path(folder))
        rows = [plans.row(each) for each in machines]
    print(f"{verb}, {shape.name}: done", file=sys.stderr)
    return rows


def cell(row: dict[str, Any]) -> str:
    """A row in a few signs, all weights first: `Z3 c 8x1, 61`."""
    full, lora = row["full"], row["lora"]
    words = [_words(full, row["verb"])] if full["fits"] else []
    words += [_words(lora, row["verb"])] if lora and lora["fits"] else []
    if words:
        return "<br>".join(words)
    return f"does not fit: {lora['way']} needs {lora['peak'] / GIB:.0f}"


def _words(plan: dict[str, Any], verb: str) -> str:
    setting = plan["setting"]
    signs = [f"Z{setting['zero']}"]
    signs += ["c"] if setting["checkpointing"] else []
    signs += {"none": [], "optimizer": ["o"], "params": ["p"]}[setting["offload"]]
    micro = setting["micro_batch"]
    signs.append(f"{micro // 1024}k" if verb == "ppo" else f"{micro}x{setting['accumulation']}")
    way = f"{plan['way']}: " if plan["way"] else ""
    host = f" + {plan['host'] / GIB:.0f} host" if plan["host"] >= GIB else ""
    return f"{way}{' '.join(signs)}, {plan['peak'] / GIB:.0f}{host}"


def table(rows: list[dict[str, Any]], verb: str) -> str:
    """Markdown: machines down, models across."""
    lines = [
        f"| {verb} | " + " | ".join(shape.name for shape in SHAPES) + " |",
        "| --- " * (len(SHAPES) + 1) + "|",
    ]
    cells = {(row["machines"], row["model"]): cell(row) for row in rows if row["verb"] == verb}
    for machines in MACHINES:
        found = [cells[machines.name, shape.name] for shape in SHAPES]
        lines.append(f"| {machines.name} | " + " | ".join(found) + " |")
    return "\n".join(lines)


def main() -> None:
    """Compute, print the tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(WAYS), default=list(WAYS), help="stages; the others stay")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--tables", action="store_true", help="compute nothing")
    given = parser.parse_args()
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []
    if not given.tables:
        rows = [row for row in rows if row["verb"] not in given.only] + compute(given.only, given.jobs)
        rows.sort(key=lambda row: list(WAYS).index(row["verb"]))
        libraries = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
        shapes = [asdict(shape) | {"num_weights": shape.num_weights} for shape in SHAPES]
        machines = [asdict(each) for each in MACHINES]
        whole = {"libraries": libraries, "shapes": shapes, "machines": machines, "values": VALUES, "rows": rows}
        RESULTS.write_text(json.dumps(whole, indent=1) + "\n")
    for verb in WAYS:
        if any(row["verb"] == verb for row in rows):
            print("\n" + table(rows, verb))


if __name__ == "__main__":
    main()
