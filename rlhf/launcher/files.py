"""The launch folder beside the run: the DeepSpeed file, the command, logs, the marks of ranks."""

import json
import os
import shlex
import socket
from pathlib import Path
from typing import Any

from rlhf.config import packaged
from rlhf.errors import UserError, disk_full_as_user_error

OFFLOADS = ["optimizer", "params"]


def launch_folder(output_dir: Path) -> Path:
    """Where a launch writes: beside the run's folder, which holds nothing but the run."""
    place = output_dir if output_dir.name else output_dir.absolute()
    return place.with_name(f"{place.name}.launch")


def make_folder(folder: Path) -> Path:
    """Make the launch folder. Raises UserError where it cannot be made."""
    try:
        for part in ("logs", "ranks"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another --output_dir") from None
    return folder


def deepspeed_settings(zero: int, offload: str | None) -> dict[str, Any] | None:
    """DeepSpeed's settings for a ZeRO stage, from `launch/zeroN.json`; None for stage 0, which is plain DDP.

    Raises UserError for an unknown stage or offload, and an offload that the stage has nothing to move for.
    """
    if zero not in (0, 1, 2, 3):
        raise UserError(f"zero: {zero} is no ZeRO stage; choose 0 (plain data parallel), 1, 2 or 3")
    if offload is not None and offload not in OFFLOADS:
        raise UserError(f"offload: `{offload}` is not one of {', '.join(OFFLOADS)}")
    if offload == "params" and zero != 3:
        raise UserError(f"offload: params needs ZeRO-3, which shards them, and --zero is {zero}; set --zero 3")
    if offload == "optimizer" and zero == 0:
        raise UserError("offload: optimizer needs ZeRO, which shards its state, and --zero is 0; set --zero 2")
    if zero == 0:
        return None
    settings = json.loads(packaged(f"launch/zero{zero}.json").read_text(encoding="utf-8"))
    if offload is not None:
        place = {"device": "cpu", "pin_memory": True}
        settings["zero_optimization"]["offload_optimizer"] = place
        if offload == "params":
            settings["zero_optimization"]["offload_param"] = place
        # Else DeepSpeed insists on its own Adam, which must be compiled: with PyTorch's it works anywhere.
        settings["zero_force_ds_cpu_optimizer"] = False
    return settings


def write_files(folder: Path, deepspeed: dict[str, Any] | None, by_hand: list[str] | None) -> None:
    """Write what the launch uses: `deepspeed.json` (where there is one) and `command.sh`, to read or run by hand.

    `by_hand` is given on one node; all nodes write the same DeepSpeed file, each whole.
    """
    with disk_full_as_user_error(folder, "free some, then launch again"):
        if deepspeed is not None:
            part = folder / f".deepspeed-{socket.gethostname()}-{os.getpid()}"
            part.write_text(json.dumps(deepspeed, indent=2) + "\n", encoding="utf-8")
            part.replace(folder / "deepspeed.json")
        if by_hand is not None:
            script = f"#!/bin/sh\n# The same by hand, unwatched: torchrun's own command.\n{shlex.join(by_hand)}\n"
            (folder / "command.sh").write_text(script, encoding="utf-8")
