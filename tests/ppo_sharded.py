"""One rank of a sharded `rlhf ppo`: ten rounds, then rounds 6 to 10 once more from the checkpoint.

torchrun --nproc_per_node 2 tests/ppo_sharded.py FOLDER KEY=VALUE ...
"""

import json
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch.distributed as dist

from rlhf.cli import main
from rlhf.training import leave


def run(folder: Path, flags: list[str]) -> None:
    """Run to the end in FOLDER/whole; a copy as it was after round 5 in FOLDER/again, resumed."""
    main(["ppo", *flags, "--output_dir", str(folder / "whole")])
    if dist.is_initialized():
        dist.barrier()
    if int(os.environ.get("RANK", "0")) == 0:
        shutil.copytree(folder / "whole" / "checkpoint-5", folder / "again" / "checkpoint-5")
        shutil.copy(folder / "whole" / "metrics.jsonl", folder / "again")
        record = json.loads((folder / "whole" / "run.json").read_text())
        (folder / "again" / "run.json").write_text(json.dumps({**record, "finished": False, "metrics": {}}))
    if dist.is_initialized():
        dist.barrier()
    main(["ppo", *flags, "--output_dir", str(folder / "again"), "--resume", "true"])


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2:])
    leave()
