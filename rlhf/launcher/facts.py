"""What nodes must have in common, and how they differ: one line a difference, with its mend."""

import hashlib
import socket
from pathlib import Path
from typing import Any

import rlhf
from rlhf.runs import versions as installed_versions

_LIBRARIES = ["torch", "transformers", "trl", "deepspeed", "accelerate", "peft"]


def node_facts(num_ranks: int, num_gpus: int | None, settings: dict[str, Any], mistakes: list[str]) -> dict[str, Any]:
    """This node: its versions, ranks, GPUs (None: it uses CPUs), digests of the command's settings, its mistakes."""
    return {
        "host": socket.gethostname(),
        "versions": versions(),
        "num_ranks": num_ranks,
        "num_gpus": num_gpus,
        "settings": {key: hashlib.sha256(repr(value).encode()).hexdigest()[:16] for key, value in settings.items()},
        "mistakes": mistakes,
    }


def versions() -> dict[str, str]:
    """Of Python, of the libraries that ranks share their work through, and of this code (a hash of its files)."""
    found = dict.fromkeys(("python", *_LIBRARIES), "none") | installed_versions(_LIBRARIES)
    return {**found, "rlhf": f"{rlhf.__version__}, code {code_hash(Path(rlhf.__file__).parent)}"}


def code_hash(package: Path) -> str:
    """Twelve digits from all Python files of a package, and of `reward_model` beside it."""
    digest = hashlib.sha256()
    for folder in (package, package.with_name("reward_model")):
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(package.parent)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def differences(nodes: list[dict[str, Any]]) -> list[str]:
    """What stands in the way of running on these nodes together, node 0 first; none: nothing does."""
    first, lines = nodes[0], []
    for number, node in enumerate(nodes):
        who = f"node {number} on {node['host']}"
        lines += [f"{who}: {mistake}" for mistake in node["mistakes"]]
        for name, version in node["versions"].items():
            theirs = first["versions"].get(name)
            if version != theirs:
                lines.append(
                    f"versions: {who} has {name} {version}, node 0 on {first['host']} {theirs}; install the same on all"
                )
        if node["num_ranks"] != first["num_ranks"]:
            lines.append(
                f"gpus: {who} starts {node['num_ranks']} ranks{_of(node)}, node 0 on {first['host']} "
                f"{first['num_ranks']}{_of(first)}; set the same --gpus on all"
            )
        if (node["num_gpus"] is None) != (first["num_gpus"] is None):
            lines.append(f"gpus: {who} {_kind(node)}, node 0 on {first['host']} {_kind(first)}; take nodes of one kind")
        keys = sorted(
            key
            for key in {**first["settings"], **node["settings"]}
            if first["settings"].get(key) != node["settings"].get(key)
        )
        if keys:
            lines.append(
                f"settings: {who} has other values than node 0 on {first['host']} for {', '.join(keys)}; start the "
                "same command, with the same config, on all"
            )
    return lines


def _of(node: dict[str, Any]) -> str:
    return "" if node["num_gpus"] is None else f" (of {node['num_gpus']} GPUs)"


def _kind(node: dict[str, Any]) -> str:
    return "uses CPUs" if node["num_gpus"] is None else "uses GPUs"
