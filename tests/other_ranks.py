"""Trainings on one number of ranks that go on on another. Ranks are forks, so that libraries load once.

python tests/other_ranks.py: each line of stdin is [number of ranks, the verb's command line, a file for what the ranks
print]; the answer is a line with the exit codes of the ranks.
"""

import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import deepspeed  # noqa: F401

import reward_model.train  # noqa: F401
import rlhf.dpo
import rlhf.ppo.run
import rlhf.sft  # noqa: F401
from rlhf.cli import main
from rlhf.ports import choose_port

Verb = Callable[[list[str]], None]


def _rank(rank: int, num_ranks: int, port: int, argv: list[str], log: Path, verb: Verb) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    os.environ.update({key: str(value) for key, value in place.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    with log.open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    try:
        verb(argv)
    except BaseException:
        traceback.print_exc()
        raise


def run(num_ranks: int, argv: list[str], log: Path, verb: Verb = main) -> list[int | None]:
    """The exit codes of a verb's ranks; `verb` does the command line in each."""
    fork, port = multiprocessing.get_context("fork"), choose_port("127.0.0.1", 0)
    ranks = [fork.Process(target=_rank, args=(rank, num_ranks, port, argv, log, verb)) for rank in range(num_ranks)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return [process.exitcode for process in ranks]


if __name__ == "__main__":
    for line in sys.stdin:
        num_ranks, argv, log = json.loads(line)
        print(json.dumps(run(num_ranks, argv, Path(log))), flush=True)
