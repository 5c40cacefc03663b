"""Rankings to preferences: the majority, the sums, the split, and every error."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling_app import export
from labeling_app.aggregate import settle
from labeling_app.better_answers import better_answers
from labeling_app.export import aggregate, labels_sha256
from rlhf.agreement import human_ceiling
from rlhf.config import parse
from rlhf.data.split import Shares, opening, prompt_key, split_of
from rlhf.errors import UserError
from rlhf.records import Demonstration, Preference, Prompt, Ranking, Response, Task, Tie, read_jsonl, write_jsonl


def task(id: str, *texts: str, prompt: str = "p") -> Task:
    """A task whose response to text `t` has the id `PROMPT-t`."""
    messages = [{"role": "user", "content": prompt}]
    responses = [Response(f"{prompt}-{text}", prompt, text, "run") for text in texts]
    return Task(id, Prompt(prompt, messages), responses)


def ranking(task_id: str, annotator: str, prompt: str = "p", **ranks: int) -> Ranking:
    return Ranking(task_id, annotator, {f"{prompt}-{text}": rank for text, rank in ranks.items()})


def pair(group: str, *, win: int = 0, tie: int = 0, lose: int = 0) -> Preference:
    votes = {"for": win, "tie": tie, "against": lose}
    return Preference("id", group, [], [], [], votes=votes)


def test_majority_margin_weight_and_votes():
    rankings = [ranking("t", "ann", a=1, b=3), ranking("t", "bob", a=1, b=2), ranking("t", "cho", a=2, b=1)]
    ((preference,), ties, _) = aggregate([task("t", "a", "b")], rankings)
    assert not ties
    assert preference.chosen == [{"role": "assistant", "content": "a"}]
    assert preference.rejected == [{"role": "assistant", "content": "b"}]
    assert preference.prompt == [{"role": "user", "content": "p"}]
    assert preference.group_id == "p"
    assert preference.votes == {"for": 2, "tie": 0, "against": 1}
    assert preference.margin == pytest.approx((2 + 1 - 1) / 3)
    assert preference.weight == pytest.approx(2 / 3)


def test_the_second_shown_can_win_and_ties_count_half():
    rankings = [ranking("t", "ann", a=2, b=1), ranking("t", "bob", a=1, b=1)]
    ((preference,), _, _) = aggregate([task("t", "a", "b")], rankings)
    assert preference.chosen[0]["content"] == "b"
    assert preference.votes == {"for": 1, "tie": 1, "against": 0}
    assert preference.weight == 0.75
    assert preference.margin == 0.5


def test_all_pairs_of_a_ranking():
    preferences, ties, counts = aggregate([task("t", "a", "b", "c")], [ranking("t", "ann", a=1, b=2, c=2)])
    assert [(p.chosen[0]["content"], p.rejected[0]["content"]) for p in preferences] == [("a", "b"), ("a", "c")]
    assert [[r[0]["content"] for r in tie.responses] for tie in ties] == [["b", "c"]]
    assert ties[0].votes == {"for": 0, "tie": 1, "against": 0}
    assert (counts["pairs_in"], counts["preferences"], counts["ties"]) == (3, 2, 1)


def test_equal_sides_make_a_tie_also_where_nobody_called_it_one():
    _, (tie,), _ = aggregate([task("t", "a", "b")], [ranking("t", "ann", a=1, b=2), ranking("t", "bob", a=2, b=1)])
    assert tie.votes == {"for": 1, "tie": 0, "against": 1}


def test_a_minority_that_feels_stronger_gives_margin_0_not_below():
    rankings = [ranking("t", "ann", a=1, b=2), ranking("t", "bob", a=1, b=2), ranking("t", "cho", a=9, b=1)]
    ((preference,), _, _) = aggregate([task("t", "a", "b")], rankings)
    assert preference.chosen[0]["content"] == "a"
    assert preference.margin == 0.0


def test_identical_texts_make_no_pair_and_are_not_voted_on_twice():
    # "a" and "a " read the same: no pair of themselves, and one pair, not two, with "b".
    same = dataclasses.replace(task("t", "a", "b").responses[0], id="p-a2", text="a ")
    shown = task("t", "a", "b")
    shown = dataclasses.replace(shown, responses=[*shown.responses, same])
    preferences, ties, counts = aggregate([shown], [Ranking("t", "ann", {"p-a": 1, "p-b": 2, "p-a2": 3})])
    assert counts["pairs_in"] == 3
    assert (counts["pairs_identical"], counts["votes_identical"]) == (1, 1)
    assert (counts["pairs_repeated"], counts["votes_repeated"]) == (1, 1)
    # a over b by 1, b over a by 1: one voter who cannot tell.
    assert not preferences
    assert ties[0].votes == {"for": 0, "tie": 1, "against": 0}


def test_one_vote_an_annotator_over_tasks_that_share_a_pair():
    tasks = [task("t1", "a", "b"), task("t2", "b", "a", "c")]
    rankings = [
        ranking("t1", "ann", a=1, b=2),
        ranking("t2", "ann", a=1, b=2, c=3),
        ranking("t2", "bob", a=2, b=1, c=3),
    ]
    preferences, ties, counts = aggregate(tasks, rankings)
    assert [tie.votes for tie in ties] == [{"for": 1, "tie": 0, "against": 1}]
    assert [p.votes for p in preferences] == [{"for": 2, "tie": 0, "against": 0}] * 2
    assert counts["pairs_in"] == 3
    assert (counts["votes_in"], counts["votes"], counts["votes_repeated"]) == (7, 6, 1)


def test_unranked_tasks_and_annotators_left_out_are_counted():
    tasks = [task("t1", "a", "b"), task("t2", "a", "b", prompt="q"), task("t3", "a", "b", prompt="r")]
    rankings = [
        ranking("t1", "ann", a=1, b=2),
        ranking("t1", "bob", a=2, b=1),
        ranking("t2", "bob", prompt="q", a=2, b=1),
    ]
    preferences, ties, counts = aggregate(tasks, rankings, ["bob"])
    assert [p.votes for p in preferences] == [{"for": 1, "tie": 0, "against": 0}]
    assert not ties
    assert counts["pairs_annotator_out"] == 1
    assert counts["pairs_unranked"] == 1
    assert counts["votes_annotator_out"] == 2
    assert counts["annotators"] == 1


@settings(deadline=None)
@given(st.data())
def test_nothing_disappears(data):
    prompts = data.draw(st.integers(1, 3))
    tasks, rankings = [], []
    for number in range(data.draw(st.integers(1, 4))):
        prompt = f"p{number % prompts}"
        texts = data.draw(st.lists(st.sampled_from("abc"), min_size=2, max_size=4))
        responses = [Response(f"{number}-{i}", prompt, text, "run") for i, text in enumerate(texts)]
        tasks.append(Task(f"t{number}", Prompt(prompt, [{"role": "user", "content": prompt}]), responses))
        for annotator in data.draw(st.sets(st.sampled_from(["ann", "bob", "cho"]))):
            ranks = {response.id: data.draw(st.integers(1, 3)) for response in responses}
            kind = data.draw(st.sampled_from(["task", "task", "surplus"]))
            rankings.append(Ranking(f"t{number}", annotator, ranks, kind=kind))
    out = {"cho"} & {r.annotator for r in rankings}
    preferences, ties, counts = aggregate(tasks, rankings, out)

    by_id = {task.id: task for task in tasks}
    assert counts["pairs_in"] == sum(len(t.responses) * (len(t.responses) - 1) // 2 for t in tasks)
    sizes = [len(by_id[r.task_id].responses) for r in rankings]
    assert counts["votes_in"] == sum(k * (k - 1) // 2 for k in sizes)
    left_out = ["pairs_identical", "pairs_repeated", "pairs_unranked", "pairs_annotator_out", "pairs_left_out"]
    assert counts["pairs_in"] == len(preferences) + len(ties) + sum(counts[reason] for reason in left_out)
    left_out = ["votes_identical", "votes_repeated", "votes_annotator_out", "votes_left_out"]
    assert counts["votes_in"] == counts["votes"] + sum(counts[reason] for reason in left_out)
    assert counts["votes"] == sum(sum(p.votes.values()) for p in [*preferences, *ties])

    for preference in preferences:
        assert preference.votes["for"] > preference.votes["against"]
        assert 0.5 < preference.weight <= 1
        assert preference.margin >= 0
    ids = [p.id for p in [*preferences, *ties]]
    assert len(set(ids)) == len(ids)
    assert aggregate(tasks, list(reversed(rankings)), out) == (preferences, ties, counts)


# --- strength, both bad, adjudication, weights -------------------------------------------------


def strong(task_id: str, annotator: str, strength: float, prompt: str = "p", **ranks: int) -> Ranking:
    return dataclasses.replace(ranking(task_id, annotator, prompt, **ranks), strength=strength)


def test_a_pair_s_strength_is_its_difference():
    votes = [strong("t", "ann", 3, a=1, b=2), strong("t", "bob", 1, a=2, b=1), strong("t", "cho", 2, a=1, b=2)]
    ((preference,), _, _) = aggregate([task("t", "a", "b")], votes)
    assert preference.chosen[0]["content"] == "a"
    assert preference.votes == {"for": 2, "tie": 0, "against": 1}
    assert preference.margin == pytest.approx((3 - 1 + 2) / 3)
    assert preference.weight == pytest.approx(2 / 3)


def test_strength_and_ranks_of_more_responses_meet_in_one_pair():
    # a over b: "better" (2) by ann on the pair, two ranks apart by bob among three.
    tasks = [task("t1", "a", "b"), task("t2", "a", "b", "c")]
    votes = [strong("t1", "ann", 2, a=1, b=2), ranking("t2", "bob", a=1, b=3, c=2)]
    preferences, _, _ = aggregate(tasks, votes)
    assert {(p.chosen[0]["content"], p.rejected[0]["content"]): p.margin for p in preferences} == {
        ("a", "b"): 2.0,
        ("a", "c"): 1.0,
        ("c", "b"): 1.0,
    }


def test_with_more_than_two_responses_ranks_count_as_before():
    (first, *_), _, _ = aggregate([task("t", "a", "b", "c")], [strong("t", "ann", 3, a=1, b=2, c=3)])
    assert first.margin == 1.0


def test_both_bad_is_counted_and_a_tie():
    bad = dataclasses.replace(strong("t", "ann", 0, a=1, b=1), both_bad=True)
    preferences, (tie,), counts = aggregate([task("t", "a", "b")], [bad])
    assert preferences == []
    assert tie.votes == {"for": 0, "tie": 1, "against": 0}
    assert counts["both_bad"] == 1


def adjudication(task_id: str, **ranks: int) -> Ranking:
    return dataclasses.replace(ranking(task_id, "lead", **ranks), kind="adjudication")


def test_an_adjudication_settles_every_pair_of_its_task_and_the_votes_stay():
    votes = [ranking("t", name, a=1, b=2, c=3) for name in ("ann", "bob")] + [ranking("t", "cho", a=2, b=1, c=3)]
    preferences, ties, counts = aggregate([task("t", "a", "b", "c")], [*votes, adjudication("t", a=3, b=1, c=1)])
    found = {(p.chosen[0]["content"], p.rejected[0]["content"]): (p.votes, p.weight, p.margin) for p in preferences}
    assert found == {
        ("b", "a"): ({"for": 1, "tie": 0, "against": 2}, 1.0, 2.0),
        ("c", "a"): ({"for": 0, "tie": 0, "against": 3}, 1.0, 2.0),
    }
    assert [tie.votes for tie in ties] == [{"for": 3, "tie": 0, "against": 0}]
    assert (counts["pairs_adjudicated"], counts["votes_in"], counts["votes"]) == (3, 9, 9)
    assert (counts["rankings_in"], counts["annotators"]) == (3, 3)  # the lead is no annotator


def test_an_adjudication_counts_where_every_vote_is_left_out():
    rankings = [ranking("t", "ann", a=1, b=2), adjudication("t", a=2, b=1)]
    ((preference,), _, counts) = aggregate([task("t", "a", "b")], rankings, ["ann"])
    assert preference.chosen[0]["content"] == "b"
    assert preference.votes == {"for": 0, "tie": 0, "against": 0}
    assert counts["votes_annotator_out"] == 1


@pytest.mark.parametrize("kind", ["practice", "gold", "repeat", "surplus"])
def test_other_kinds_are_no_votes(kind):
    other = dataclasses.replace(ranking("t", "bob", a=2, b=1), kind=kind)
    preferences, _, counts = aggregate([task("t", "a", "b")], [ranking("t", "ann", a=1, b=2), other])
    assert [p.votes for p in preferences] == [{"for": 1, "tie": 0, "against": 0}]
    assert (counts["votes_in"], counts["votes"], counts["votes_left_out"]) == (2, 1, 1)
    _, _, counts = aggregate([task("t", "a", "b")], [other])
    assert (counts["pairs_in"], counts["pairs_left_out"]) == (1, 1)


def test_weights_decide_and_votes_stay_counts():
    votes = [ranking("t", "ann", a=1, b=2), ranking("t", "bob", a=3, b=1), ranking("t", "cho", a=2, b=1)]
    ((preference,), _, _) = aggregate([task("t", "a", "b")], votes, weights={"ann": 3.5, "bob": 0.5})
    assert preference.chosen[0]["content"] == "a"
    assert preference.votes == {"for": 1, "tie": 0, "against": 2}
    assert preference.weight == pytest.approx(3.5 / 5)  # cho, who has no weight, has 1
    assert preference.margin == pytest.approx((3.5 * 1 - 0.5 * 2 - 1 * 1) / 5)


def test_a_weighted_tie_counts_half():
    votes = [ranking("t", "ann", a=2, b=1), ranking("t", "bob", a=1, b=1)]
    ((preference,), _, _) = aggregate([task("t", "a", "b")], votes, weights={"ann": 1.5, "bob": 0.5})
    assert preference.weight == pytest.approx((1.5 + 0.25) / 2)
    assert preference.margin == pytest.approx(1.5 / 2)


@pytest.mark.parametrize("weights", [{"ann": 1.2, "bob": 0.8}, {"ann": 0.0, "bob": 0.0}])
def test_a_lead_of_under_half_a_vote_is_a_tie(weights):
    votes = [ranking("t", "ann", a=1, b=2), ranking("t", "bob", a=2, b=1)]
    preferences, (tie,), _ = aggregate([task("t", "a", "b")], votes, weights=weights)
    assert preferences == []
    assert tie.votes == {"for": 1, "tie": 0, "against": 1}


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=6), st.sampled_from([0.1, 1, 7]))
def test_equal_weights_are_no_weights(ranks, weight):
    votes = [ranking("t", str(number), a=a, b=b) for number, (a, b) in enumerate(ranks)]
    plain, plain_ties, _ = aggregate([task("t", "a", "b")], votes)
    weighted, ties, _ = aggregate([task("t", "a", "b")], votes, weights={row.annotator: weight for row in votes})
    assert ties == plain_ties
    assert [dataclasses.replace(p, margin=0, weight=0) for p in weighted] == [
        dataclasses.replace(p, margin=0, weight=0) for p in plain
    ]
    for one, other in zip(weighted, plain, strict=True):
        assert (one.margin, one.weight) == pytest.approx((other.margin, other.weight))


# --- better answers ----------------------------------------------------------------------------


def wrote(text: str, row: Ranking) -> Ranking:
    return dataclasses.replace(row, better_answer=text)


def said(preferences: list[Preference]) -> dict[tuple[str, str], tuple[float, float, dict[str, int]]]:
    return {(p.chosen[0]["content"], p.rejected[0]["content"]): (p.margin, p.weight, p.votes) for p in preferences}


def test_a_better_answer_is_a_demonstration_and_one_step_above_the_best():
    demonstrations, preferences, counts = better_answers(
        [task("t", "a", "b", "c")], [wrote("z", ranking("t", "ann", a=1, b=3, c=1))]
    )
    assert [d.messages for d in demonstrations] == [
        [{"role": "user", "content": "p"}, {"role": "assistant", "content": "z"}]
    ]
    one = {"for": 1, "tie": 0, "against": 0}
    assert said(preferences) == {("z", "a"): (1, 1, one), ("z", "c"): (1, 1, one), ("z", "b"): (3, 1, one)}
    assert {p.group_id for p in preferences} == {"p"}
    assert counts == {"better_answers": 1, "better_answers_copied": 0}


def test_a_better_answer_over_a_pair_adds_the_strength():
    _, preferences, _ = better_answers([task("t", "a", "b")], [wrote("z", strong("t", "ann", 3, a=2, b=1))])
    assert {key: margin for key, (margin, _, _) in said(preferences).items()} == {("z", "b"): 1, ("z", "a"): 4}


def test_two_who_write_the_same_are_two_votes():
    votes = [wrote("z", ranking("t", "ann", a=1, b=2)), wrote(" z", ranking("t", "bob", a=1, b=1))]
    demonstrations, preferences, counts = better_answers([task("t", "a", "b")], votes)
    two = {"for": 2, "tie": 0, "against": 0}
    assert len(demonstrations) == 1
    assert said(preferences) == {("z", "a"): (1, 1, two), ("z", "b"): (1.5, 1, two)}
    assert counts["better_answers"] == 2


def test_a_copied_response_is_a_demonstration_only_and_white_space_is_nothing():
    tasks = [task("t", "a", "b"), task("u", "a", "c")]
    votes = [wrote("c ", ranking("t", "ann", a=1, b=2)), wrote(" \n", ranking("u", "ann", a=1, c=2))]
    demonstrations, preferences, counts = better_answers(tasks, votes)
    assert [d.messages[-1]["content"] for d in demonstrations] == ["c "]  # what was written, to the letter
    assert preferences == []
    assert counts == {"better_answers": 1, "better_answers_copied": 1}


# --- the human ceiling -------------------------------------------------------------------------


def test_human_ceiling_by_hand():
    # 3 for, 1 against: the three see others 2:1 and agree, the one sees 3:0 and does not: 3/4.
    assert human_ceiling([pair("g", win=3, lose=1)]).share == 0.75
    # 2 for, 1 against: the two see 1:1 (half each), the one sees 2:0 (no): 1/3.
    assert human_ceiling([pair("g", win=2, lose=1)]).share == pytest.approx(1 / 3)
    # 2 for, 1 tie: the two see 1 for and 1 tie (agree), the tie counts half: 2.5/3.
    assert human_ceiling([pair("g", win=2, tie=1)]).share == pytest.approx(2.5 / 3)


def test_human_ceiling_counts_each_pair_once_and_skips_single_votes():
    ceiling = human_ceiling([pair("g1", win=2), pair("g2", win=1), pair("g3", win=3, lose=1)])
    assert ceiling.values == [1.0, 0.75]
    assert ceiling.groups == ["g1", "g3"]
    assert (ceiling.share, ceiling.num_pairs, ceiling.num_votes) == (0.875, 2, 6)


def test_human_ceiling_takes_ties_for_two_who_disagree():
    tie = Tie("id", "g", [], [], {"for": 1, "tie": 0, "against": 1})
    assert human_ceiling([pair("g", win=2), tie]).share == 0.5


def test_human_ceiling_is_none_where_nobody_ranked_the_same_pair():
    assert human_ceiling([pair("g", win=1), pair("h", win=1)]) is None
    assert human_ceiling([]) is None


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6))
def test_human_ceiling_against_one_vote_at_a_time(win, tie, lose):
    votes = [1] * win + [0] * tie + [-1] * lose
    agree = []
    for i, vote in enumerate(votes):
        others = votes[:i] + votes[i + 1 :]
        if others.count(1) == others.count(-1) or vote == 0:
            agree.append(0.5)
        else:
            agree.append(float(vote == (1 if others.count(1) > others.count(-1) else -1)))
    ceiling = human_ceiling([pair("g", win=win, tie=tie, lose=lose)])
    if len(votes) < 2:
        assert ceiling is None
    else:
        assert ceiling.share == pytest.approx(sum(agree) / len(agree))


# --- the verb ----------------------------------------------------------------------------------


def files(tmp_path: Path, tasks: list[Task], rankings: list[Ranking]) -> list[str]:
    write_jsonl(tmp_path / "tasks.jsonl", tasks)
    write_jsonl(tmp_path / "rankings.jsonl", rankings)
    inputs = ["--tasks", str(tmp_path / "tasks.jsonl"), "--rankings", str(tmp_path / "rankings.jsonl")]
    return [*inputs, "--output_dir", str(tmp_path / "out")]


def export_run(tmp_path: Path, tasks: list[Task], rankings: list[Ranking], *flags: str):
    return export.run(parse(export.Config, files(tmp_path, tasks, rankings) + list(flags)))


def many(num_prompts: int) -> tuple[list[Task], list[Ranking]]:
    tasks = [task(f"t{i}", "a", "b", "c", prompt=f"p{i}") for i in range(num_prompts)]
    rankings = [
        ranking(f"t{i}", annotator, prompt=f"p{i}", a=1, b=2, c=c)
        for i in range(num_prompts)
        for annotator, c in (("ann", 3), ("bob", 1))
    ]
    return tasks, rankings


def test_run_writes_the_split_by_prompt_and_the_sums(tmp_path):
    run = export_run(tmp_path, *many(60), "--validation_share", "0.3")
    out = tmp_path / "out"
    train = read_jsonl(out / "preferences.train.jsonl", Preference)
    validation = read_jsonl(out / "preferences.validation.jsonl", Preference)
    ties = read_jsonl(out / "ties.jsonl", Tie)
    # a over b twice; a over c and a tie; b and c split.
    assert (len(train) + len(validation), len(ties)) == (120, 60)
    assert not {p.group_id for p in train} & {p.group_id for p in validation}
    assert {p.group_id for p in train} | {p.group_id for p in validation} == {f"p{i}" for i in range(60)}
    assert 6 <= len({p.group_id for p in validation}) <= 30  # 18 expected, over three standard deviations of room
    assert run.finished
    assert run.stage == "export"
    assert run.metrics["num_train"] == len(train)
    assert run.metrics["num_validation"] == len(validation)
    assert run.metrics["num_pairs_in"] == 180 == run.metrics["num_preferences"] + run.metrics["num_ties"]
    # By prompt: 1 (a, b), half (a, c: a win and a tie), 0 (b, c).
    assert run.metrics["human_ceiling"] == pytest.approx(0.5)
    assert run.metrics["human_ceiling_num_pairs"] == 180
    assert run.metrics["human_ceiling_num_votes"] == 360
    assert set(run.data_sha256) == {"tasks", "rankings"}


def test_a_prompt_keeps_its_split_when_labels_are_added(tmp_path):
    tasks, rankings = many(40)
    export_run(tmp_path / "1", tasks[:30], rankings[:60], "--validation_share", "0.3")
    export_run(tmp_path / "2", tasks, rankings, "--validation_share", "0.3")
    before, after = (
        {p.group_id for p in read_jsonl(tmp_path / n / "out/preferences.validation.jsonl", Preference)} for n in "12"
    )
    assert before == after & {f"p{i}" for i in range(30)}


def test_without_validation_there_is_no_validation_file(tmp_path):
    run = export_run(tmp_path, *many(3))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "preferences.train.jsonl",
        "run.json",
        "ties.jsonl",
    ]
    assert run.metrics["num_validation"] == 0


def test_single_votes_have_no_ceiling(tmp_path):
    run = export_run(tmp_path, [task("t", "a", "b")], [ranking("t", "ann", a=1, b=2)])
    assert run.metrics["human_ceiling"] is None


def test_held_out_annotators_are_measured_on_and_not_trained_on(tmp_path):
    tasks, rankings = many(40)
    bob = [row for row in rankings if row.annotator == "bob"]
    flags = ["--validation_share", "0.3", "--annotators_heldout", "bob"]
    run = export_run(tmp_path, tasks, rankings, *flags)
    out = tmp_path / "out"
    train = read_jsonl(out / "preferences.train.jsonl", Preference)
    validation = read_jsonl(out / "preferences.validation.jsonl", Preference)
    heldout = read_jsonl(out / "preferences.heldout.jsonl", Preference)
    aside = read_jsonl(out / "preferences.heldout.validation.jsonl", Preference)
    alone, alone_ties, _ = aggregate(tasks, bob)
    # ann: a over b over c; bob: a and c over b.
    assert {(p.chosen[0]["content"], p.rejected[0]["content"]) for p in train} == {("a", "b"), ("a", "c"), ("b", "c")}
    assert heldout == alone
    assert read_jsonl(out / "ties.heldout.jsonl", Tie) == alone_ties
    assert {p.group_id for p in aside} == {p.group_id for p in validation}
    assert not {p.group_id for p in aside} & {p.group_id for p in train}
    assert run.metrics["exclusions"]["labels"]["annotator_heldout"] == 40
    assert (run.metrics["num_labels_in"], run.metrics["num_labels"]) == (80, 40)
    assert run.metrics["annotators"] == {"ann": {"labels": 40, "votes": 40}, "bob": {"labels": 40, "votes": 0}}


def test_tasks_with_too_few_votes_are_left_out_and_counted(tmp_path):
    tasks = [task("t1", "a", "b"), task("t2", "a", "b", prompt="q")]
    rankings = [ranking("t1", "ann", a=1, b=2), ranking("t1", "bob", a=1, b=2), ranking("t2", "ann", "q", a=1, b=2)]
    run = export_run(tmp_path, tasks, rankings, "--min_votes", "2")
    assert [p.group_id for p in read_jsonl(tmp_path / "out/preferences.train.jsonl", Preference)] == ["p"]
    assert run.metrics["exclusions"]["labels"]["too_few_votes"] == 1
    assert run.metrics["exclusions"]["tasks"]["too_few_votes"] == 1
    assert (run.metrics["num_tasks_in"], run.metrics["num_tasks"], run.metrics["num_pairs_left_out"]) == (2, 1, 1)


def test_an_adjudicated_task_has_votes_enough(tmp_path):
    rankings = [ranking("t", "ann", a=1, b=2), adjudication("t", a=1, b=2)]
    run = export_run(tmp_path, [task("t", "a", "b")], rankings, "--min_votes", "2")
    (preference,) = read_jsonl(tmp_path / "out/preferences.train.jsonl", Preference)
    assert preference.votes == {"for": 1, "tie": 0, "against": 0}
    assert run.metrics["exclusions"]["labels"]["too_few_votes"] == 0


def test_better_answers_keep_to_the_split(tmp_path):
    tasks, rankings = many(40)
    rankings = [wrote("z", row) if row.annotator == "ann" else row for row in rankings]
    run = export_run(tmp_path, tasks, rankings, "--validation_share", "0.3")
    out = tmp_path / "out"
    train = read_jsonl(out / "preferences.train.jsonl", Preference)
    validation = read_jsonl(out / "preferences.validation.jsonl", Preference)
    told = [read_jsonl(out / f"demonstrations{part}.jsonl", Demonstration) for part in ("", ".validation")]
    for rows, demonstrations in ((train, told[0]), (validation, told[1])):
        written = [p for p in rows if p.chosen[0]["content"] == "z"]
        assert len(written) == 3 * len(demonstrations)
        assert {p.prompt[0]["content"] for p in written} == {d.messages[0]["content"] for d in demonstrations}
    assert (run.metrics["num_better_answers"], run.metrics["num_preferences_better"]) == (40, 120)
    assert run.metrics["num_demonstrations"] == len(told[0]) + len(told[1]) == 40


def test_better_answers_alone_are_something_to_learn_from(tmp_path):
    run = export_run(tmp_path, [task("t", "a", "b")], [wrote("z", ranking("t", "ann", a=1, b=1))])
    assert (run.metrics["num_preferences"], run.metrics["num_train"]) == (0, 2)


def test_reliability_weighs_the_votes_and_is_written_down(tmp_path, monkeypatch):
    from labeling_app.quality import reliability

    asked = []

    def weigh(tasks, rankings):
        asked.extend(row.annotator for row in rankings)
        return {"ann": 2.5, "bob": 0.25, "cho": 0.25}

    monkeypatch.setattr(reliability, "annotator_weights", weigh)
    votes = [ranking("t", "ann", a=1, b=2), *(ranking("t", name, a=2, b=1) for name in ("bob", "cho", "dan", "eve"))]
    flags = ["--weights", "reliability", "--annotators_out", "dan", "--annotators_heldout", "eve"]
    run = export_run(tmp_path, [task("t", "a", "b")], votes, *flags)
    (preference,) = read_jsonl(tmp_path / "out/preferences.train.jsonl", Preference)
    assert preference.chosen[0]["content"] == "a"
    assert preference.weight == pytest.approx(2.5 / 3)
    assert run.metrics["annotators"]["ann"] == {"labels": 1, "votes": 1, "weight": 2.5}
    assert run.metrics["annotators"]["eve"] == {"labels": 1, "votes": 0}
    assert asked == ["ann", "bob", "cho"]  # nothing that is not trained on has a say
    (held,) = read_jsonl(tmp_path / "out/preferences.heldout.jsonl", Preference)
    assert held.chosen[0]["content"] == "b"


def test_without_weights_nobody_has_one(tmp_path):
    run = export_run(tmp_path, [task("t", "a", "b")], [ranking("t", "ann", a=1, b=2)])
    assert run.metrics["annotators"] == {"ann": {"labels": 1, "votes": 1}}


def test_the_labels_hash_does_not_hang_on_order_and_does_on_content(tmp_path):
    tasks, rankings = many(5)
    one = export_run(tmp_path / "1", tasks, rankings, "--validation_share", "0.5", "--seed", "3")
    two = export_run(tmp_path / "2", tasks[::-1], rankings[::-1])
    other = export_run(tmp_path / "3", tasks, [*rankings[:-1], ranking("t4", "bob", prompt="p4", a=1, b=2, c=3)])
    assert one.labels_sha256 == two.labels_sha256 != other.labels_sha256
    held = [ranking(f"t{i}", "cho", prompt=f"p{i}", a=1, b=2, c=3) for i in range(5)]
    more = export_run(tmp_path / "4", tasks, [*rankings, *held], "--annotators_heldout", "cho")
    assert more.metrics["num_train"] == two.metrics["num_train"] == 10
    assert more.labels_sha256 != two.labels_sha256
    assert one.id != two.id  # another split
    tie = Tie("i", "g", [], [], {"for": 0, "tie": 1, "against": 0})
    # sha256 of '["ties", {"group_id": "g", "id": "i", "prompt": [], "responses": [], "votes": ...}]', by coreutils
    line = json.dumps(["ties", dataclasses.asdict(tie)], sort_keys=True)
    done = subprocess.run(["sha256sum"], input=line.encode(), capture_output=True, check=True).stdout.decode()
    assert labels_sha256({"ties": [tie]}) == done.split()[0]


def test_settle_counts_what_is_left_out_for_other_reasons():
    rankings = [ranking("t", "ann", a=1, b=2), ranking("t", "bob", a=2, b=1)]
    preferences, _, counts = settle([task("t", "a", "b")], rankings, [None, "annotator_heldout"])
    assert preferences[0].votes == {"for": 1, "tie": 0, "against": 0}
    assert (counts["votes_left_out"], counts["votes_annotator_out"]) == (1, 0)


def test_what_prepare_sent_to_train_is_split_again_with_the_same_seed():
    prompts = [[{"role": "user", "content": str(i)}] for i in range(200)]
    train = [p for p in prompts if split_of(prompt_key(opening(p)), Shares(0.8, 0.1, 0.1), 0) == "train"]
    assert 0.1 < sum(export.is_validation(prompt, 0.2, 0) for prompt in train) / len(train) < 0.3


def test_continuations_of_one_opening_stay_together():
    opened = [{"role": "user", "content": "Hello"}]
    turns = [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "and"}]
    for seed in range(20):
        sides = {export.is_validation(prompt, 0.5, seed) for prompt in (opened, [*opened, *turns])}
        assert len(sides) == 1


def test_the_seed_chooses_the_prompts():
    prompts = [[{"role": "user", "content": str(i)}] for i in range(50)]
    sides = [[export.is_validation(prompt, 0.5, seed) for prompt in prompts] for seed in (0, 0, 1)]
    assert sides[0] == sides[1] != sides[2]


def test_the_config_that_comes_with_rlhf_is_valid():
    assert parse(export.Config, ["--config", "configs/export.yaml"]).export.validation_share == 0.1


def test_the_app_starts_without_torch():
    code = "import labeling_app.export, sys; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- errors ------------------------------------------------------------------------------------

TASK = task("t", "a", "b")
GOOD = ranking("t", "ann", a=1, b=2)


@pytest.mark.parametrize(
    ("tasks", "rankings", "flags", "message"),
    [
        ([TASK], [GOOD, ranking("u", "ann", a=1, b=2)], [], "rankings.jsonl, line 2: ranks task u, which is not among"),
        ([TASK], [ranking("t", "ann", a=1, b=2, z=3)], [], "line 1: ranks response p-z, which task t does not have"),
        ([TASK], [ranking("t", "ann", a=1)], [], "line 1: gives no rank to response p-b of task t; rank every"),
        ([TASK], [GOOD, GOOD], [], "line 2: ann ranks task t again, after "),
        ([TASK], [ranking("t", "ann", a=1, b=1)], [], "gives no preference; of 1 pairs 1 are ties and 0 are left out"),
        ([TASK], [GOOD], ["--annotators_out", "anna"], "annotators_out: anna ranked nothing, did you mean `ann`?"),
        ([TASK], [GOOD], ["--annotators_out", "ann"], "gives no preference; of 1 pairs 0 are ties and 1 are left out"),
        ([TASK], [GOOD], ["--validation_share", "1.5"], "validation_share is 1.5, should be at least 0 and under 1"),
        ([TASK], [GOOD], ["--validation_share", "1e-9"], "leaves none of 1 prompts for validation; choose another"),
        ([TASK], [GOOD], ["--validation_share", "0.999999999"], "leaves none of 1 prompts for training; choose"),
        ([TASK, TASK], [GOOD], [], "task t: is there twice"),
        ([task("t", "a")], [ranking("t", "ann", a=1)], [], "task t: should have two or more responses"),
        ([task("t", "a", "a")], [ranking("t", "ann", a=1)], [], "task t: should have two or more responses"),
        (
            [TASK],
            [GOOD],
            ["--min_votes", "2"],
            "collect more rankings (labels left out: too_few_votes 1)",
        ),
        ([TASK], [GOOD], ["--min_votes", "0"], "min_votes is 0, should be at least 1"),
        ([TASK], [GOOD], ["--weights", "some"], "weights is 'some', should be none or reliability"),
        ([TASK], [GOOD], ["--annotators_heldout", "anna"], "annotators_heldout: anna ranked nothing, did you mean"),
        (
            [TASK],
            [GOOD],
            ["--annotators_out", "ann", "--annotators_heldout", "ann"],
            "annotators_heldout: ann is in annotators_out too; name everybody once",
        ),
        ([TASK], [GOOD], ["--store", "labels.db"], "--store and --tasks and --rankings is given; give either --store"),
        ([TASK], [dataclasses.replace(GOOD, kind="vote")], [], "line 1: kind is 'vote', should be one of task, gold"),
        ([TASK], [dataclasses.replace(GOOD, both_bad=True)], [], "line 1: says that all are bad, yet ranks one above"),
        ([TASK], [dataclasses.replace(GOOD, strength=0)], [], "line 1: strength is 0 and the ranks differ; it should"),
        ([TASK], [dataclasses.replace(GOOD, strength=-1)], [], "line 1: strength is -1 and the ranks differ"),
        (
            [TASK],
            [strong("t", "ann", 2, a=1, b=1)],
            [],
            "line 1: strength is 2 and the ranks are equal; it",
        ),
    ],
)
def test_errors_name_the_line_and_write_nothing(tmp_path, tasks, rankings, flags, message):
    with pytest.raises(UserError) as error:
        export_run(tmp_path, tasks, rankings, *flags)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_tasks_that_contradict_each_other():
    other = dataclasses.replace(TASK, id="u", prompt=Prompt("p", [{"role": "user", "content": "other"}]))
    with pytest.raises(UserError, match="task u: prompt p reads otherwise"):
        aggregate([TASK, other], [GOOD])
    changed = [dataclasses.replace(TASK.responses[0], text="other"), TASK.responses[1]]
    with pytest.raises(UserError, match="task u: response p-a reads otherwise"):
        aggregate([TASK, dataclasses.replace(TASK, id="u", responses=changed)], [GOOD])


def test_line_numbers_count_empty_lines(tmp_path):
    flags = files(tmp_path, [TASK], [GOOD])
    good = json.dumps(dataclasses.asdict(GOOD))
    (tmp_path / "rankings.jsonl").write_text(f"\n{good}\n\n{good}\n")
    with pytest.raises(UserError, match=r"rankings.jsonl, line 4: .* after .*rankings.jsonl, line 2;"):
        export.run(parse(export.Config, flags))


@pytest.mark.parametrize("name", ["tasks", "rankings"])
def test_empty_and_missing_files(tmp_path, name):
    flags = files(tmp_path, [TASK], [GOOD])
    (tmp_path / f"{name}.jsonl").write_text("")
    with pytest.raises(UserError, match=rf"{name}.jsonl: is empty"):
        export.run(parse(export.Config, flags))
    (tmp_path / f"{name}.jsonl").unlink()
    with pytest.raises(UserError, match=rf"{name}.jsonl: no such file"):
        export.run(parse(export.Config, flags))


def test_a_finished_run_is_not_overwritten(tmp_path):
    export_run(tmp_path, [TASK], [GOOD])
    with pytest.raises(UserError, match="holds a finished export run"):
        export_run(tmp_path, [TASK], [GOOD])


@pytest.mark.parametrize(
    ("flags", "given"), [([], "nothing"), (["--tasks", "x"], "--tasks"), (["--rankings", "x"], "--rankings")]
)
def test_labels_come_from_a_store_or_from_two_files(tmp_path, flags, given):
    config = parse(export.Config, [*flags, "--output_dir", str(tmp_path / "out")])
    with pytest.raises(UserError, match=f"export: {given} is given; give either --store labels.db, or both --tasks"):
        export.run(config)
    assert not (tmp_path / "out").exists()
