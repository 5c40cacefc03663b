"""Relevance and coherence: by hand, and a run whose likelihoods are those of transformers alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlhf.compare.page import render_page
from rlhf.compare.quality.likelihoods import Likelihood
from rlhf.compare.quality.measuring import Measured
from rlhf.compare.quality.relevance import Swaps, coherence, other_prompts, relevance, reordered
from rlhf.compare.report import build_report
from rlhf.compare.run import run
from rlhf.compare.sections.quality import QualityConfig
from rlhf.errors import UserError
from rlhf.records import Prompt, read_jsonl, write_jsonl
from tests.compare_cases import GOLD, PLAIN, WORDS, by_torch, compare_config, quality_place, report_of, written


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny policies, one without a chat template, six prompts and a few demonstrations."""
    return quality_place(tmp_path_factory.mktemp("quality"))


def _nats(*values: float, tokens: int = 4) -> list[Likelihood]:
    return [Likelihood(str(at), nll, tokens, "") for at, nll in enumerate(values)]


def test_relevance_by_hand() -> None:
    # (8 - 4) / 4 and (6 - 8) / 4 of one prompt; an empty reply and one cut unlike of the other: nothing known.
    own = [*_nats(4, 8), *_nats(0, tokens=0), *_nats(4)]
    other = [*_nats(8, 6), *_nats(0, tokens=0), *_nats(4, tokens=3)]
    assert relevance(Swaps(own, other, [], [], []), 2) == pytest.approx([(1 - 0.5) / 2, np.nan], nan_ok=True)


def test_coherence_by_hand() -> None:
    # Of two prompts with two replies: the first's own order is likelier, and a tie; the second's have one sentence.
    swaps = Swaps(_nats(1, 1, 1, 1), _nats(1, 1, 1, 1), _nats(3, 5), _nats(4, 5), [0, 1])
    assert coherence(swaps, 2) == pytest.approx([0.75, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes. No.", ("Yes. No.", "No. Yes.")),
        ("Really?\n\n- 3.5 kg", ("Really? - 3.5 kg", "- 3.5 kg Really?")),
        ("\u662f\u3002\u4e0d\uff01", ("\u662f\u3002 \u4e0d\uff01", "\u4e0d\uff01 \u662f\u3002")),
        ("One only", None),
        ("Yes. Yes.", None),
        ("", None),
    ],
)
def test_sentences_in_another_order(text: str, expected: tuple[str, str] | None) -> None:
    assert reordered(text) == expected


def _prompts(*texts: str) -> list[Prompt]:
    return [Prompt(f"p{at}", [{"role": "user", "content": text}]) for at, text in enumerate(texts)]


def test_each_prompt_s_other() -> None:
    assert other_prompts(_prompts("a", "a", "b", "c")) == [2, 2, 3, 0]


def test_relevance_needs_two_prompts(place: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "one.jsonl", _prompts("Hello", "Hello"))
    with pytest.raises(UserError, match="relevance: needs two prompts that differ"):
        run(
            compare_config(place, tmp_path / "out", QualityConfig(relevance=True), prompts=str(tmp_path / "one.jsonl")),
            GOLD,
        )
    assert not (tmp_path / "out").exists()


def test_a_run_says_how_relevant_replies_are(place: Path, tmp_path: Path) -> None:
    settings = QualityConfig(relevance=True, fluency_model=str(place / "base"))
    run(compare_config(place, tmp_path / "out", settings), GOLD)
    rows = [json.loads(line) for line in (tmp_path / "out" / "responses.dpo.jsonl").read_text().splitlines()]
    each = []
    for at, row in enumerate(rows):
        own, tokens = by_torch(place / "base", f"{WORDS[at]}\n\n", row["text"])
        other, _ = by_torch(place / "base", f"{WORDS[(at + 1) % len(WORDS)]}\n\n", row["text"])
        each.append((other - own) / tokens)
    found = report_of(tmp_path / "out")["quality"]["relevance"]
    assert found["model"] == "base" and list(found["policies"]) == ["sft", "dpo"]
    assert found["policies"]["dpo"]["relevance"]["mean"] == pytest.approx(np.mean(each), abs=1e-4)
    assert found["policies"]["dpo"]["relevance_difference"]["n"] == len(WORDS)
    assert "relevance_difference" not in found["policies"]["sft"]
    assert len(read_jsonl(tmp_path / "out" / "relevance.dpo.jsonl", Likelihood)) == len(WORDS)


def test_relevance_in_words() -> None:
    swaps = {
        name: Swaps(_nats(*[4.0] * 20), _nats(*[4 + more] * 20), _nats(*[3.0] * 20), _nats(*[4.0] * 20), [*range(20)])
        for name, more in (("sft", 2.0), ("dpo", 4.0))
    }
    fluency = {name: one.own for name, one in swaps.items()}
    study = written({name: [[PLAIN]] * 20 for name in swaps}, Measured(fluency, swaps=swaps))
    report = build_report(study)
    part = report["quality"]["relevance"]["policies"]
    assert (part["sft"]["relevance"]["mean"], part["dpo"]["relevance_difference"]["mean"]) == (0.5, 0.5)
    assert part["dpo"]["coherence"]["mean"] == 1
    page = render_page(study, report)
    assert "Relevance and coherence under sft, the reference" in page and "Own order preferred" in page
