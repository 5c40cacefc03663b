"""`rlhf label invite`, `backup` and `restore`: what one does to a label store from outside, also while it runs."""

import time
from argparse import ArgumentParser

from rlhf.errors import UserError, nearest

TASKS = ("invite", "backup", "restore")


def main(argv: list[str]) -> None:
    """Do one of TASKS. Raises UserError for anything else, and for what each of them refuses."""
    if argv[0] not in TASKS:
        raise UserError(f"label: unknown task `{argv[0]}`{nearest(argv[0], list(TASKS))}; there are {', '.join(TASKS)}")
    parser = ArgumentParser(prog=f"rlhf label {argv[0]}")
    parser.add_argument("--store", default="labels.db", help="the label database: a SQLite file or a postgresql:// URL")
    if argv[0] == "invite":
        parser.add_argument("--role", default="annotator", choices=("annotator", "admin"))
        parser.add_argument("--num", type=int, default=1, help="how many links; each is for one person")
        parser.add_argument("--days", type=float, default=7.0, help="how long the links work")
        parser.add_argument("--address", default="http://127.0.0.1:7861", help="where the app is")
    else:
        what = "file to write" if argv[0] == "backup" else "file that `rlhf label backup` wrote"
        parser.add_argument("file", help=what)
    options = parser.parse_args(argv[1:])
    if argv[0] == "invite":
        _invite(options.store, options.role, options.num, options.days, options.address)
    elif argv[0] == "backup":
        from labeling_app.store.backup import backup

        backup(options.store, options.file)
        print(f"{options.store}: backed up to {options.file}")
    else:
        from labeling_app.store.backup import restore

        restore(options.file, options.store)
        print(f"{options.file}: restored into {options.store}")


def _invite(url: str, role: str, num: int, days: float, address: str) -> None:
    from labeling_app.people import invite
    from labeling_app.store import open_store

    if num < 1 or days <= 0:
        raise UserError("label invite: --num and --days should be over 0")
    with open_store(url) as store:
        for _ in range(num):
            secret = store.write(lambda connection: invite(connection, role, None, time.time(), days))
            print(f"{address.rstrip('/')}/join/{secret}")
