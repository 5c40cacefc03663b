"""quality in the report: figures of replies by hand, models' likelihoods against torch alone, and the words."""

import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rlhf.compare.answers import Answers
from rlhf.compare.page import render_page
from rlhf.compare.quality.lengths import length_quantiles, quantile_differences
from rlhf.compare.quality.words import sentences, view, warnings
from rlhf.compare.report import build_report
from rlhf.compare.statistics import Bootstrap
from rlhf.compare.study import Study
from rlhf.compare.terminal import print_report
from rlhf.records import Response
from tests.test_compare_report import study

FEW = Bootstrap(num_bootstrap=300)
LOOP = "so it is so it is so it is"
PLAIN = "a b c d e f g h i"


def written(texts: dict[str, list[list[str]]], **measured: Any) -> Study:
    """A study of policies that wrote these texts: by policy, for each prompt its replies. Tokens are words."""
    num_prompts = len(next(iter(texts.values())))
    made = study([[0.0] * num_prompts] * len(texts), None, list(texts))
    answers = [Answers(name, [_row(name, at, row) for at, row in enumerate(rows)]) for name, rows in texts.items()]
    scores = {"gold": np.array([[[0.0] * len(row) for row in rows] for rows in texts.values()])}
    return dataclasses.replace(made, answers=answers, scores=scores, measured={"quality": measured} if measured else {})


def _row(name: str, at: int, texts: Sequence[str]) -> list[Response]:
    how = [{"num_tokens": len(text.split()), "finished": True, "kl": 0.0} for text in texts]
    return [
        Response(f"{name}{at}.{n}", f"p{at}", text, "run", sampling)
        for n, (text, sampling) in enumerate(zip(texts, how, strict=True))
    ]


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
    assert own["dpo"]["length_quantiles"]["50%"] == {"mean": 9, "low": 9, "high": 9, "n": 2}
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
    assert sentences(report) == ["no policy is known to repeat itself more than sft, or less (5 prompts)"]
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
        assert (found[quantile].low, found[quantile].high) == pytest.approx((low[at], high[at]))


def test_quantile_differences_draw_the_same_prompts() -> None:
    lengths = np.array([[1.0], [5.0], [9.0], [20.0]])
    found = quantile_differences(lengths + 3, lengths, FEW)
    assert all((one.mean, one.low, one.high, one.n) == pytest.approx((3, 3, 3, 4)) for one in found.values())
    (one, *_) = quantile_differences(lengths[:1], lengths[:1], FEW).values()
    assert (one.mean, one.low, one.high, one.n) == (0, None, None, 1)
    with pytest.raises(ValueError, match="the same prompts, these answered 4, 3"):
        quantile_differences(lengths, lengths[:3], FEW)
