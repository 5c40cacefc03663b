"""people as a judge: votes averaged by prompt by hand, what is no vote counted, and the way through a label store."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling_app.blind import comparison_tasks
from labeling_app.handout import Rules, next_turn
from labeling_app.store import Store
from rlhf.compare.answers import Answers
from rlhf.compare.page import render_page
from rlhf.compare.people import People, ask_people, gather
from rlhf.compare.report import build_report
from rlhf.compare.run import CompareConfig, Config, run
from rlhf.compare.sentences import people_sentences, warnings
from rlhf.compare.statistics import Bootstrap
from rlhf.compare.study import Study
from rlhf.compare.terminal import print_report
from rlhf.errors import UserError
from rlhf.intervals import mean_interval
from rlhf.loop import run_stage
from rlhf.models import load_tokenizer
from rlhf.records import Prompt, Ranking, Response, Task, make_id, write_jsonl
from rlhf.runs import read_run
from tests.stored_cases import load, person, send
from tests.tiny import tiny_policy

NAMES = ["sft", "dpo", "ppo"]
BOOTSTRAP = Bootstrap(num_bootstrap=300)


def response(name: str, n: int, text: str | None = None) -> Response:
    return Response(f"{name}{n}", f"p{n}", text or f"text {n} of {name}", f"run-{name}")


def answers(num: int, names: Sequence[str] = NAMES) -> list[Answers]:
    return [Answers(name, [[response(name, n)] for n in range(num)]) for name in names]


def vote(n: int, who: str, better: str, worse: str, **more: Any) -> tuple[Task, Ranking]:
    """One vote that `better` beats `worse` at prompt n; more than a rank apart or tied by `ranks`."""
    sides = [response(name, n) for name in sorted((better, worse))]
    task = Task(make_id("cmp", n, better, worse, who, more), Prompt(f"p{n}", []), sides)
    ranks = more.pop("ranks", (1, 2))
    return task, Ranking(task.id, who, {f"{better}{n}": ranks[0], f"{worse}{n}": ranks[1]}, **more)


def ask(cast: list[tuple[Task, Ranking]], num: int = 4, bootstrap: Bootstrap = BOOTSTRAP) -> People:
    return ask_people(gather([task for task, _ in cast], [ranking for _, ranking in cast]), answers(num), bootstrap)


VOTES = [
    vote(0, "ann", "dpo", "sft"),  # p0: sft wins none of 3
    vote(0, "bob", "dpo", "sft"),
    vote(0, "cho", "dpo", "sft", ranks=(1, 3)),
    vote(1, "ann", "sft", "dpo"),  # p1: one of 2
    vote(1, "bob", "dpo", "sft"),
    vote(2, "ann", "dpo", "sft", ranks=(1, 1)),  # p2: a tie and a tie that is bad, so a half
    vote(2, "bob", "dpo", "sft", ranks=(1, 1), both_bad=True),
    vote(3, "ann", "sft", "dpo"),  # p3: 1 and a half of 2
    vote(3, "cho", "sft", "dpo", ranks=(2, 2)),
    vote(3, "ann", "ppo", "dpo"),
]


def test_votes_of_one_prompt_are_averaged_first() -> None:
    people = ask(VOTES)
    assert list(people.pairs) == [("sft", "dpo"), ("dpo", "ppo")]
    pair = people.pairs["sft", "dpo"]
    wins = [0, 1 / 2, 1 / 2, 3 / 4]
    assert pair.pair.win_rate.mean == pytest.approx(7 / 16)  # not the mean of nine votes, which is 3.5 / 9
    assert pair.pair.win_rate == mean_interval(wins, None, (0, 1), num_bootstrap=300)
    assert pair.pair.ties == pytest.approx((0 + 0 + 1 + 1 / 2) / 4)
    assert (pair.pair.judge, pair.pair.win_rate.n, pair.num_votes, pair.num_annotators) == ("people", 4, 9, 3)
    assert pair.pair.verdict == "undecided"
    other = people.pairs["dpo", "ppo"]
    assert (other.pair.win_rate.mean, other.pair.win_rate.n, other.num_votes, other.num_annotators) == (0, 1, 1, 1)
    assert (people.num_counted, people.num_annotators, people.num_elsewhere) == (10, 3, 0)


def test_prompts_that_read_the_same_are_one() -> None:
    """The clusters are those of all prompts, of which people judged some."""
    people = ask(VOTES, bootstrap=Bootstrap(["x", "y", "z", "y"], num_bootstrap=300))
    rate = people.pairs["sft", "dpo"].pair.win_rate
    assert rate == mean_interval([0, 1 / 2, 1 / 2, 3 / 4], ["x", "y", "z", "y"], (0, 1), num_bootstrap=300)
    assert rate.n == 3
    assert people.pairs["dpo", "ppo"].pair.win_rate.n == 1


def test_votes_on_what_this_run_does_not_have_are_counted_apart() -> None:
    elsewhere = [
        vote(9, "ann", "dpo", "sft"),  # another prompt
        vote(0, "ann", "dpo", "kto"),  # another policy
    ]
    for sides in ((response("dpo", 0), response("dpo", 0)), (response("dpo", 0), response("sft", 1))):
        # Of one policy, as `sample` makes tasks; of two prompts, which is no comparison.
        task = Task(make_id("cmp", sides), Prompt("p0", []), list(sides))
        elsewhere.append((task, Ranking(task.id, "ann", {side.id: at for at, side in enumerate(sides, 1)})))
    changed, ranking = vote(1, "cho", "dpo", "sft")
    changed = Task(changed.id, changed.prompt, [response("dpo", 1, "another text"), changed.responses[1]])
    people = ask([*VOTES, *elsewhere, (changed, ranking)])
    assert (people.num_counted, people.num_elsewhere, people.num_annotators) == (10, 5, 3)
    assert people.pairs["sft", "dpo"].num_votes == 9
    nothing = ask(elsewhere)
    assert (nothing.pairs, nothing.num_counted, nothing.num_elsewhere, nothing.num_annotators) == ({}, 0, 4, 0)


def test_a_copy_of_a_policy_shares_its_votes_and_is_never_set_against_itself() -> None:
    rows = answers(4)
    people = ask_people(
        gather([task for task, _ in VOTES], [ranking for _, ranking in VOTES]),
        [*rows[:2], Answers("again", rows[0].responses)],
        BOOTSTRAP,
    )
    assert list(people.pairs) == [("sft", "dpo"), ("dpo", "again")]
    first, second = (people.pairs[pair].pair for pair in people.pairs)
    assert (first.win_rate.mean, second.win_rate.mean) == pytest.approx((7 / 16, 9 / 16))
    assert people.num_elsewhere == 1  # ppo is not there
    assert people.num_counted == 9


def test_only_votes_count() -> None:
    no_votes = [
        vote(0, "ann", "sft", "dpo", kind=kind)
        for kind in ("gold", "repeat", "practice", "surplus", "left_out", "adjudication", "repeat")
    ]
    people = ask([*VOTES, *no_votes])
    assert people.pairs == ask(VOTES).pairs
    assert people.votes.others == {
        "adjudication": 1,
        "gold": 1,
        "left_out": 1,
        "practice": 1,
        "repeat": 2,
        "surplus": 1,
    }
    assert people.votes.sha256 == gather([], [ranking for _, ranking in VOTES[::-1]]).sha256
    assert people.votes.sha256 != gather([], [ranking for _, ranking in VOTES[1:]]).sha256
    mend = "`rlhf label --comparison RUN` asks for some"
    with pytest.raises(UserError, match=rf"no votes on comparisons \(only 1 left_out, 2 repeat\); {mend}"):
        gather([], [ranking for _, ranking in no_votes if ranking.kind in ("repeat", "left_out")])
    with pytest.raises(UserError, match=f"people: the label store holds no votes on comparisons; {mend}"):
        gather([], [])


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("xyz"), st.sampled_from([0, 0.5, 1])), min_size=1))
def test_the_mean_is_that_of_the_prompts_means(cast: list[tuple[int, str, float]]) -> None:
    ranks = {0: (2, 1), 0.5: (1, 1), 1: (1, 2)}
    people = ask([vote(n, who, "sft", "ppo", ranks=ranks[value]) for n, who, value in cast])
    by_prompt = [[value for m, _, value in cast if m == n] for n in {n for n, _, _ in cast}]
    rate = people.pairs["sft", "ppo"].pair.win_rate
    assert rate.mean == pytest.approx(np.mean([np.mean(values) for values in by_prompt]))
    assert rate.n == len(by_prompt)
    assert people.pairs["sft", "ppo"].num_votes == len(cast) == people.num_counted


# --- in the report -----------------------------------------------------------------------------


def study(cast: list[tuple[Task, Ranking]], shares: dict[str, float], n: int = 40) -> Study:
    """sft and dpo: dpo wins a share of n prompts by each judge, and as people voted."""
    scores = {
        name: np.array([[0.0] * n, [1.0 if at < share * n else -1.0 for at in range(n)]])[:, :, None]
        for name, share in shares.items()
    }
    sampling = {"num_tokens": 3, "finished": True, "kl": 1.0}
    rows = [
        Answers(name, [[Response(f"{name}{at}", f"p{at}", f"text {at} of {name}", "r", sampling)] for at in range(n)])
        for name in NAMES[:2]
    ]
    settings: dict[str, Any] = dict.fromkeys(["gold", "reward_model", "prompts", "length_unit", "dtype"])
    settings |= {
        "policies": NAMES[:2],
        "baseline": "sft",
        "reference": "sft",
        "judges": list(scores),
        "confidence": 0.95,
        "held_out": {"files": [], "not_found": [], "unknown": []},
    }
    settings |= {
        "decided_by": next(iter(scores)),
        "num_prompts": n,
        "num_responses": 1,
        "max_new_tokens": 9,
        "temperature": 1.0,
    }
    settings |= {"batch_size": 8, "seed": 0, "num_bootstrap": 300}
    prompts = [Prompt(f"p{at}", [{"role": "user", "content": f"Question {at}"}]) for at in range(n)]
    people = ask_people(gather([task for task, _ in cast], [ranking for _, ranking in cast]), rows, BOOTSTRAP)
    return Study(prompts, rows, scores, BOOTSTRAP, settings, people)


def for_dpo(share: float, n: int = 40) -> list[tuple[Task, Ranking]]:
    return [
        vote(at, who, *(("dpo", "sft") if at < share * n else ("sft", "dpo"))) for at in range(n) for who in ("a", "b")
    ]


def test_people_stand_beside_the_other_judges(capsys: pytest.CaptureFixture) -> None:
    made = study([*for_dpo(0.9), vote(77, "zoe", "sft", "dpo")], {"reward_model": 0.9})
    report = build_report(made)
    assert [(pair["judge"], pair["verdict"]) for pair in report["pairs"]] == [
        ("reward_model", "dpo"),
        ("people", "dpo"),
    ]
    pair = report["pairs"][1]
    assert (pair["win_rate"]["mean"], pair["win_rate"]["n"], pair["ties"]) == (0.1, 40, 0)
    assert (pair["num_votes"], pair["num_annotators"]) == (80, 2)
    assert report["people"].pop("votes_sha256") == made.people.votes.sha256  # type: ignore[union-attr]
    assert report["people"] == {"num_votes": 80, "num_annotators": 2, "num_elsewhere": 1, "not_votes": {}}
    (sentence,) = people_sentences(report)
    assert sentence.startswith("dpo beats sft on 90% of 40 prompts by people (95% interval 7")
    assert sentence.endswith("; 80 votes of 2 annotators)")
    told = warnings(report)
    assert told == [
        "Not counted: 1 of 81 human votes, on responses that this run does not have.",
        "There is no gold here: the verdict is that of the reward model, which policies may have been trained to "
        "please. Read beside it what people say.",
    ]
    print_report(report)
    shown = capsys.readouterr().out
    assert f"{sentence}.\n" in shown and told[0] in shown
    page = render_page(made, report)
    assert "<h3>People</h3>\n<p>dpo beats sft on 90% of 40 prompts by people" in page
    assert '<td data-label="Judge">people</td>' in page
    assert '>40 <span class="span">80 votes, 2 annotators</span>' in page
    assert told[0] in page


def test_where_people_and_a_judge_see_it_differently() -> None:
    def told(people: float, **shares: float) -> list[str]:
        return [text for text in warnings(build_report(study(for_dpo(people), shares))) if "eople" in text]

    assert told(0.9, gold=0.9) == []
    assert told(0.1, gold=0.9) == ["People contradict gold: they prefer sft to dpo, it prefers dpo."]
    assert told(0.9, gold=0.9, reward_model=0.1) == [
        "People contradict the reward model: they prefer dpo to sft, it prefers sft."
    ]
    assert told(0.5, gold=0.9) == ["People cannot tell dpo and sft apart, gold prefers dpo."]
    assert told(0.1, gold=0.5) == ["People prefer sft to dpo, gold cannot tell them apart."]
    assert told(0.5, gold=0.5) == []


def test_without_votes_for_a_pair_it_says_nothing_of_it() -> None:
    made = study([vote(77, "zoe", "sft", "dpo")], {"gold": 0.9})
    report = build_report(made)
    assert [pair["judge"] for pair in report["pairs"]] == ["gold"] and people_sentences(report) == []
    assert warnings(report) == ["Not counted: 1 of 1 human votes, on responses that this run does not have."]
    assert "<h3>People</h3>" not in render_page(made, report)
    one = build_report(study([vote(0, "zoe", "sft", "dpo", ranks=(1, 1))], {"gold": 0.9}))
    assert people_sentences(one) == [
        "undecided: dpo wins 50% of 1 prompt against sft by people (95% interval 0% to 100%, which holds 50%; "
        "1 vote of 1 annotator)"
    ]


# --- the whole way -----------------------------------------------------------------------------


def length(prompts: Any, responses: list[str], **columns: Any) -> list[float]:
    """A gold by hand: the longer the better."""
    return [float(len(text)) for text in responses]


def test_from_compare_to_people_and_back(tmp_path: Path) -> None:
    for seed, name in enumerate(("sft", "dpo")):
        tiny_policy(tmp_path / name, seed=seed)
        load_tokenizer(str(tmp_path / name))
    questions = ["Hello", "I would like to return the shoes", "What time does the shop close?", "Can you help me?"]
    prompts = [Prompt(f"p{n}", [{"role": "user", "content": text}]) for n, text in enumerate(questions)]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    url = str(tmp_path / "labels.db")

    def settings(out: str, people: str | None) -> Config:
        return Config(
            CompareConfig(
                policies=[str(tmp_path / "sft"), str(tmp_path / "dpo")],
                prompts=str(tmp_path / "prompts.jsonl"),
                output_dir=str(tmp_path / out),
                gold="tests.test_compare_people:length",
                people=people,
                max_new_tokens=8,
                num_bootstrap=200,
            )
        )

    run_stage("compare", settings("first", None))
    tasks, leaks = comparison_tasks(str(tmp_path / "first"))
    assert 1 <= len(tasks) <= 4 and leaks == []

    store = Store(url)
    store.write(lambda connection: load(connection, "first", tasks, of="comparison"))
    with pytest.raises(UserError, match="people: the label store holds no votes on comparisons"):
        run_stage("compare", settings("none", url))
    assert not (tmp_path / "none").exists()

    def judge(connection: Any) -> None:
        """Ann likes what dpo wrote, by its text: she cannot know."""
        liked = {task.responses[1].text for task in tasks}
        ann = person(connection, "ann")
        while (turn := next_turn(connection, ann, Rules(), 2e9)) is not None:
            send(connection, ann, turn, {text: 1 if text in liked else 2 for text in turn.responses}, 2e9)

    store.write(judge)
    store.close()
    run_stage("compare", settings("second", url))
    report = json.loads((tmp_path / "second" / "report.json").read_text())
    gold, people = report["pairs"]
    assert (gold["judge"], people["judge"], people["num_votes"], people["num_annotators"]) == (
        "gold",
        "people",
        len(tasks),
        1,
    )
    assert (people["win_rate"]["mean"], people["win_rate"]["n"]) == (0, len(tasks))
    assert report["people"]["num_elsewhere"] == 0
    before = json.loads((tmp_path / "first" / "report.json").read_text())
    assert report["policies"] == before["policies"] and report["verdict"] == before["verdict"]

    # A database's password stays out of run.json.
    cast = [ranking for _, ranking in VOTES]
    judges: dict[str, Any] = {"gold": length}
    run(settings("third", "postgresql://me:s3:c@ret@host/db"), judges, ([task for task, _ in VOTES], cast))
    assert read_run(tmp_path / "third").config["people"] == "postgresql://me:***@host/db"
    assert not [path for path in (tmp_path / "third").iterdir() if b"s3:c" in path.read_bytes()]
    report = json.loads((tmp_path / "third" / "report.json").read_text())
    assert [pair["judge"] for pair in report["pairs"]] == ["gold"] and report["people"]["num_elsewhere"] == 10
