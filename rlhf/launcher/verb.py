"""A rank's verb, as `python -m rlhf` runs it, but for two things, both for the launcher.

Where memory runs out it is one line that says where, and an exit code that was chosen is noted before the end.

python -m rlhf.launcher.verb FOLDER VERB ...
"""

import os
import runpy
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from rlhf.errors import UserError
from rlhf.launcher.cause import cause_of, write_cause
from rlhf.launcher.rank import RankFiles
from rlhf.records import write_whole


def main(argv: list[str]) -> None:
    """Run the verb. Exit code 1 where memory ran out, with the cause beside the rank's mark."""
    files = RankFiles(Path(argv[0]), int(os.environ["RANK"]))
    sys.argv = ["rlhf", *argv[1:]]
    try:
        runpy.run_module("rlhf", run_name="__main__", alter_sys=False)
    except BaseException as error:  # a SystemExit too: UserErrors end so, and may have been a lack of memory
        step = ""
        with suppress(OSError):
            step = files.beat.read_text(encoding="utf-8").strip()
        cause = cause_of(error, argv[1], step)
        if cause is None:
            if isinstance(error, SystemExit) and isinstance(error.code, int):
                # From here on its connections close, and a rank that notices may be gone before this one is.
                with suppress(OSError, UserError):
                    write_whole(files.said, [str(error.code)])
            raise
        with suppress(OSError):
            write_cause(files.memory, cause)
            files.traceback.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        print(f"rlhf: out of memory: {cause}; the whole traceback: {files.traceback}", file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
