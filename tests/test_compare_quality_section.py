"""quality in the report: figures of replies by hand, models' likelihoods against torch alone, and the words."""

import dataclasses
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.compare import answers as answers_module
from rlhf.compare import run as run_module
from rlhf.compare.answers import Answers
from rlhf.compare.page import render_page
from rlhf.compare.quality import measuring as measuring_module
from rlhf.compare.quality.harness import Figure, Harness, _figures, check_harness, harness_figures, harness_id
from rlhf.compare.quality.lengths import length_quantiles, quantile_differences
from rlhf.compare.quality.likelihoods import Likelihood, sequence_nlls
from rlhf.compare.quality.measuring import HeldOut, Measured, Tasks
from rlhf.compare.quality.ratios import exponential, less_one, ratio, ratio_difference
from rlhf.compare.quality.tables import span
from rlhf.compare.quality.tasks import Answered, check_answers, how_checked, read_tasks
from rlhf.compare.quality.words import sentences, view, warnings
from rlhf.compare.report import build_report
from rlhf.compare.run import CompareConfig, Config, run
from rlhf.compare.sections.quality import QualityConfig
from rlhf.compare.statistics import Bootstrap
from rlhf.compare.study import Study
from rlhf.compare.terminal import print_report
from rlhf.errors import UserError
from rlhf.generate import Sampling, generate
from rlhf.intervals import Interval
from rlhf.models import load_policy
from rlhf.records import Demonstration, Messages, Prompt, Response, read_jsonl, write_jsonl
from tests.test_compare_report import study
from tests.tiny import tiny_policy

WORDS = ["Hello", "I would like to return the shoes", "What time does the shop close?", "Can you help me?", "Hi", "No"]
TURNS = [
    ("Good morning", "How can I help you?"),
    ("When do you close?", "At six."),
    ("My shoes?", "Which?", "The red ones.", "You can return them within thirty days."),
    ("When do you close?", "At six."),
]
FEW = Bootstrap(num_bootstrap=300)
LOOP = "so it is so it is so it is"
PLAIN = "a b c d e f g h i"


def written(texts: dict[str, list[list[str]]], measured: Measured | None = None) -> Study:
    """A study of policies that wrote these texts: by policy, for each prompt its replies. Tokens are words."""
    num_prompts = len(next(iter(texts.values())))
    made = study([[0.0] * num_prompts] * len(texts), None, list(texts))
    answers = [Answers(name, [_row(name, at, row) for at, row in enumerate(rows)]) for name, rows in texts.items()]
    scores = {"gold": np.array([[[0.0] * len(row) for row in rows] for rows in texts.values()])}
    return dataclasses.replace(made, answers=answers, scores=scores, measured={"quality": measured})


def _row(name: str, at: int, texts: Sequence[str]) -> list[Response]:
    how = [{"num_tokens": len(text.split()), "finished": True, "kl": 0.0} for text in texts]
    return [
        Response(f"{name}{at}.{n}", f"p{at}", text, "run", sampling)
        for n, (text, sampling) in enumerate(zip(texts, how, strict=True))
    ]


def vowels(prompts: list[Messages], responses: list[str], **columns: Any) -> list[float]:
    """A gold by hand: how many vowels there are."""
    return [float(sum(letter in "aeiou" for letter in response)) for response in responses]


def shortness(prompts: list[Messages], responses: list[str], **columns: Any) -> list[float]:
    """A reward model by hand: the shorter the better."""
    return [-float(len(response)) for response in responses]


GOLD = {"gold": vowels}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny policies `sft`, `dpo` and `ppo`, `base` without a chat template, and six prompts."""
    folder = tmp_path_factory.mktemp("quality")
    for seed, name in enumerate(("sft", "dpo", "ppo", "base")):
        tiny_policy(folder / name, seed=seed)
    (folder / "base" / "chat_template.jinja").unlink()
    prompts = [Prompt(f"p{n}", [{"role": "user", "content": text}]) for n, text in enumerate(WORDS)]
    write_jsonl(folder / "prompts.jsonl", prompts)
    demonstrations = [_demonstration(f"d{n}", *turns) for n, turns in enumerate(TURNS)]
    write_jsonl(folder / "heldout.jsonl", demonstrations)
    write_jsonl(folder / "train.jsonl", demonstrations[:1])
    write_jsonl(folder / "open.jsonl", [Demonstration("d0", [{"role": "user", "content": "Hello?"}])])
    return folder


def _demonstration(name: str, *turns: str) -> Demonstration:
    roles = ("user", "assistant") * len(turns)
    return Demonstration(name, [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)])


def _config(place: Path, out: Path, quality: QualityConfig | None = None, **changes: Any) -> Config:
    values = {
        "policies": [str(place / "sft"), str(place / "dpo")],
        "prompts": str(place / "prompts.jsonl"),
        "output_dir": str(out),
        "max_new_tokens": 8,
        "batch_size": 4,
        "num_bootstrap": 200,
    }
    return Config(CompareConfig(**(values | changes)), quality=quality or QualityConfig())


def _part(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))["quality"]


def _by_torch(folder: Path, prompt: str, reply: str) -> tuple[float, int]:
    """Nats and tokens of a text after another, from transformers alone: one sequence, no padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    after = tokenizer(reply, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logps = model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    start = len(before) - 1
    return -sum(logps[start + at, token].item() for at, token in enumerate(after)), len(after)


# ---- Replies


def test_figures_of_replies_by_hand() -> None:
    # LOOP: 9 words, 6 runs of four words of which "so it is so", "it is so it", "is so it is" come twice: 3 / 6.
    # PLAIN: 9 different words, 6 different runs.
    report = build_report(written({"sft": [[PLAIN], [PLAIN]], "dpo": [[LOOP], [PLAIN]]}))
    own, less = report["quality"]["policies"], report["quality"]["differences"]
    assert own["sft"]["repetition"]["mean"] == 0 and own["dpo"]["repetition"]["mean"] == pytest.approx(0.25)
    assert less["dpo"]["repetition"]["mean"] == pytest.approx(0.25) and list(less) == ["dpo"]
    # sft: 9 words of 18; dpo: 3 + 9 of 18. Pairs: 8 of 18; so it, it is, is so, and 8.
    assert own["sft"]["distinct_1"]["mean"] == 0.5 and own["dpo"]["distinct_1"]["mean"] == pytest.approx(12 / 18)
    assert less["dpo"]["distinct_2"]["mean"] == pytest.approx(3 / 18, abs=1e-6)
    assert own["dpo"]["self_bleu"] is None and own["dpo"]["finished"]["mean"] == 1
    assert own["dpo"]["length_quantiles"]["50%"] == {"mean": 9, "low": 0, "high": None, "n": 2}
    assert set(less["dpo"]["length_quantiles"]) == {"5%", "25%", "50%", "75%", "95%"}
    columns = view(report)["parts"][0]["tables"][0]["columns"]
    assert columns == ["Repetition", "distinct-1", "distinct-2", "distinct-3", "Finished"]


def test_self_bleu_only_where_a_prompt_has_several_replies() -> None:
    report = build_report(written({"sft": [[PLAIN, LOOP]] * 2, "dpo": [[PLAIN, PLAIN]] * 2}))
    assert report["quality"]["policies"]["dpo"]["self_bleu"]["mean"] == pytest.approx(1.0)
    assert report["quality"]["differences"]["dpo"]["self_bleu"]["mean"] == pytest.approx(1.0)
    assert "self-BLEU" in view(report)["parts"][0]["tables"][0]["columns"]


def test_a_policy_that_repeats_itself_is_warned_of() -> None:
    made = written({"sft": [[PLAIN]] * 40, "dpo": [[LOOP]] * 40, "ppo": [[PLAIN]] * 40})
    report = build_report(made)
    (warning,) = warnings(report)
    assert warning == (
        "dpo repeats itself more than sft: 50% of its runs of four words it has written before in the same reply, "
        "sft 0% (difference +50.0 to +50.0 points)."
    )
    (sentence,) = sentences(report)
    assert sentence.startswith("beside sft, dpo repeats itself more (+50.0 points, +50.0 to +50.0 points)")
    assert sentence.endswith("; 95% intervals, 40 prompts")
    page = render_page(made, report)
    assert "What the replies are like" in page and warning in page
    out = io.StringIO()
    print_report(report, Console(file=out, width=300))
    assert f"\n{sentence}.\n" in out.getvalue() and f"! {warning}" in out.getvalue()


def test_alike_policies_in_words() -> None:
    report = build_report(written({"sft": [[PLAIN]] * 5, "dpo": [[PLAIN]] * 5}))
    assert sentences(report) == ["no policy is known to differ from sft in repetition or diversity (5 prompts)"]
    assert warnings(report) == []
    alone = build_report(written({"sft": [[PLAIN]]}))
    assert sentences(alone) == [] and alone["quality"]["differences"] == {}
    assert "What the replies are like" in render_page(written({"sft": [[PLAIN]]}), alone)


def test_empty_and_short_replies_have_no_repetition() -> None:
    report = build_report(written({"sft": [["no"], [""]], "dpo": [[""], [""]]}))
    assert report["quality"]["policies"]["sft"]["repetition"] is None
    assert report["quality"]["policies"]["dpo"]["distinct_1"] is None
    assert report["quality"]["differences"]["dpo"]["distinct_1"] is None
    assert warnings(report) == []
    assert render_page(written({"sft": [["no"], [""]], "dpo": [[""], [""]]}), report)


# ---- Lengths


def test_length_quantiles_of_resamples_are_numpys() -> None:
    """Independently: each resample's replies written out, and numpy's quantile of them."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 50, (12, 2)).astype(float)
    clusters = [0, 0, *range(1, 11)]
    found = length_quantiles(lengths, dataclasses.replace(FEW, clusters=clusters))
    again = np.random.default_rng(0)
    draws = []
    for _ in range(300):
        drawn = again.integers(0, 11, 11)
        draws.append(
            np.quantile(np.concatenate([lengths[np.array(clusters) == at].ravel() for at in drawn]), [0.05, 0.5])
        )
    from scipy.stats import norm, t

    tail = norm.cdf(math.sqrt(11 / 10) * t.ppf(0.025, 10))
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    for at, quantile in enumerate((0.05, 0.5)):
        assert found[quantile].mean == np.quantile(lengths, quantile) and found[quantile].n == 11
        assert found[quantile].high == pytest.approx(high[at])
    assert found[0.5].low == pytest.approx(low[1])
    # All eleven may well lie above the 5% quantile, and below the 95% one: 0.95 ** 11 is over 0.025.
    assert found[0.05].low == 0 and found[0.95].high is None and found[0.95].low is not None


def test_quantile_differences_draw_the_same_prompts() -> None:
    lengths = np.array([[1.0], [5.0], [9.0], [20.0]])
    found = quantile_differences(lengths + 3, lengths, FEW)
    assert all((one.mean, one.low, one.high, one.n) == pytest.approx((3, 3, 3, 4)) for one in found.values())
    (one, *_) = quantile_differences(lengths[:1], lengths[:1], FEW).values()
    assert (one.mean, one.low, one.high, one.n) == (0, None, None, 1)
    with pytest.raises(ValueError, match="the same prompts, these answered 4, 3"):
        quantile_differences(lengths, lengths[:3], FEW)


# ---- Ratios


def test_a_ratio_and_its_interval() -> None:
    # 2 + 3 + 7 of 1 + 2 + 3 = 2. Linearised: 2 + (0, -1, 1) / 2; Student's t of three: 4.3027 * 0.5 / sqrt(3).
    one = ratio(np.array([2.0, 3.0, 7.0]), np.array([1.0, 2.0, 3.0]), FEW)
    assert one is not None and one.mean == pytest.approx(2.0) and one.n == 3
    assert (one.low, one.high) == pytest.approx((2 - 1.2421, 2 + 1.2421), abs=1e-4)
    low = ratio(np.array([0.0, 9.0]), np.array([1.0, 1.0]), FEW)
    assert low is not None and low.low == 0
    assert ratio(np.zeros(3), np.zeros(3), FEW) is None


def test_ratios_over_one_are_means() -> None:
    """The studentised bootstrap of rlhf.intervals, which is of means of clusters."""
    values = np.random.default_rng(3).lognormal(0, 1, 40)
    own = dataclasses.replace(FEW, clusters=[at // 2 for at in range(40)])
    expected = own.interval(values, (None, None))
    found = ratio(values, np.ones(40), own)
    assert found is not None and found.n == 20
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    less = ratio_difference((values + 2, np.ones(40)), (values * 0 + 1, np.ones(40)), own)
    assert less is not None and (less.low, less.high) == pytest.approx((found.low + 1, found.high + 1))  # type: ignore[operator]
    alone = ratio(np.array([6.0]), np.array([3.0]), FEW)
    assert alone is not None and (alone.mean, alone.low, alone.high, alone.n) == (2, 0, None, 1)


def test_ends_in_words() -> None:
    shown = "{:.0f}".format
    assert span({"low": 1, "high": None}, shown) == "1 or more" and span({"low": None, "high": 2}, shown) == "2 or less"
    assert (
        span({"low": None, "high": None}, shown) == "interval unknown"
        and span({"low": 1, "high": 2}, shown) == "1 to 2"
    )


def test_a_difference_of_ratios_is_paired() -> None:
    below = np.array([1.0, 2.0, 3.0, 4.0])
    first = (np.array([3.0, 1.0, 4.0, 1.0]) + below, below)
    found = ratio_difference(first, (first[0] - below, below), FEW)
    assert found is not None and (found.mean, found.low, found.high) == pytest.approx((1, 1, 1))
    assert ratio_difference(first, (np.zeros(4), np.zeros(4)), FEW) is None
    with pytest.raises(ValueError, match="the same prompts, these are 4, 3"):
        ratio_difference(first, (below[:3], below[:3]), FEW)


def test_exponentials_of_open_and_of_huge_ends() -> None:
    assert exponential(Interval(0.0, None, None, 1)) == Interval(1.0, 0.0, None, 1)
    found = exponential(Interval(math.log(2), 0.0, 800.0, 2))
    assert found.mean == pytest.approx(2.0) and (found.low, found.high) == (1.0, None)


# ---- Fluency


def test_perplexity_is_that_of_torch_alone(place: Path, tmp_path: Path) -> None:
    run(_config(place, tmp_path / "out", num_responses=2), GOLD)
    part = _part(tmp_path / "out")["fluency"]
    assert part["model"] is None
    nlls = {}
    for name in ("sft", "dpo"):
        rows = read_jsonl(tmp_path / "out" / f"responses.{name}.jsonl", Response)
        told = []
        for row in rows:
            prompt = f"<|im_start|>user\n{WORDS[int(row.prompt_id[1:])]}<|im_end|>\n<|im_start|>assistant\n"
            told.append(_by_torch(place / "sft", prompt, row.text))
        kept = read_jsonl(tmp_path / "out" / f"fluency.{name}.jsonl", Likelihood)
        assert [(row.nll, row.num_tokens) for row in kept] == [(pytest.approx(nll, rel=1e-4), n) for nll, n in told]
        nlls[name] = sum(nll for nll, _ in told) / sum(n for _, n in told)
        own = part["policies"][name]
        assert own["num_tokens"] == sum(n for _, n in told) and own["nll"]["n"] == 6
        assert own["nll"]["mean"] == pytest.approx(nlls[name], rel=1e-4)
        assert own["perplexity"]["mean"] == pytest.approx(math.exp(nlls[name]), rel=1e-4)
    assert part["policies"]["dpo"]["more"]["mean"] == pytest.approx(math.exp(nlls["dpo"] - nlls["sft"]) - 1, abs=1e-4)
    assert part["policies"]["sft"]["more"] is None


def test_fluency_under_a_base_without_turns(place: Path, tmp_path: Path) -> None:
    run(_config(place, tmp_path / "out", QualityConfig(fluency_model=str(place / "base"))), GOLD)
    part = _part(tmp_path / "out")["fluency"]
    assert part["model"] == "base"
    rows = read_jsonl(tmp_path / "out" / "responses.dpo.jsonl", Response)
    kept = read_jsonl(tmp_path / "out" / "fluency.dpo.jsonl", Likelihood)
    for row, one in zip(rows, kept, strict=True):
        nll, n = _by_torch(place / "base", f"{WORDS[int(row.prompt_id[1:])]}\n\n", row.text)
        assert (one.nll, one.num_tokens) == (pytest.approx(nll, rel=1e-4), n)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Fluency: perplexity under base" in page and "More than sft" in page


def test_batches_and_padding_change_nothing(place: Path) -> None:
    policy = load_policy(str(place / "sft"))
    encoded = [([5, 6, 7, 8, 9][:size], [0, 1, 1, 1, 1][:size]) for size in (0, 1, 2, 5, 3)]
    done: list[int] = []
    together = sequence_nlls(policy, encoded, 3, done.append)
    assert together == pytest.approx([sequence_nlls(policy, [one], 1)[0] for one in encoded], rel=1e-5)
    assert together[:2] == [0, 0] and done == [3]


def test_an_overflow_is_named(place: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    tokenizer, model = AutoTokenizer.from_pretrained(place / "sft"), AutoModelForCausalLM.from_pretrained(place / "sft")
    model.model.norm.weight.data.fill_(float("inf"))
    tokenizer.save_pretrained(broken)
    model.save_pretrained(broken)
    words = "broken: its likelihood of replies of sft is not finite, so its numbers overflowed; set --dtype float32$"
    with pytest.raises(UserError, match=words):
        run(_config(place, tmp_path / "out", QualityConfig(fluency_model=str(broken))), GOLD)


def _no_model(*_: Any, **__: Any) -> Any:
    raise AssertionError("a model was loaded")


def _stopped(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def _run_twice(config: Config, judges: dict[str, Any]) -> None:
    """Stopped when all is measured; resumed without any model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "build_report", _stopped)
        with pytest.raises(KeyboardInterrupt):
            run(config, judges)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers_module, "load_policy", _no_model)
        patch.setattr(measuring_module, "load_policy_or_base", _no_model)
        run(config._replace(compare=dataclasses.replace(config.compare, resume=True)), judges)


def test_a_resumed_run_loads_no_model(place: Path, tmp_path: Path) -> None:
    quality = QualityConfig(str(place / "base"), str(place / "heldout.jsonl"))
    _run_twice(_config(place, tmp_path / "out", quality), GOLD)
    run(_config(place, tmp_path / "whole", quality), GOLD)
    assert (tmp_path / "out" / "report.json").read_bytes() == (tmp_path / "whole" / "report.json").read_bytes()


def _likelihoods(*nlls: float) -> list[Likelihood]:
    """Of ten tokens each."""
    return [Likelihood(f"n{at}", 10 * nll, 10, "tokens") for at, nll in enumerate(nlls)]


def test_fluency_in_words() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.01, 40)
    fluency = {"sft": _likelihoods(*[1.0] * 40), "dpo": _likelihoods(*(1.0 + math.log(2) + noise))}
    report = build_report(written({name: [[PLAIN]] * 40 for name in fluency}, Measured(fluency)))
    (sentence,) = sentences(report)
    assert sentence.startswith("beside sft, dpo is less fluent under sft (perplexity +")
    assert 0.95 < report["quality"]["fluency"]["policies"]["dpo"]["more"]["mean"] < 1.05  # twice sft's
    alike = {"sft": _likelihoods(*[1.0] * 40), "dpo": _likelihoods(*(1.0 + noise - noise.mean()))}
    report = build_report(written({name: [[PLAIN]] * 40 for name in alike}, Measured(alike, "base")))
    assert sentences(report) == [
        "no policy is known to differ from sft in repetition, diversity or fluency (40 prompts)"
    ]


# ---- Alignment tax


def test_loss_on_demonstrations_is_that_of_torch_alone(place: Path, tmp_path: Path) -> None:
    quality = QualityConfig(heldout=str(place / "heldout.jsonl"))
    policies = [str(place / "dpo"), str(place / "ppo")]
    run(_config(place, tmp_path / "out", quality, policies=policies, reference=str(place / "sft")), GOLD)
    part = _part(tmp_path / "out")["heldout"]
    assert (part["file"], part["num_demonstrations"]) == ("heldout.jsonl", 4)
    losses = {}
    for name in ("sft", "dpo", "ppo"):
        told = [_assistant_loss(place / name, turns) for turns in TURNS]
        losses[name] = sum(nll for nll, _ in told) / sum(n for _, n in told)
        own = part["reference"] if name == "sft" else part["policies"][name]
        assert own["nll"]["mean"] == pytest.approx(losses[name], rel=1e-4) and own["nll"]["n"] == 3  # one comes twice
        assert own["num_tokens"] == sum(n for _, n in told)
    dpo = part["policies"]["dpo"]
    assert dpo["difference"]["mean"] == pytest.approx(losses["dpo"] - losses["sft"], abs=1e-4)
    assert dpo["tax"]["mean"] == pytest.approx(losses["dpo"] / losses["sft"] - 1, abs=1e-4)
    assert sorted(file.name for file in (tmp_path / "out").glob("heldout.*")) == [
        "heldout.dpo.jsonl",
        "heldout.ppo.jsonl",
        "heldout.start.jsonl",
    ]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Alignment tax" in page and "More than sft" in page


def _assistant_loss(folder: Path, turns: Sequence[str]) -> tuple[float, int]:
    """Nats and tokens of all that the assistant says, its ends of turns included."""
    before, nll, num = "", 0.0, 0
    for user, assistant in zip(turns[::2], turns[1::2], strict=True):
        before += f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
        one, n = _by_torch(folder, before, f"{assistant}<|im_end|>")
        nll, num, before = nll + one, num + n, f"{before}{assistant}<|im_end|>\n"
    return nll, num


def test_each_model_is_loaded_once_for_all_of_quality(place: Path, tmp_path: Path) -> None:
    loaded: list[str] = []
    real = measuring_module.load_policy_or_base

    def counting(path: str, *args: Any) -> Any:
        loaded.append(Path(path).name)
        return real(path, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring_module, "load_policy_or_base", counting)
        run(_config(place, tmp_path / "out", QualityConfig(heldout=str(place / "heldout.jsonl"))), GOLD)
    assert loaded == ["sft", "dpo"]


def _taxed(*losses: float, tokens: str = "tokens") -> dict[str, Any]:
    """A report of sft and dpo with this loss on each demonstration of dpo where sft's is 2 nats a token."""
    before = _likelihoods(*[2.0] * len(losses))
    own = [dataclasses.replace(row, tokens=tokens) for row in _likelihoods(*losses)]
    clusters = [str(at) for at in range(len(losses))]
    heldout = HeldOut("heldout.jsonl", "0", clusters, before, {"sft": before, "dpo": own})
    return build_report(written({"sft": [[PLAIN]] * 5, "dpo": [[PLAIN]] * 5}, Measured(heldout=heldout)))


def test_the_tax_in_words() -> None:
    report = _taxed(*[2.2, 2.3, 2.4] * 10)  # 0.3 of 2: 15%
    row = report["quality"]["heldout"]["policies"]["dpo"]
    assert row["difference"]["mean"] == pytest.approx(0.3) and row["tax"]["mean"] == pytest.approx(0.15)
    assert (row["tax"]["low"], row["tax"]["high"]) == pytest.approx(
        (row["difference"]["low"] / 2, row["difference"]["high"] / 2), abs=1e-5
    )
    assert sentences(report)[1].startswith("loss on 30 held-out demonstrations beside sft: dpo +15.0% (+13.")
    assert sentences(report)[1].endswith("); 95% intervals")
    (warning,) = warnings(report)
    assert warning.startswith("dpo pays an alignment tax: its loss on held-out demonstrations is 15% above that of sft")
    assert warnings(_taxed(*[2.05, 2.06] * 10)) == []  # above 0, and under 5%
    assert warnings(_taxed(*[1.0, 3.4] * 5)) == []  # 10%, and it may be none


def test_other_tokens_have_no_tax() -> None:
    report = _taxed(*[3.0] * 10, tokens="others")
    row = report["quality"]["heldout"]["policies"]["dpo"]
    assert row["tax"] is None and row["difference"] is None and row["nll"]["mean"] == pytest.approx(3.0)
    assert len(sentences(report)) == 1 and warnings(report) == []
    part = next(part for part in view(report)["parts"] if part["title"] == "Alignment tax")
    assert part["sentences"] == [
        "dpo has other tokens than sft, so its nats a token cannot be set beside those of sft."
    ]


def test_a_share_more() -> None:
    assert less_one(Interval(1.5, None, 2.0, 3)) == Interval(0.5, None, 1.0, 3)


# ---- Tasks


@pytest.mark.parametrize(
    ("meta", "kind"),
    [
        ({"answer": 72}, "number"),
        ({"answer": 0.5}, "number"),
        ({"answer": "1,234"}, "number"),
        ({"answer": "$7"}, "number"),
        ({"answer": "-1e6"}, "number"),
        ({"answer": "Half of 144 is 72.\n#### 72"}, "number"),
        ({"answer": "\\frac{3}{4}"}, "number"),
        ({"answer": "72 apples"}, "text"),
        ({"answer": "Paris"}, "text"),
        ({"answer": ["4", "four"]}, "text"),
        ({"answer": True}, "text"),
        ({"answer": 4, "tests": "assert f(2) == 4"}, "code"),
    ],
)
def test_how_an_answer_is_checked(meta: dict[str, Any], kind: str) -> None:
    assert how_checked(Prompt("p", [], meta)) == kind


def test_answers_are_checked_each_in_its_way() -> None:
    metas = [{"answer": 72}, {"answer": "Paris"}, {"tests": "assert f(2) == 4"}, {"answer": 72}, {"tests": ["f(1)"]}]
    tasks = [Prompt(f"t{at}", [{"role": "user", "content": "?"}], meta) for at, meta in enumerate(metas)]
    code = "```python\ndef f(x):\n    return x * x\n```"
    assert check_answers(tasks, ["It is 72.", " paris.", code, "It is 27.", "no code"]) == [1, 1, 1, 0, 0]


def test_tasks_of_code_are_read_where_code_can_be_run(tmp_path: Path) -> None:
    rows = [Prompt("t0", [{"role": "user", "content": "Write f."}], {"tests": "assert f(2) == 4"})]
    write_jsonl(tmp_path / "tasks.jsonl", rows)
    assert read_tasks(str(tmp_path / "tasks.jsonl")) == rows


def _tasks(place: Path) -> str:
    """Six tasks, of which the first is the likeliest reply of `dpo`, and no other is anyone's."""
    policy = load_policy(str(place / "dpo"))
    batches = generate(policy, [[{"role": "user", "content": "Task 0"}]], 1, Sampling(0.0, 8), 1)
    said = next(batches)[1][0].text
    answers = [said, "nobody says this", 1, 2, 3, 4]
    rows = [
        Prompt(f"t{n}", [{"role": "user", "content": f"Task {n}"}], {"answer": answer if n else [answer]})
        for n, answer in enumerate(answers)
    ]
    write_jsonl(place / "tasks.jsonl", rows)
    return str(place / "tasks.jsonl")


def test_accuracy_on_tasks(place: Path, tmp_path: Path) -> None:
    quality = QualityConfig(tasks=_tasks(place))
    _run_twice(_config(place, tmp_path / "out", quality), GOLD)
    part = _part(tmp_path / "out")["tasks"]
    assert (part["file"], part["num_tasks"], part["checks"]) == ("tasks.jsonl", 6, {"text": 2, "number": 4})
    dpo = part["policies"]["dpo"]
    assert dpo["by_check"]["text"]["mean"] == 0.5 and dpo["by_check"]["text"]["n"] == 2
    rows = read_jsonl(tmp_path / "out" / "tasks.dpo.jsonl", Answered)
    assert rows[0].correct == 1.0 and not rows[0].finished
    assert dpo["accuracy"]["mean"] == pytest.approx(np.mean([row.correct for row in rows]), abs=1e-6)
    others = read_jsonl(tmp_path / "out" / "tasks.sft.jsonl", Answered)
    less = np.mean([row.correct for row in rows]) - np.mean([row.correct for row in others])
    assert dpo["difference"]["mean"] == pytest.approx(less, abs=1e-6)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Known answers" in page and "Text, 2" in page and "Number, 4" in page


def test_right_answers_in_words() -> None:
    answered = {
        name: [Answered(f"a{at}", "", True, float(at < num)) for at in range(40)]
        for name, num in (("sft", 10), ("dpo", 30))
    }
    tasks = Tasks("tasks.jsonl", "0", [str(at) for at in range(40)], ["number"] * 40, answered)
    report = build_report(written({"sft": [[PLAIN]] * 5, "dpo": [[PLAIN]] * 5}, Measured(tasks=tasks)))
    assert sentences(report)[1].startswith("right answers to 40 tasks beside sft: dpo +50.0 points (+3")
    assert view(report)["parts"][-1]["tables"][0]["columns"] == ["Right", "Less sft", "Finished"]


# ---- Calibration


def test_calibration_of_the_reward_model_against_gold() -> None:
    """Scores ln 3 apart say 75%: gold prefers dpo in 30 of 40, so that the gap is 0 and Brier 0.75 * 0.25."""
    n, apart = 40, math.log(3)
    gold = [[0.0] * n, [1.0] * 30 + [-1.0] * 10]
    report = build_report(study(gold, [[0.0] * n, [apart] * n]))
    part = report["quality"]["calibration"]
    assert part["num_pairs"] == n and part["ece"]["mean"] == pytest.approx(0, abs=1e-6)
    assert part["brier"]["mean"] == pytest.approx(0.1875, abs=1e-6)
    (one,) = part["bins"]
    assert (one["said"], one["came"]["mean"]) == pytest.approx((0.25, 0.25), abs=1e-6)  # the first is sft
    shown = view(report)["parts"][-1]
    assert shown["title"] == "Can the reward model's score be taken at its word"
    assert shown["sentences"][0].startswith("What its difference in score says and how often gold then prefers the")
    assert shown["tables"][0]["rows"][0]["name"] == "25%, 40 pairs"
    assert build_report(study(gold, None))["quality"]["calibration"] is None


def test_calibration_takes_all_pairs_of_a_prompt_but_the_same_texts() -> None:
    made = written({"sft": [["a", "b"], ["c", "d"]], "dpo": [["a", "e"], ["f", "f"]]})
    score = np.zeros((2, 2, 2))
    gold = np.array([[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]])
    report = build_report(dataclasses.replace(made, scores={"gold": gold, "reward_model": score}))
    part = report["quality"]["calibration"]
    # Prompt 0: a-e tie, b-a and b-e won; prompt 1: four lost. (0.5 + 2) of 7, where 1 / 2 was said.
    assert part["num_pairs"] == 7 and part["ece"]["mean"] == pytest.approx(abs(2.5 / 7 - 0.5), abs=1e-6)
    assert part["ece"]["n"] == 2
    same = written({"sft": [["a"]], "dpo": [["a"]]})
    alike = dataclasses.replace(same, scores={"gold": np.zeros((2, 1, 1)), "reward_model": np.zeros((2, 1, 1))})
    assert build_report(alike)["quality"]["calibration"] is None


# ---- lm-evaluation-harness


def test_a_harness_that_is_not_installed(place: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "lm_eval", None)
        with pytest.raises(UserError, match=r"^lm_eval: .* is not installed; pip install lm-eval, or leave"):
            run(_config(place, tmp_path / "out", QualityConfig(lm_eval=["arc_easy"])), GOLD)
    assert not (tmp_path / "out").exists()


def test_the_harness_contract(place: Path, tmp_path: Path) -> None:
    """A task of ours, from disk: its accuracy is that of likelihoods by torch alone."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install lm-eval")
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    rows = [{"question": f"Question {n}:", "choices": [" yes", " no"], "answer": n % 2} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "ours.yaml").write_text(
        "task: ours\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        "doc_to_text: '{{question}}'\ndoc_to_choice: choices\ndoc_to_target: answer\ntarget_delimiter: ''\n"
        "metric_list: [{metric: acc}]\n"
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    told = harness_figures(load_policy(str(place / "sft")), "lme-0", ["ours"], 4, manager)
    figure = next(one for one in told.figures if one.metric == "acc")
    right = []
    for row in rows:
        nlls = [_by_torch(place / "sft", row["question"], choice)[0] for choice in row["choices"]]
        right.append(float(np.argmin(nlls) == row["answer"]))
    assert (figure.task, figure.n, figure.value) == ("ours", 8, pytest.approx(np.mean(right)))
    assert figure.stderr == pytest.approx(np.std(right, ddof=1) / math.sqrt(8))
    with pytest.raises(
        UserError, match=r"^lm_eval: the harness has no task `arc_eazy` \(.* lists them\), did you mean"
    ):
        check_harness(["arc_eazy"])
    assert harness_id("run-1", ["ours"]) == harness_id("run-1", ["ours"]) != harness_id("run-2", ["ours"])


def test_figures_of_the_harness_in_the_report(tmp_path: Path) -> None:
    found = {
        "results": {"ours": {"alias": "ours", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,strict": 0.25}},
        "n-samples": {"ours": {"original": 20, "effective": 10}},
    }
    sft = _figures(found)
    assert sft == [Figure("ours", "acc", 0.5, 0.1, 10), Figure("ours", "f1, strict", 0.25, None, 10)]
    dpo = [dataclasses.replace(sft[0], value=0.75), sft[1]]
    harness = {"sft": Harness("a", "0.4", sft), "dpo": Harness("b", "0.4", dpo)}
    write_jsonl(tmp_path / "lm_eval.sft.jsonl", [harness["sft"]])
    assert read_jsonl(tmp_path / "lm_eval.sft.jsonl", Harness) == [harness["sft"]]  # as a resumed run has it
    made = written({"sft": [[PLAIN]] * 5, "dpo": [[PLAIN]] * 5}, Measured(harness=harness))
    report = build_report(made)
    acc, f1 = report["quality"]["lm_eval"]["policies"]["dpo"]
    assert acc["figure"] == {"mean": 0.75, "low": 0.554004, "high": 0.945996, "n": 10}  # 1.959964 errors
    assert acc["difference"]["low"] == pytest.approx(0.25 - 1.959964 * math.sqrt(2) * 0.1, abs=1e-6)
    assert f1["figure"]["low"] is None and f1["difference"]["high"] is None
    assert report["quality"]["lm_eval"]["policies"]["sft"][0]["difference"] is None
    page = render_page(made, report)
    assert "lm-evaluation-harness" in page and "ours, acc" in page and "interval unknown" in page


# ---- Settings


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"fluency_model": "nowhere/at/all"}, {}, "^nowhere/at/all: no such model folder"),
    ({"heldout": "nowhere.jsonl"}, {}, "^nowhere.jsonl: no such file"),
    ({"tasks": "{place}/prompts.jsonl"}, {}, "prompts.jsonl: task `p0` has no known answer; give its meta an `answer`"),
    ({"tasks": "{place}/train.jsonl"}, {}, "train.jsonl: task `d0` does not wait for a reply; its last message must"),
    (
        {"heldout": "{place}/open.jsonl"},
        {},
        "open.jsonl: demonstration `d0` does not end with a reply; its last message",
    ),
    (
        {"heldout": "{place}/heldout.jsonl"},
        {"train_data": ["{place}/train.jsonl"]},
        "^a prompt in two splits: 'Good morning' is in .*train.jsonl",
    ),
]


@pytest.mark.parametrize(("quality", "changes", "words"), BAD)
def test_bad_settings_are_one_line_and_leave_nothing(
    place: Path, tmp_path: Path, quality: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    def placed(value: Any) -> Any:
        if isinstance(value, list):
            return [placed(one) for one in value]
        return value.replace("{place}", str(place)) if isinstance(value, str) else value

    settings = QualityConfig(**{key: placed(value) for key, value in quality.items()})
    with pytest.raises(UserError, match=words):
        run(_config(place, tmp_path / "out", settings, **{key: placed(one) for key, one in changes.items()}), GOLD)
    assert not (tmp_path / "out").exists()
