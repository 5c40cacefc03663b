"""The house: imports go downward, the README's tree is the tree, `import rlhf` costs nothing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Top row first. A module imports from rows below its own, or from its own room.
ROWS = [
    ["rlhf.__main__"],
    ["rlhf.cli"],
    ["rlhf.demo", "rlhf.launcher"],
    ["rlhf.loop"],
    ["rlhf.planner"],
    [
        "rlhf.data.prepare", "rlhf.pretrain", "rlhf.sft", "rlhf.sample", "rlhf.dpo", "rlhf.ppo", "rlhf.compare",
        "rlhf.serve", "rlhf.chat", "reward_model", "labeling_app",
    ],
    ["rlhf.scoring"],
    ["rlhf.implicit"],
    ["rlhf.likelihood", "rlhf.training", "rlhf.streaming"],
    ["rlhf.generate"],
    ["rlhf.models", "rlhf.resume"],
    ["rlhf.lineage", "rlhf.decoding"],
    ["rlhf.data", "rlhf.runs", "rlhf.intervals", "rlhf.agreement", "rlhf.ports", "rlhf.packing", "rlhf.parts"],
    ["rlhf.config", "rlhf.decoding_graph", "rlhf.abreast"],
    ["rlhf.records", "rlhf.layers"],
    ["rlhf.errors", "rlhf.hardware", "rlhf.usage", "rlhf.throughput", "rlhf.extension_lock"],
]  # fmt: skip
# A room that reaches into another one on purpose, and why.
ALLOWED = {
    ("rlhf.demo", "rlhf.sample"),  # groups responses into tasks as `sample` does
    ("reward_model", "rlhf.dpo"),  # an implicit reward is learned as a DPO policy is
}


def _modules() -> dict[str, Path]:
    files = [path for room in ("rlhf", "reward_model", "labeling_app") for path in (ROOT / room).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def _row(module: str) -> tuple[int, str] | None:
    for number, row in enumerate(ROWS):
        for room in row:
            if module == room or module.startswith(f"{room}."):
                return number, room
    return None


def _imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("rlhf", "reward_model", "labeling_app")}


def test_every_module_has_a_row() -> None:
    assert [name for name in _modules() if name != "rlhf" and _row(name) is None] == []


def test_imports_go_downward() -> None:
    wrong = []
    for module, path in _modules().items():
        if (here := _row(module)) is None:
            continue
        for name in _imports(path):
            there = _row(name)
            if there is None or there[1] == here[1] or there[0] > here[0]:
                continue
            if (here[1], there[1]) not in ALLOWED:
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_only_the_pages_import_gradio() -> None:
    users = {
        name for name, path in _modules().items() if re.search(r"^\s*(import|from) gradio", path.read_text(), re.M)
    }
    assert {name for name in users if not name.startswith("labeling_app.ui.")} <= {
        "rlhf.chat",
        "rlhf.serve",
        "rlhf.compare.live.page",
    }


def _imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_import_rlhf_costs_nothing_and_labeling_starts_without_torch() -> None:
    assert not {"torch", "transformers", "numpy", "yaml"} & _imported_by("import rlhf, rlhf.cli")
    assert "torch" not in _imported_by("import labeling_app.export, rlhf.data.prepare")


def test_the_readme_tree_is_the_tree() -> None:
    """Every room of the README's tree is on disk, and every room on disk is in it."""
    block = re.search(r"```\n(rlhf/.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block, "README.md has no tree"
    told, inside = set(), ""
    for line in block.group(1).splitlines():
        name = line.split()[0] if line.strip() else ""
        if not line.startswith(" ") and name.endswith("/"):
            inside = name
            told.add(name.rstrip("/"))
        elif name:
            told.add(f"{inside}{name}".rstrip("/"))
    assert [name for name in sorted(told) if not (ROOT / name).exists()] == []
    tops = {"rlhf", "reward_model", "labeling_app", "configs", "launch", "benchmarks", "docs", "tests"}
    on_disk = tops | {
        f"rlhf/{path.name}"
        for path in (ROOT / "rlhf").iterdir()
        if not path.name.startswith("_") and path.suffix in ("", ".py")
    }
    assert sorted(on_disk - told) == []


def test_no_file_is_named_after_nothing() -> None:
    banned = {"utils", "util", "helpers", "helper", "manager", "base", "common", "misc"}
    assert [name for name in _modules() if set(name.split(".")) & banned] == []
