"""Fluency and the alignment tax: likelihoods against torch alone, and the words."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.compare.quality import measuring as measuring_module
from rlhf.compare.quality.likelihoods import Likelihood, sequence_nlls
from rlhf.compare.quality.measuring import HeldOut, Measured
from rlhf.compare.quality.words import sentences, view, warnings
from rlhf.compare.report import build_report
from rlhf.compare.run import run
from rlhf.compare.sections.quality import QualityConfig
from rlhf.errors import UserError
from rlhf.models import load_policy
from rlhf.records import Response, read_jsonl
from tests.compare_cases import (
    GOLD,
    PLAIN,
    TURNS,
    WORDS,
    by_torch,
    compare_config,
    likelihoods_of,
    quality_place,
    report_of,
    run_twice,
    written,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny policies, one without a chat template, six prompts and a few demonstrations."""
    return quality_place(tmp_path_factory.mktemp("quality"))


def test_perplexity_is_that_of_torch_alone(place: Path, tmp_path: Path) -> None:
    run(compare_config(place, tmp_path / "out", num_responses=2), GOLD)
    part = report_of(tmp_path / "out")["quality"]["fluency"]
    assert part["model"] is None
    nlls = {}
    for name in ("sft", "dpo"):
        rows = read_jsonl(tmp_path / "out" / f"responses.{name}.jsonl", Response)
        told = []
        for row in rows:
            prompt = f"<|im_start|>user\n{WORDS[int(row.prompt_id[1:])]}<|im_end|>\n<|im_start|>assistant\n"
            told.append(by_torch(place / "sft", prompt, row.text))
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
    run(compare_config(place, tmp_path / "out", QualityConfig(fluency_model=str(place / "base"))), GOLD)
    part = report_of(tmp_path / "out")["quality"]["fluency"]
    assert part["model"] == "base"
    rows = read_jsonl(tmp_path / "out" / "responses.dpo.jsonl", Response)
    kept = read_jsonl(tmp_path / "out" / "fluency.dpo.jsonl", Likelihood)
    for row, one in zip(rows, kept, strict=True):
        nll, n = by_torch(place / "base", f"{WORDS[int(row.prompt_id[1:])]}\n\n", row.text)
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
        run(compare_config(place, tmp_path / "out", QualityConfig(fluency_model=str(broken))), GOLD)


def test_a_resumed_run_loads_no_model(place: Path, tmp_path: Path) -> None:
    quality = QualityConfig(str(place / "base"), str(place / "heldout.jsonl"))
    run_twice(compare_config(place, tmp_path / "out", quality), GOLD)
    run(compare_config(place, tmp_path / "whole", quality), GOLD)
    assert (tmp_path / "out" / "report.json").read_bytes() == (tmp_path / "whole" / "report.json").read_bytes()


def test_fluency_in_words() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.01, 40)
    fluency = {"sft": likelihoods_of(*[1.0] * 40), "dpo": likelihoods_of(*(1.0 + math.log(2) + noise))}
    report = build_report(written({name: [[PLAIN]] * 40 for name in fluency}, Measured(fluency)))
    (sentence,) = sentences(report)
    assert sentence.startswith("beside sft, dpo is less fluent under sft (perplexity +")
    assert 0.95 < report["quality"]["fluency"]["policies"]["dpo"]["more"]["mean"] < 1.05  # twice sft's
    alike = {"sft": likelihoods_of(*[1.0] * 40), "dpo": likelihoods_of(*(1.0 + noise - noise.mean()))}
    report = build_report(written({name: [[PLAIN]] * 40 for name in alike}, Measured(alike, "base")))
    assert sentences(report) == [
        "no policy is known to differ from sft in repetition, diversity or fluency (40 prompts)"
    ]


def test_loss_on_demonstrations_is_that_of_torch_alone(place: Path, tmp_path: Path) -> None:
    quality = QualityConfig(heldout=str(place / "heldout.jsonl"))
    policies = [str(place / "dpo"), str(place / "ppo")]
    run(compare_config(place, tmp_path / "out", quality, policies=policies, reference=str(place / "sft")), GOLD)
    part = report_of(tmp_path / "out")["quality"]["heldout"]
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
        one, n = by_torch(folder, before, f"{assistant}<|im_end|>")
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
        run(compare_config(place, tmp_path / "out", QualityConfig(heldout=str(place / "heldout.jsonl"))), GOLD)
    assert loaded == ["sft", "dpo"]


def _taxed(*losses: float, tokens: str = "tokens") -> dict[str, Any]:
    """A report of sft and dpo with this loss on each demonstration of dpo where sft's is 2 nats a token."""
    before = likelihoods_of(*[2.0] * len(losses))
    own = [dataclasses.replace(row, tokens=tokens) for row in likelihoods_of(*losses)]
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
