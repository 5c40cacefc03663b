"""A process that labels until it is killed: python -m tests.label_child URL PERSON,PERSON,... < unanswered

It prints `try LINE` before each submit and `ack SUBMISSION` once the store says that it is on disk.
Lines of stdin are submits of an earlier process that nobody acknowledged: it sends them again first.
"""

import json
import sys
import threading
import uuid
from typing import Any

from labeling_app.form import Form
from labeling_app.handout import Rules, next_turn
from labeling_app.store import Store
from labeling_app.submit import submit

FORM = Form(strength=False)
RULES = Rules(lease_seconds=1e9, gold_share=0.1, repeat_share=0.1, repeat_after=1)


def main() -> None:
    """Work with one thread a person."""
    store = Store(sys.argv[1])
    for line in sys.stdin:
        _send(store, json.loads(line))
    threads = [threading.Thread(target=_work, args=(store, int(person))) for person in sys.argv[2].split(",")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("done", flush=True)


def _work(store: Store, person: int) -> None:
    turn = store.write(lambda connection: next_turn(connection, person, RULES, 0.0))
    while turn is not None:
        ranks = [1 + (text != "a") for text in turn.responses]
        turn = _send(store, {"person": person, "lease": turn.lease_id, "submission": uuid.uuid4().hex, "ranks": ranks})


def _send(store: Store, sent: dict[str, Any]) -> Any:
    def job(connection: Any) -> Any:
        answer = {"ranks": sent["ranks"]}
        submit(connection, sent["person"], sent["lease"], sent["submission"], answer, FORM, 1.0, 0.0)
        return next_turn(connection, sent["person"], RULES, 0.0)

    # One write each: lines of threads do not mix.
    sys.stdout.write(f"try {json.dumps(sent)}\n")
    sys.stdout.flush()
    turn = store.write(job)
    sys.stdout.write(f"ack {sent['submission']}\n")
    sys.stdout.flush()
    return turn


if __name__ == "__main__":
    main()
