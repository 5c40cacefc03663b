"""torchrun on one node, as it is, with its failures written down: which rank ended how, and when.

python -m rlhf.launcher.agent ENDED.json [torchrun's arguments]
"""

import json
import signal
import sys
from pathlib import Path

from rlhf.launcher.rank import die_with_parent


def main(argv: list[str]) -> None:
    """Start this node's ranks and wait for them. Exit code 1 where one failed."""
    die_with_parent()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # meant for the ranks, where a whole process group gets it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # the watch held it back until here
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    ended, rest = Path(argv[0]), argv[1:]
    try:
        torchrun(rest)
    except ChildFailedError as error:
        failures = [
            {"rank": rank, "exit_code": failure.exitcode, "time": failure.timestamp}
            for rank, failure in error.failures.items()
        ]
        ended.write_text(json.dumps(failures), encoding="utf-8")
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
