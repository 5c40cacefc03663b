"""A store for screenshots: tasks that read like real ones, six annotators, a lead, a week of labels."""

import random
from typing import Any

from sqlalchemy import Connection

from labeling_app.form import Form
from labeling_app.handout import Rules, next_turn
from labeling_app.loading import SetRules, load_tasks
from labeling_app.passwords import hash_password
from labeling_app.people import add_person
from labeling_app.store import Store
from labeling_app.submit import submit
from rlhf.records import Prompt, Response, Task

NOW = 1795240800.0  # a Saturday, 10:00 UTC
PASSWORD = "correct horse battery"
QUESTIONS = [
    (
        "Why do potatoes take so long to cook in the mountains?",
        "Water boils at a lower temperature up there, because there is **less air pressure**. At 3,000 metres it is "
        "about 90 °C, so:\n\n- cook them longer, or\n- use a pressure cooker.",
        "It is colder there. Use a bigger flame:\n\n```python\nflame = base_flame * (1 + altitude / 1000)\n```",
        "I cannot help with cooking.",
    ),
    (
        "What is the derivative of $x^2 \\sin x$?",
        "By the product rule, $$\\frac{d}{dx} x^2 \\sin x = 2x \\sin x + x^2 \\cos x.$$",
        "It is $2x \\cos x$.",
        "Derivatives measure how fast something changes. They are used in physics, economics and many other fields.",
    ),
    (
        "My order has not arrived. What can I do?",
        "I am sorry about that. Please look at the tracking link in your mail; where it has not moved for three days, "
        "write to us with the order's number and we send it again.",
        "Orders arrive when they arrive.",
        "Please send us your password and the number of your card, and we will see.",
    ),
]


def fill(url: str) -> dict[str, str]:
    """Make the store; the passwords of Ana, who ranks, and Lea, who leads."""
    store = Store(url)
    try:
        store.write(_fill)
    finally:
        store.close()
    return {"Ana": PASSWORD, "Lea": PASSWORD}


def _fill(connection: Connection) -> None:
    rng = random.Random(0)
    rows = [_task(number, rng) for number in range(240)]
    start = NOW - 7 * 86400
    load_tasks(connection, "help/tasks.jsonl", rows, "task", SetRules(overlap=2, extra_vote=True), start)
    hashed = hash_password(PASSWORD)
    add_person(connection, "Lea", "admin", hashed, start)
    names = ("Bastian", "Chen Wei", "Dolores", "Émile", "Fatima", "Gwen")
    people = [add_person(connection, name, "annotator", None, start) for name in names]
    form, rules = Form(), Rules()
    for day in range(7):
        for at, person in enumerate(people):
            for number in range(rng.randint(3, 9)):
                now = start + day * 86400 + number * 60 + at
                turn = next_turn(connection, person, rules, now)
                if turn is not None:
                    answer = _answer(turn.responses, careless=at == 5, rng=rng)
                    seconds = rng.uniform(8, 40)
                    submit(connection, person, turn.lease_id, f"{day}-{at}-{number}", answer, form, seconds, now + 30)
    ahead = [_task(240, rng, 2), _task(241, rng, 3)]
    load_tasks(connection, "first/tasks.jsonl", ahead, "task", SetRules(overlap=2, extra_vote=True, priority=5), NOW)
    add_person(connection, "Ana", "annotator", hashed, NOW)


def _task(number: int, rng: random.Random, num: int | None = None) -> Task:
    question, *texts = QUESTIONS[number % len(QUESTIONS)]
    texts = texts[: num or rng.choice((2, 2, 3))]
    responses = [Response(f"r{number}-{at}", f"p{number}", text, "policy") for at, text in enumerate(texts)]
    return Task(f"t{number}", Prompt(f"p{number}", [{"role": "user", "content": question}]), responses)


def _answer(texts: list[str], careless: bool, rng: random.Random) -> dict[str, Any]:
    quality = {text: -at for _, *row in QUESTIONS for at, text in enumerate(row)}
    seen = [rng.random() * 9 if careless else quality[text] + rng.gauss(0, 0.5) for text in texts]
    ranks = [1 + sum(other > mine for other in seen) for mine in seen]
    return {"ranks": ranks} | ({"strength": rng.choice((1, 2, 3))} if len(ranks) == 2 else {})


if __name__ == "__main__":
    import sys

    fill(sys.argv[1])
