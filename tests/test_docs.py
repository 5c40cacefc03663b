"""What the docs point at is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_place_that_ppo_md_names_exists() -> None:
    places = re.findall(r"`(\w+)\.py:(\w+)`", (ROOT / "docs" / "ppo.md").read_text())
    assert len(places) > 20
    for module, name in places:
        path = next(path for room in ("rlhf/ppo", "rlhf") if (path := ROOT / room / f"{module}.py").is_file())
        tree = ast.parse(path.read_text())
        named = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert name in named, f"docs/ppo.md: {module}.py has no {name}"
