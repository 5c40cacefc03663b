"""reward against KL in the report: checkpoints, sweeps and best-of-n of tiny policies; words of figures by hand."""

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rlhf.compare import answers as answers_module
from rlhf.compare.frontier.candidates import checkpoints, differing_settings, find_candidates
from rlhf.compare.frontier.measuring import Curve, Measured
from rlhf.compare.frontier.pool import best_of_n
from rlhf.compare.frontier.words import sentences, view, warnings
from rlhf.compare.report import build_report
from rlhf.compare.run import CompareConfig, Config, run
from rlhf.compare.sections.frontier import FrontierConfig
from rlhf.compare.terminal import print_report
from rlhf.errors import UserError
from rlhf.records import Messages, Prompt, Response, Run, read_jsonl, write_jsonl
from tests.frontier_cases import noisy, point
from tests.study_cases import study
from tests.tiny import tiny_policy

NUM_PROMPTS = 6


def vowels(prompts: list[Messages], responses: list[str], **columns: Any) -> list[float]:
    """A gold by hand: how many vowels there are."""
    return [float(sum(letter in "aeiou" for letter in response)) for response in responses]


def shortness(prompts: list[Messages], responses: list[str], **columns: Any) -> list[float]:
    """A reward model by hand: the shorter the better."""
    return [-float(len(response)) for response in responses]


POLICIES_ALONE = FrontierConfig()
BOTH = {"reward_model": shortness, "gold": vowels}


def _run_folder(folder: Path, seed: int, steps: tuple[int, ...] = (), **config: Any) -> str:
    """A finished run with checkpoints of other weights, and one more of its own."""
    tiny_policy(folder, seed=seed)
    record = Run(f"dpo-{folder.name}", "dpo", [], config, {}, "", {}, finished=True)
    (folder / "run.json").write_text(json.dumps(dataclasses.asdict(record)))
    for step in steps:
        tiny_policy(folder / f"checkpoint-{step}", seed=100 * seed + step)
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A start, a dpo run with two checkpoints and the same weights again, a sweep of it, a ppo run, six prompts."""
    folder = tmp_path_factory.mktemp("frontier")
    tiny_policy(folder / "sft", seed=0)
    dpo = Path(_run_folder(folder / "dpo", 1, (2, 10), beta=0.1, bf16=False, output_dir="runs/dpo"))
    _run_folder(folder / "low", 2, beta=0.03, bf16=False, output_dir="runs/low")
    _run_folder(folder / "ppo", 3, (5,))
    last = dpo / "checkpoint-12"
    last.mkdir()
    for file in dpo.iterdir():
        if file.is_file():
            shutil.copy(file, last)
    (last / "trainer_state.json").write_text("{}")
    tiny_policy(dpo / "checkpoint-7", seed=9)  # torn: without trainer_state.json
    (dpo / "checkpoint-best").mkdir()
    prompts = [Prompt(f"p{n}", [{"role": "user", "content": f"Question {n}?"}]) for n in range(NUM_PROMPTS)]
    write_jsonl(folder / "prompts.jsonl", prompts)
    return folder


def _config(place: Path, out: Path, frontier: FrontierConfig = POLICIES_ALONE, **changes: Any) -> Config:
    values = {
        "policies": [str(place / name) for name in ("sft", "dpo", "ppo")],
        "prompts": str(place / "prompts.jsonl"),
        "output_dir": str(out),
        "max_new_tokens": 8,
        "batch_size": 4,
        "num_bootstrap": 200,
    }
    return Config(CompareConfig(**(values | changes)), frontier=frontier)


def _report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


# ---- Which points


def test_checkpoints_are_whole_in_order_and_no_copy_of_the_run(place: Path) -> None:
    assert list(checkpoints(str(place / "dpo"))) == [2, 10]
    assert checkpoints(str(place / "sft")) == {} and checkpoints("owner/model") == {}


def test_sweeps_are_further_runs_of_a_method(place: Path) -> None:
    policies = {name: str(place / name) for name in ("sft", "dpo", "ppo")}
    sweeps = [f"dpo={place / 'low'}", f"all ppo={place / 'ppo'}"]
    found = find_candidates(policies, policies["sft"], sweeps, with_checkpoints=True)
    assert [(one.method, one.key, one.setting) for one in found] == [
        ("dpo", "dpo.checkpoint-2", "step 2"),
        ("dpo", "dpo.checkpoint-10", "step 10"),
        ("dpo", "dpo", "finished"),
        ("all ppo", "ppo.checkpoint-5", "step 5"),
        ("all ppo", "ppo", "finished"),
        ("dpo", "low", "finished"),
    ]
    alone = find_candidates(policies, policies["sft"], [], with_checkpoints=False)
    assert [one.key for one in alone] == ["dpo", "ppo"]


def test_two_runs_of_one_folder_name_are_told_apart(tmp_path: Path) -> None:
    policies = {"sft": "runs/sft", "dpo": "runs/dpo"}
    found = find_candidates(policies, "runs/sft", ["dpo=owner/dpo", f"dpo={tmp_path}/dpo"], with_checkpoints=False)
    assert [one.run for one in found] == ["dpo", "owner-dpo", f"{tmp_path.name}-dpo"]


def test_what_a_sweep_varies(place: Path) -> None:
    paths = {name: str(place / name) for name in ("dpo", "low")}
    assert differing_settings(paths) == {"dpo": {"beta": 0.1}, "low": {"beta": 0.03}}
    assert differing_settings({"dpo": paths["dpo"]}) == {"dpo": {}}
    assert differing_settings(paths | {"sft": str(place / "sft")}) == {"dpo": {}, "low": {}, "sft": {}}  # no run.json


# ---- A whole comparison


def test_checkpoints_sweeps_and_best_of_n(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    frontier = FrontierConfig(checkpoints=True, sweeps=[f"dpo={place / 'low'}"], best_of_n=4, frontier_prompts=5)
    run(_config(place, out, frontier), BOTH)
    part = _report(out)["frontier"]
    assert [(one["method"], one["run"], one["setting"], one["step"]) for one in part["points"]] == [
        ("dpo", "dpo", "step 2", 2),
        ("dpo", "dpo", "step 10", 10),
        ("dpo", "dpo", "finished", None),
        ("dpo", "low", "finished", None),
        ("ppo", "ppo", "step 5", 5),
        ("ppo", "ppo", "finished", None),
        ("best-of-n", "best-of-n", "2", None),
        ("best-of-n", "best-of-n", "4", None),
    ]
    assert [one["settings"] for one in part["points"][:4]] == [{"beta": 0.1}] * 3 + [{"beta": 0.03}]
    assert (part["decided_by"], part["proxy"], part["num_prompts"]) == ("gold", "reward_model", 5)
    assert all(one["gold"]["n"] == 5 and one["kl"]["n"] == 5 for one in part["points"])

    # Each figure is that of the file beside the report.
    for at, file in ((0, "dpo.checkpoint-2"), (2, "dpo"), (3, "low"), (4, "ppo.checkpoint-5")):
        rows = read_jsonl(out / f"responses.{file}.jsonl", Response)[:5]
        told = part["points"][at]
        assert told["kl"]["mean"] == pytest.approx(np.mean([row.sampling["kl"] for row in rows]), abs=1e-5)
        assert told["gold"]["mean"] == pytest.approx(np.mean(vowels([], [row.text for row in rows])), abs=1e-5)
        assert told["score"]["mean"] == pytest.approx(np.mean(shortness([], [row.text for row in rows])), abs=1e-5)
    texts = [row.text for row in read_jsonl(out / "responses.best-of-n.jsonl", Response)]
    tables = [np.reshape(judge([], texts), (5, 4)) for judge in (shortness, vowels)]
    assert part["start"]["num_responses"] == 4
    assert part["start"]["gold"]["mean"] == pytest.approx(tables[1].mean(), abs=1e-5)
    assert part["points"][-1]["gold"]["mean"] == pytest.approx(best_of_n(*tables)[:, 3].mean(), abs=1e-5)
    assert part["points"][-1]["kl"]["mean"] == pytest.approx(np.log(4) - 3 / 4, abs=1e-6)
    assert part["points"][-1]["kl_is_bound"] and not part["points"][0]["kl_is_bound"]

    assert [(pair["a"], pair["b"]) for pair in part["equal_kl"]] == [
        ("dpo", "ppo"),
        ("dpo", "best-of-n"),
        ("ppo", "best-of-n"),
    ]
    assert {one["run"] for one in part["over_optimisation"]} == {"dpo", "low", "ppo", "best-of-n"}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Reward against KL" in page and "dpo, beta 0.1, step 10" in page and "at most 0.64" in page
    assert str(place) not in (out / "report.json").read_text(encoding="utf-8")


def test_a_resumed_run_generates_no_point_twice(place: Path, tmp_path: Path) -> None:
    frontier = FrontierConfig(checkpoints=True, sweeps=[f"dpo={place / 'low'}"], best_of_n=2)
    run(_config(place, tmp_path / "whole", frontier), BOTH)
    out, asked = tmp_path / "cut", []
    real = answers_module.generate

    def counting(policy: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(Path(policy.path).name)
        if asked[-1] == "low" and asked.count("low") == 1:
            raise KeyboardInterrupt
        return real(policy, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers_module, "generate", counting)
        with pytest.raises(KeyboardInterrupt):
            run(_config(place, out, frontier), BOTH)
        before = len(asked)
        run(_config(place, out, frontier, resume=True), BOTH)
    assert sorted(asked[: before - 1]) == ["checkpoint-10", "checkpoint-2", "checkpoint-5", "dpo", "ppo", "sft"]
    assert asked[before:] == ["low", "sft"]  # sft once more: the pool of best-of-n
    assert (out / "report.json").read_bytes() == (tmp_path / "whole" / "report.json").read_bytes()


def test_policies_alone_are_points_and_nothing_is_generated_for_them(place: Path, tmp_path: Path) -> None:
    run(_config(place, tmp_path / "out"), BOTH)
    report = _report(tmp_path / "out")
    part = report["frontier"]
    assert [one["run"] for one in part["points"]] == ["dpo", "ppo"]
    assert part["start"]["kl"]["mean"] == 0 and part["start"]["num_responses"] == 1
    assert part["equal_kl"][0]["reason"].startswith("dpo is measured at one KL only")
    assert part["points"][0]["kl"] == report["policies"]["dpo"]["kl"]
    assert view(report)["reasons"] == [
        "dpo is measured at one KL only; measure more of its checkpoints, or other settings"
    ]
    assert len(list((tmp_path / "out").glob("responses.*"))) == 3


def test_without_a_reference_among_the_policies(place: Path, tmp_path: Path) -> None:
    policies = [str(place / "dpo"), str(place / "ppo")]
    config = _config(place, tmp_path / "alone", policies=policies, reference=str(place / "sft"))
    run(config, BOTH)
    assert _report(tmp_path / "alone")["frontier"]["start"] is None
    assert not (tmp_path / "alone" / "responses.start.jsonl").exists()
    frontier = FrontierConfig(checkpoints=True)
    run(_config(place, tmp_path / "more", frontier, policies=policies, reference=str(place / "sft")), BOTH)
    assert _report(tmp_path / "more")["frontier"]["start"]["kl"]["mean"] == 0
    assert (tmp_path / "more" / "responses.start.jsonl").is_file()


def test_a_reference_alone_has_no_frontier(place: Path, tmp_path: Path) -> None:
    run(_config(place, tmp_path / "out", policies=[str(place / "sft")]), BOTH)
    assert "frontier" not in _report(tmp_path / "out")


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"best_of_n": 1}, {}, "^best_of_n: is 1, must be at least 2; 16 is usual"),
    ({"best_of_n": 4}, {"temperature": 0.0}, "^best_of_n: at temperature 0 all responses are the same"),
    ({"frontier_prompts": 0}, {}, "^frontier_prompts: is 0, must be at least 1"),
    ({"sweeps": ["runs/dpo"]}, {}, "^sweeps: `runs/dpo` names no method; write it as method=path"),
    ({"sweeps": ["=runs/dpo"]}, {}, "^sweeps: `=runs/dpo` names no method"),
    ({"sweeps": ["best-of-n=runs/dpo"]}, {}, "^sweeps: `best-of-n=runs/dpo` names no method"),
    ({"sweeps": ["dpo=nowhere/at/all"]}, {}, "^nowhere/at/all: no such model folder"),
    ({"sweeps": ["dpo={place}/sft"]}, {}, "is the reference, which every run starts from; leave it out"),
    ({}, {"policies": ["{place}/sft", "best-of-n={place}/dpo"]}, "^policies: `best-of-n` is the name of a line"),
    ({}, {"policies": ["{place}/sft", "start={place}/dpo"]}, "^policies: `start` is the name of a line"),
    (
        {"checkpoints": True},
        {"policies": ["{place}/sft", "{place}/dpo", "dpo.checkpoint-2={place}/ppo"]},
        "^policies: `dpo.checkpoint-2` is the name that .*dpo/checkpoint-2 has among the checkpoints",
    ),
]


@pytest.mark.parametrize(("frontier", "changes", "words"), BAD)
def test_bad_settings_are_one_line_and_leave_nothing(
    place: Path, tmp_path: Path, frontier: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    def placed(value: Any) -> Any:
        return [one.replace("{place}", str(place)) for one in value] if isinstance(value, list) else value

    settings = FrontierConfig(**{key: placed(value) for key, value in frontier.items()})
    with pytest.raises(UserError, match=words):
        run(_config(place, tmp_path / "out", settings, **{k: placed(v) for k, v in changes.items()}), BOTH)
    assert not (tmp_path / "out").exists()


# ---- Words


def _told(curves: dict[str, Curve], **changes: Any) -> dict[str, Any]:
    """A report of three policies whose frontier is made of points by hand, on 40 prompts."""
    n = 40
    made = study([[0.0] * n, [1.0] * n, [2.0] * n], [[0.0] * n] * 3)
    values = {"start": point("start", 0, 0, 0, n), "num_start": 1, "decided_by": "gold", "proxy": "reward_model"}
    measured = Measured(curves, left_out=[], num_prompts=n, **(values | changes))
    return build_report(dataclasses.replace(made, measured={"frontier": measured}))


def _curve(run: str, *figures: tuple[float, float, float]) -> Curve:
    points = [point(run, kl, gold, score, 40) for kl, gold, score in figures]
    return Curve(points, [None] * len(points))


def test_equal_kl_in_words() -> None:
    # dpo: 1 at 1 nat, 2 at 3. ppo: 1.5 at 2, 1.5 at 4. From 2 to 3 dpo is 1.5 to 2: 0.25 more on average.
    report = _told({"dpo": _curve("dpo", (1, 1, 1), (3, 2, 2)), "ppo": _curve("ppo", (2, 1.5, 1), (4, 1.5, 2))})
    pair = report["frontier"]["equal_kl"][0]
    assert (pair["low"], pair["high"], pair["verdict"]) == (2, 3, "dpo")
    assert pair["difference"]["mean"] == pytest.approx(0.25) and pair["area"]["mean"] == pytest.approx(0.25)
    assert [one["kl"] for one in pair["at"]] == pytest.approx(np.linspace(2, 3, 21))
    assert sentences(report) == [
        "at equal KL (2.00 to 3.00 nats) dpo has 0.25 more gold than ppo (95% interval 0.25 to 0.25; n = 40 prompts)"
    ]
    out = io.StringIO()
    print_report(report, Console(file=out, width=200))
    assert "\nat equal KL (2.00 to 3.00 nats) dpo has 0.25 more gold than ppo" in out.getvalue()
    # ppo wins on every prompt, 4 nats away from the start where dpo is 2.
    assert warnings(report) == [
        "ppo beats dpo, but it has moved further from sft (4.00 nats, dpo 2.00); at equal KL (2.00 to 3.00 nats) dpo "
        "has more gold."
    ]
    assert (
        warnings(_told({"dpo": _curve("dpo", (1, 1, 1), (3, 1, 2)), "ppo": _curve("ppo", (2, 3, 1), (4, 3, 2))})) == []
    )


def test_equal_kl_undecided_and_without_gold() -> None:
    generator = np.random.default_rng(0)
    curves = {
        run: Curve([noisy(run, kl, generator.normal(0, 1, 40)) for kl in (1.0, 2.0)], [None, None])
        for run in ("dpo", "ppo")
    }
    report = _told(curves, decided_by="reward_model", proxy=None)
    sentence = sentences(report)[0]
    assert sentence.startswith("undecided at equal KL (1.00 to 2.00 nats): ")
    assert "more score by the reward model than" in sentence and sentence.endswith("which holds 0; n = 40 prompts)")
    assert view(report)["measure"] == "score by the reward model"
    assert view(report)["notes"][0].startswith("There is no gold here: the points are judged by the reward model.")


def test_the_over_optimisation_point_in_words() -> None:
    generator = np.random.default_rng(1)
    points = [
        noisy("ppo", kl, generator.normal(gold, 0.1, 40), generator.normal(score, 0.1, 40))
        for kl, gold, score in [(1.0, 0.5, 1.0), (3.0, 1.0, 2.0), (8.0, 0.2, 4.0)]
    ]
    report = _told({"ppo": Curve(points, [10, 20, None])})
    shown = view(report)
    assert len(shown["falls"]) == 1 and shown["no_falls"] == []
    assert shown["falls"][0].startswith(
        "ppo is over-optimised after 3.00 nats (at 3): by 8.00 nats gold has changed by -0.8"
    )
    assert "while the score of the reward model has risen by " in shown["falls"][0]
    assert shown["sentences"] == [] and report["frontier"]["equal_kl"] == []


def test_best_of_n_comes_last_and_its_kl_is_a_bound() -> None:
    bound = Curve([dataclasses.replace(point("best-of-n", kl, kl, kl, 40), kl_is_bound=True, setting=str(n))
                   for n, kl in ((2, 0.19), (4, 0.64))], [None, None])  # fmt: skip
    curves = {
        "dpo": _curve("dpo", (0.3, 1, 1), (3, 2, 2)),
        "ppo": _curve("ppo", (0.2, 1, 1), (4, 2, 2)),
        "best-of-n": bound,
    }
    report = _told(curves)
    shown = view(report)
    assert [("best-of-n" in sentence) for sentence in shown["sentences"]] == [False, True, True]
    assert [row["name"] for row in shown["points"]][:2] == ["sft", "dpo"]
    assert shown["points"][-1]["name"] == "best of 4" and shown["points"][-1]["kl"] == "at most 0.64"
    assert "the one that the reward model scores highest. Its KL is an upper bound" in shown["notes"][0]


def test_a_policy_without_kl_is_named() -> None:
    report = _told({"dpo": _curve("dpo", (1, 1, 1), (3, 2, 2))}) | {}
    report["frontier"]["left_out"] = ["other"]
    assert view(report)["notes"] == ["Not shown, as no KL to sft can be measured: other."]


def test_a_point_is_beaten_or_on_the_frontier() -> None:
    report = _told({"dpo": _curve("dpo", (1, 1, 1), (2, 0.5, 1)), "ppo": _curve("ppo", (3, 2, 1), (4, 2, 2))})
    assert [one["on_frontier"] for one in report["frontier"]["points"]] == [True, False, True, False]
