"""The words and tables of what the replies are like."""

from collections.abc import Callable, Sequence
from typing import Any

from rlhf.compare.quality.tables import (
    Numbers,
    as_difference,
    as_measured,
    as_more_tokens,
    as_tokens,
    decimals,
    points,
    signed_percent,
    span,
    table,
)
from rlhf.compare.sentences import number, percent

_MEASURES = {
    "repetition": "Repetition",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "self_bleu": "self-BLEU",
    "finished": "Finished",
}
_MUCH_TAX = 0.05  # of the reference's loss: worth a warning


def view(report: dict[str, Any]) -> dict[str, Any]:
    """The parts of the section: each a heading, sentences, what they mean, and tables of cells `(mean, span)`."""
    return {"sentences": [_sentence(one) for one in sentences(report)], "parts": _parts(report)}


def _parts(report: dict[str, Any]) -> list[dict[str, Any]]:
    parts = [_replies_part(report)]
    if report["quality"]["fluency"] is not None:
        parts.append(_fluency_part(report))
    if report["quality"]["relevance"] is not None:
        parts.append(_relevance_part(report))
    if report["quality"]["heldout"] is not None:
        parts.append(_tax_part(report))
    if report["quality"]["tasks"] is not None:
        parts.append(_tasks_part(report))
    if report["quality"]["lm_eval"] is not None:
        parts.append(_harness_part(report))
    if report["quality"]["calibration"] is not None:
        parts.append(_calibration_part(report))
    return parts


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


# ---- Replies


def _replies_part(report: dict[str, Any]) -> dict[str, Any]:
    part, baseline = report["quality"], report["settings"]["baseline"]
    quantiles = {key: f"{key} are at most" for key in next(iter(part["policies"].values()))["length_quantiles"]}
    tables = [table("", _MEASURES, part["policies"], as_measured)]
    lengths = {name: row["length_quantiles"] for name, row in part["policies"].items()}
    if part["differences"]:
        tables.append(table(f"Less {baseline}, on the same prompts", _MEASURES, part["differences"], as_difference))
    tables.append(table("", quantiles, lengths, as_tokens, folded=True))
    if part["differences"]:
        longer = {name: row["length_quantiles"] for name, row in part["differences"].items()}
        tables.append(table(f"Less {baseline}", quantiles, longer, as_more_tokens, folded=True))
    return {
        "title": "The texts",
        "sentences": [],
        "about": [
            "Repetition: the share of a reply's runs of four words that it has had before. distinct-n: different runs "
            "of n words in all replies, over the words in them; longer replies have less. self-BLEU: how alike a "
            "policy's replies to one prompt are, from 0 to 1. All are of words, whatever a policy's tokens are."
        ],
        "tables": tables,
        "folded": "Length in tokens, of short and of long replies",
    }


# ---- Fluency


def _fluency_part(report: dict[str, Any]) -> dict[str, Any]:
    part, baseline = report["quality"]["fluency"], report["settings"]["baseline"]
    columns = {"perplexity": "Perplexity", "nll": "Nats a token", "more": f"More than {baseline}"}
    return {
        "title": f"Fluency: perplexity under {_judge_of_fluency(report)}",
        "sentences": [],
        "about": [
            "How surprising the replies' tokens are to that model after their prompt, the end of the turn left out. "
            "Lower is more fluent to it; so is text that repeats itself, and what a policy has learned that the model "
            "has not surprises it too."
        ],
        "tables": [table("", columns, part["policies"], _as_fluency)],
    }


def _relevance_part(report: dict[str, Any]) -> dict[str, Any]:
    part, baseline = report["quality"]["relevance"], report["settings"]["baseline"]
    columns = {"relevance": "Relevance, nats a token", "relevance_difference": f"More than {baseline}"}
    columns |= {"coherence": "Own order preferred", "coherence_difference": f"Less {baseline}"}
    return {
        "title": f"Relevance and coherence under {_judge_of_fluency(report)}",
        "sentences": [],
        "about": [
            "Relevance: how much likelier a reply's token is after its own prompt than after another prompt of the "
            "set; 0 is a reply that would fit any prompt. Own order preferred: how often a reply is likelier than its "
            "own sentences in another order, 50% by chance; of replies with two sentences or more. Neither sees "
            "whether a reply is true, helpful or complete; one that repeats its prompt is relevant."
        ],
        "tables": [table("", columns, part["policies"], _as_relevance)],
    }


def _as_relevance(key: str) -> Callable[[float], str]:
    return {"coherence": percent, "coherence_difference": points, "relevance_difference": decimals}.get(
        key, "{:.3f}".format
    )


def _as_fluency(key: str) -> Callable[[float], str]:
    return {"nll": "{:.3f}".format, "more": signed_percent}.get(key, number)


def _judge_of_fluency(report: dict[str, Any]) -> str:
    model, reference = report["quality"]["fluency"]["model"], report["settings"]["reference"]
    return f"{reference}, the reference" if model is None else model


# ---- Alignment tax


def _tax_part(report: dict[str, Any]) -> dict[str, Any]:
    part, reference = report["quality"]["heldout"], report["settings"]["reference"]
    columns = {"nll": "Nats a token", "difference": f"More than {reference}", "tax": "Tax"}
    rows = part["policies"] if reference in part["policies"] else {reference: part["reference"]} | part["policies"]
    return {
        "title": "Alignment tax",
        "sentences": [
            f"{name} has other tokens than {reference}, so its nats a token cannot be set beside those of {reference}."
            for name, row in part["policies"].items()
            if row["difference"] is None and row["nll"] is not None
        ],
        "about": [
            f"The loss on {part['num_demonstrations']:,} demonstrations held out from SFT ({part['file']}): the "
            f"negative log-likelihood of what the assistant says in them. Tax: how much more it is than that of "
            f"{reference}. n is the number of different demonstrations."
        ],
        "tables": [table("", columns, rows, _as_tax)],
    }


def _as_tax(key: str) -> Callable[[float], str]:
    return signed_percent if key == "tax" else decimals if key == "difference" else "{:.3f}".format


# ---- Known answers


def _tasks_part(report: dict[str, Any]) -> dict[str, Any]:
    part, baseline = report["quality"]["tasks"], report["settings"]["baseline"]
    columns = {"accuracy": "Right", "difference": f"Less {baseline}"}
    if len(part["checks"]) > 1:
        columns |= {kind: f"{kind.capitalize()}, {num:,}" for kind, num in part["checks"].items()}
    rows = {name: row | row["by_check"] for name, row in part["policies"].items()}
    return {
        "title": "Known answers",
        "sentences": [],
        "about": [
            f"The share of {part['num_tasks']:,} tasks ({part['file']}) that each policy answers right at temperature "
            "0. A number must equal the last one of the reply, a text the whole reply, code must pass its tests. n is "
            "the number of different tasks."
        ],
        "tables": [table("", columns | {"finished": "Finished"}, rows, _as_share)],
    }


def _as_share(key: str) -> Callable[[float], str]:
    return points if key == "difference" else percent


# ---- The harness


def _harness_part(report: dict[str, Any]) -> dict[str, Any]:
    part, baseline = report["quality"]["lm_eval"], report["settings"]["baseline"]
    tables = []
    for kind, caption, shown in (
        ("figure", "", "{:.3f}".format),
        ("difference", f"Less {baseline}, as of samples of their own", decimals),
    ):
        rows: dict[str, dict[str, Numbers | None]] = {}
        for name, figures in part["policies"].items():
            for one in figures:
                rows.setdefault(f"{one['task']}, {one['metric']}", {})[name] = one[kind]
        if any(cell for row in rows.values() for cell in row.values()):
            names = {name: name for name in part["policies"] if kind == "figure" or name != baseline}
            tables.append(table(caption, names, rows, lambda _, shown=shown: shown, kind != "figure", "Task"))
    return {
        "title": "lm-evaluation-harness",
        "sentences": [],
        "about": [
            f"Version {part['version']}, with its own prompts and no chat template. Intervals are from its standard "
            "errors; n is its number of examples."
        ],
        "tables": tables,
        "folded": f"Differences to {baseline}",
    }


# ---- Calibration


def _calibration_part(report: dict[str, Any]) -> dict[str, Any]:
    part, confidence = report["quality"]["calibration"], f"{report['settings']['confidence']:.0%}"
    ece, brier = part["ece"], part["brier"]
    rows = {
        f"{percent(one['said'])}, {one['num_pairs']:,} pair{'s' if one['num_pairs'] != 1 else ''}": {
            "came": one["came"]
        }
        for one in part["bins"]
    }
    return {
        "title": "Can the reward model's score be taken at its word",
        "sentences": [
            f"What its difference in score says and how often gold then prefers the first reply lie "
            f"{percent(ece['mean'])} apart on average ({confidence} interval {span(ece, percent)}, n = {ece['n']:,}; "
            f"{part['num_pairs']:,} pairs of replies). Brier score {brier['mean']:.3f} "
            f"({span(brier, '{:.3f}'.format)}); saying 50% always has 0.250."
        ],
        "about": [
            "A difference of d says that the first reply wins with probability 1 / (1 + exp(-d)) (Bradley-Terry). The "
            "first is that of the policy named earlier. n is the number of different prompts."
        ],
        "tables": [table("", {"came": "Gold prefers the first"}, rows, lambda _: percent, True, "It says")],
        "folded": "What the score says, and what gold says",
    }


# ---- Sentences


def sentences(report: dict[str, Any]) -> list[str]:
    """What is known of the replies, at most two plain sentences without a full stop."""
    found = [_texts_sentence(report)] if report["quality"]["differences"] else []
    costs = [*_tax_clause(report), *_tasks_clause(report)]
    if costs:
        found.append(f"{'; '.join(costs)}; {report['settings']['confidence']:.0%} intervals")
    return found


def _texts_sentence(report: dict[str, Any]) -> str:
    """Who repeats itself more or less than the baseline, is more or less diverse, more or less fluent."""
    baseline, told = report["settings"]["baseline"], []
    for name, row in report["quality"]["differences"].items():
        found = [
            f"{words} ({as_difference(key)(one['mean'])}, {span(one, as_difference(key))})"
            for key, more, less in (
                ("repetition", "repeats itself more", "repeats itself less"),
                ("distinct_2", "has more different pairs of words", "has fewer different pairs of words"),
            )
            if (one := row.get(key)) and (words := _side(one, more, less))
        ]
        fluency = report["quality"]["fluency"]
        more = fluency and fluency["policies"][name]["more"]
        if more and (words := _side(more, "is less fluent", "is more fluent")):
            shown = f"perplexity {signed_percent(more['mean'])}, {span(more, signed_percent)}"
            found.append(f"{words} under {fluency['model'] or report['settings']['reference']} ({shown})")
        if found:
            told.append(f"{name} {' and '.join(found)}")
    n = max(row["length"]["n"] for row in report["quality"]["policies"].values())
    prompts = f"{n:,} prompt{'s' if n != 1 else ''}"
    if not told:
        measures = "repetition, diversity or fluency" if report["quality"]["fluency"] else "repetition or diversity"
        return f"no policy is known to differ from {baseline} in {measures} ({prompts})"
    confidence = f"{report['settings']['confidence']:.0%}"
    return f"beside {baseline}, {_listed(told)}; {confidence} intervals, {prompts}"


def _tax_clause(report: dict[str, Any]) -> list[str]:
    """How much more each policy's loss on held-out demonstrations is than the reference's."""
    part, reference = report["quality"]["heldout"], report["settings"]["reference"]
    told = [
        f"{name} {signed_percent(tax['mean'])} ({span(tax, signed_percent)})"
        for name, row in (part["policies"] if part else {}).items()
        if (tax := row["tax"]) and name != reference
    ]
    num = f"{part['num_demonstrations']:,}" if part else ""
    return [f"loss on {num} held-out demonstrations beside {reference}: {_listed(told)}"] if told else []


def _tasks_clause(report: dict[str, Any]) -> list[str]:
    """How much more often each policy is right than the baseline."""
    part, baseline = report["quality"]["tasks"], report["settings"]["baseline"]
    told = [
        f"{name} {points(more['mean'])} ({span(more, points)})"
        for name, row in (part["policies"] if part else {}).items()
        if (more := row["difference"])
    ]
    num = f"{part['num_tasks']:,}" if part else ""
    return [f"right answers to {num} tasks beside {baseline}: {_listed(told)}"] if told else []


def _side(one: Numbers, more: str, less: str) -> str | None:
    """Which of the two the whole interval says; None where it holds 0."""
    if one["low"] is not None and one["low"] > 0:
        return more
    return less if one["high"] is not None and one["high"] < 0 else None


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


# ---- Warnings


def warnings(report: dict[str, Any]) -> list[str]:
    """Policies that repeat themselves more than the baseline, and that lost much of what SFT had learned."""
    return [*_repeating(report), *_taxed(report)]


def _repeating(report: dict[str, Any]) -> list[str]:
    baseline, part = report["settings"]["baseline"], report["quality"]
    found = []
    for name, row in part["differences"].items():
        more = row["repetition"]
        if more is not None and more["low"] is not None and more["low"] > 0:
            own, base = (percent(part["policies"][one]["repetition"]["mean"]) for one in (name, baseline))
            found.append(
                f"{name} repeats itself more than {baseline}: {own} of its runs of four words it has written before in "
                f"the same reply, {baseline} {base} (difference {span(more, points)})."
            )
    return found


def _taxed(report: dict[str, Any]) -> list[str]:
    part, reference = report["quality"]["heldout"], report["settings"]["reference"]
    rows = {} if part is None else part["policies"]
    return [
        f"{name} pays an alignment tax: its loss on held-out demonstrations is {percent(row['tax']['mean'])} above "
        f"that of {reference} ({report['settings']['confidence']:.0%} interval {span(row['tax'], signed_percent)}): it "
        "has lost some of what SFT taught."
        for name, row in rows.items()
        if row["tax"] is not None and (row["tax"]["low"] or 0) > 0 and row["tax"]["mean"] > _MUCH_TAX
    ]
