"""quality in the report: figures of replies by hand, their words, and bad settings."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlhf.compare.page import render_page
from rlhf.compare.quality.words import sentences, view, warnings
from rlhf.compare.report import build_report
from rlhf.compare.run import run
from rlhf.compare.sections.quality import QualityConfig
from rlhf.compare.terminal import print_report
from rlhf.errors import UserError
from tests.compare_cases import GOLD, LOOP, PLAIN, compare_config, quality_place, written


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny policies, one without a chat template, six prompts and a few demonstrations."""
    return quality_place(tmp_path_factory.mktemp("quality"))


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
        run(
            compare_config(place, tmp_path / "out", settings, **{key: placed(one) for key, one in changes.items()}),
            GOLD,
        )
    assert not (tmp_path / "out").exists()
