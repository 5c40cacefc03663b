"""safety by classifiers of texts: small ones made here, against transformers alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf.compare.run import run
from rlhf.compare.safety import measuring
from rlhf.compare.safety.classifier import Classifier, label_scorer
from rlhf.compare.safety.measuring import (
    TextValue,
)
from rlhf.compare.sections.safety import SafetyConfig
from rlhf.errors import UserError
from rlhf.records import Response, read_jsonl
from tests.compare_cases import BOTH, compare_config, report_of, safety_place, small_classifier, unfinish, vowels


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three policies, six prompts to compare them on, four to refuse or not."""
    return safety_place(tmp_path_factory.mktemp("safety"))


def test_classifiers_score_and_are_loaded_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = small_classifier(tmp_path / "mood"), tmp_path / "out"
    names: list[str] = []
    real = measuring.label_scorer

    def noting(classifier: Classifier, *args: Any) -> Any:
        names.append(classifier.label)
        return real(classifier, *args)

    monkeypatch.setattr(measuring, "label_scorer", noting)
    safety = SafetyConfig(
        bold=str(place / "bold.json"),
        toxicity_classifier=str(folder),
        toxicity_label="negative",
        sentiment_classifier=str(folder),
        regard_classifier=str(folder),
        regard_label="negative",
    )
    run(compare_config(place, out, safety), BOTH)
    assert names == ["negative", "positive", "negative"]
    part = report_of(out)["safety"]
    assert part["toxicity"]["by"] == "mood (label negative)"
    sentiment, regard = part["groups"]
    assert (sentiment["measure"], sentiment["by"]) == ("sentiment", "mood (label positive)")
    assert (regard["measure"], regard["by"]) == ("regard", "mood (label negative)")
    for name in ("sft", "dpo"):
        negative = [
            _probability_by_hand(folder, row.text)[0] for row in read_jsonl(out / f"responses.{name}.jsonl", Response)
        ]
        kept = [row.value for row in read_jsonl(out / "safety" / f"toxicity.{name}.jsonl", TextValue)]
        assert kept == pytest.approx(negative, abs=1e-5)
        flagged = part["toxicity"]["policies"][name]["flagged"]
        assert flagged["mean"] == pytest.approx(np.mean([one >= 0.5 for one in negative]), abs=1e-6)
        rows = read_jsonl(out / "safety" / f"bold.{name}.jsonl", Response)
        actors = [row.text for row in rows if row.prompt_id.startswith("American_actors-")]
        probabilities = [_probability_by_hand(folder, text) for text in actors]
        for label, table in enumerate((regard, sentiment)):
            means = table["policies"][name]["means"]
            expected = np.mean([one[label] for one in probabilities])
            assert means["American_actors"]["mean"] == pytest.approx(expected, abs=1e-5)
    first = (out / "report.json").read_bytes()
    unfinish(out)
    run(compare_config(place, out, safety, resume=True), BOTH)
    assert len(names) == 3 and (out / "report.json").read_bytes() == first


def test_regard_stands_beside_the_reward_and_alone(place: Path, tmp_path: Path) -> None:
    safety = SafetyConfig(bold=str(place / "bold.json"), regard_classifier=str(small_classifier(tmp_path / "regard")))
    run(compare_config(place, tmp_path / "both", safety, reward_model="runs/reward"), BOTH)
    assert [one["measure"] for one in report_of(tmp_path / "both")["safety"]["groups"]] == ["reward", "regard"]
    run(compare_config(place, tmp_path / "alone", safety), {"gold": vowels})
    (part,) = report_of(tmp_path / "alone")["safety"]["groups"]
    assert part["measure"] == "regard" and part["by"] == "regard (label positive)"
    told = (tmp_path / "alone" / "report.md").read_text(encoding="utf-8")
    assert "gap between the groups of bold.json in regard sft 0." in told


def _probability_by_hand(folder: Path, text: str) -> list[float]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        ids = torch.tensor([tokenizer.encode(text)[:40]])
        logits = AutoModelForSequenceClassification.from_pretrained(folder)(input_ids=ids).logits[0].double()
    return (logits.exp() / logits.exp().sum()).tolist()


def test_labels_that_do_not_exclude_one_another(tmp_path: Path) -> None:
    folder = small_classifier(tmp_path / "tags", problem_type="multi_label_classification")
    scores = [
        label_scorer(Classifier(str(folder), label))([], ["Hello there"])[0] for label in ("negative", "positive")
    ]
    odds = [np.log(one / (1 - one)) for one in scores]
    softmax = _probability_by_hand(folder, "Hello there")
    assert np.exp(odds[0] - odds[1]) == pytest.approx(softmax[0] / softmax[1], rel=1e-3)  # both from the same logits
    assert sum(scores) != pytest.approx(1)


def test_a_long_reply_loses_its_end_also_where_positions_begin_late(tmp_path: Path) -> None:
    for kind in ("llama", "roberta"):
        folder = small_classifier(tmp_path / kind, kind)
        scorer = label_scorer(Classifier(str(folder), "positive"))
        whole, more = scorer([], ["x" * 200, "x" * 300])
        assert whole == pytest.approx(more)


@pytest.mark.parametrize("kind", ["llama", "roberta"])
def test_an_empty_reply_has_a_probability(tmp_path: Path, kind: str) -> None:
    scorer = label_scorer(Classifier(str(small_classifier(tmp_path / kind, kind)), "positive"))
    (alone,), (first, _) = scorer([], [""]), scorer([], ["", "Hello there"])
    assert 0 < alone < 1 and first == pytest.approx(alone, abs=1e-5)


def test_bad_classifiers_are_one_line(place: Path, tmp_path: Path) -> None:
    mood = small_classifier(tmp_path / "mood")
    broken = small_classifier(tmp_path / "broken")
    (broken / "config.json").write_text("{", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    bold = str(place / "bold.json")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"toxicity_classifier": "owner/model"}, "^toxicity_classifier: `owner/model` is no folder; give that of a"),
        ({"toxicity_classifier": str(tmp_path / "empty")}, r"empty: no model in this folder \(no config\.json\)"),
        ({"toxicity_classifier": str(broken)}, "broken: its classifier cannot be loaded"),
        (
            {"toxicity_classifier": str(place / "sft")},
            "^toxicity_classifier: .*sft holds LlamaForCausalLM; it must be a model for sequence classification",
        ),
        (
            {"toxicity_classifier": str(mood)},
            "^toxicity_label: `toxic` is no label of .*mood; it has NEGATIVE, POSITIVE",
        ),
        (
            {"sentiment_classifier": str(mood), "sentiment_label": "joy", "bold": bold},
            "^sentiment_label: `joy` is no label of .*mood; it has NEGATIVE, POSITIVE",
        ),
        (
            {"sentiment_classifier": str(mood)},
            "^sentiment_classifier: scores replies to BOLD's prompts; give --bold FILE",
        ),
        ({"regard_classifier": str(mood)}, "^regard_classifier: scores replies to BOLD's prompts; give --bold FILE"),
        (
            {"regard_classifier": str(mood), "regard_label": "respect", "bold": bold},
            "^regard_label: `respect` is no label of .*mood; it has NEGATIVE, POSITIVE",
        ),
        ({"regard_classifier": "owner/model", "bold": bold}, "^regard_classifier: `owner/model` is no folder"),
    ]
    for settings, words in cases:
        with pytest.raises(UserError, match=words):
            run(compare_config(place, tmp_path / "out", SafetyConfig(**settings)), BOTH)
        assert not (tmp_path / "out").exists()


def test_a_classifier_without_weights(tmp_path: Path) -> None:
    folder = small_classifier(tmp_path / "mood")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"mood: its classifier cannot be loaded .*; give another folder"):
        label_scorer(Classifier(str(folder), "positive"))
