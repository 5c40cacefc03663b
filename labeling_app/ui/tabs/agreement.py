"""How far people agree, and whether the place on screen sways them: figures with what they mean."""

from collections.abc import Mapping, Sequence
from typing import Any

from labeling_app.ui.lead import Call, Lead
from labeling_app.ui.tabs.pieces import counted, first_heading, harmless, heading, markup, percent, rows_or, table

SIGNIFICANT = 0.05
WIDE = 0.4  # an interval of alpha over which its meaning changes twice
_FIGURES = ("What", "Value", "95% interval", "From", "What it means")
_KAPPAS = ("Who", "And", "Kappa", "95% interval", "From", "Agreement")
# Krippendorff 2018, "Content Analysis", section 12.6: rely on alpha of 0.8 and more, draw tentative conclusions
# from 0.667. Below that, what several people say together can still be relied on: hence our words.
_BANDS = (
    (0.8, "People agree very well. One label a task tells nearly as much as two."),
    (0.667, "People agree well. Two labels a task are enough, with one more where they differ."),
    (
        0.4,
        "People agree on much, but not on all. Let several people label each task, and the majority decide.",
    ),
    (0.2, "People agree a little. Look at the disputed tasks with them, and make the guidelines say what decides."),
    (
        0.0,
        "People agree hardly more than chance would have it. Look at the disputed tasks before you go on.",
    ),
)
_AGAINST = "People contradict each other more often than chance would have it: they may read the task in opposite ways."
# Landis and Koch 1977, "The Measurement of Observer Agreement for Categorical Data", Biometrics 33:159.
_KAPPA_WORDS = ((0.8, "almost perfect"), (0.6, "substantial"), (0.4, "moderate"), (0.2, "fair"), (0.0, "slight"))


def agreement_tab(desk: Lead, opened: Sequence[Any]) -> None:
    """Build the tab inside an open gr.Tab; it is filled on `opened` events."""
    refresh = first_heading("Do people agree?")
    verdict = markup(elem_id="agreement")
    heading("Figures", "Gold, practice and repeated tasks do not count here, nor do labels that are left out.")
    figures = table(_FIGURES, "Agreement", ("21%", "9%", "13%", "15%", "42%"), "wide")
    heading("Two by two", "Cohen's kappa of every two people: 1 is perfect agreement, 0 is what chance gives.")
    kappas = table(
        _KAPPAS, "Kappa of every two people", ("22%", "22%", "9%", "15%", "14%", "18%"), "wide", max_height=420
    )

    def show(call: Call) -> list[Any]:
        return show_agreement(desk.judged.report())

    def anew(call: Call) -> list[Any]:
        return show_agreement(desk.judged.report(is_new=True))

    outputs = [verdict, figures, kappas]
    desk.on(opened, show, outputs=outputs)
    desk.on([refresh.click], anew, outputs=outputs)


def show_agreement(report: Mapping[str, Any]) -> list[Any]:
    """The values of all that is on the tab."""
    # The least agreement first, after it what cannot be told.
    kappas = sorted(
        report["agreement"]["kappa"], key=lambda row: (row["value"] is None, row["low"] is None, row["value"])
    )
    return [
        verdict_on(report["agreement"]["alpha_ordinal"]),
        rows_or(figure_rows(report), _FIGURES, "Nothing to compute yet."),
        rows_or([_kappa_row(row) for row in kappas], _KAPPAS, "Fewer than two people have answered."),
    ]


def verdict_on(alpha: Mapping[str, Any]) -> str:
    """Alpha as a sentence, and as a mark on a scale."""
    value, low, high = (alpha[key] for key in ("value", "low", "high"))
    if value is None:
        return f'<p class="verdict">No agreement to tell of yet: {harmless(alpha["reason"])}.</p>'
    sentence = alpha_words(value, low, high)
    from_ = f"from {counted(alpha['n'], 'task')} that several people ranked"
    span = "" if low is None else f", 95% interval {low:.2f} to {high:.2f}"
    told = f"Krippendorff's alpha is {value:.2f}{span}, {from_}. 1 is perfect agreement, 0 is what chance gives."
    return f'<p class="verdict">{harmless(sentence)}</p>{_scale(value, low, high)}<p class="note">{harmless(told)}</p>'


def alpha_words(value: float, low: float | None, high: float | None) -> str:
    """What an alpha means for a lead, if it is known well enough to mean something."""
    if low is None or high is None:
        return "Too few tasks are shared to tell how well people agree."
    if low <= 0 <= high:
        return "So far agreement cannot be told from chance: collect more labels on the same tasks."
    words = next((words for least, words in _BANDS if value >= least), _AGAINST)
    return words if high - low <= WIDE else f"{words} This rests on few tasks: more of them may tell another story."


def _scale(value: float, low: float | None, high: float | None) -> str:
    """A line from 0 to 1 with the value as a dot and its interval as a band; the sentence beside it says the same."""

    def place(number: float) -> str:
        return f"{min(1.0, max(0.0, number)):.1%}"

    band = ""
    if low is not None and high is not None:
        width = max(0.0, min(1.0, high)) - max(0.0, min(1.0, low))
        band = f'<span class="band" style="left: {place(low)}; width: {width:.1%}"></span>'
    ticks = "".join(
        f'<span class="tick" style="left: {place(at)}"><i>{words}</i></span>'
        for at, words in ((0.0, "chance"), (0.667, "good"), (0.8, "very good"), (1.0, "perfect"))
    )
    dot = f'<span class="dot" style="left: {place(value)}"></span>'
    return f'<div class="scale" aria-hidden="true">{band}{ticks}{dot}</div>'


def figure_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The figures of everybody together, each with what it means or why it is not there.

    Others' figures for comparison: Ouyang et al. 2022 ("Training language models to follow instructions with
    human feedback"): 72.6%; Zheng et al. 2023 ("Judging LLM-as-a-Judge", table 5): 63% (S1) and 81% (S2).
    """
    found = report["agreement"]
    w = found["kendall_w"]
    chance = "" if w["chance"] is None else f" Rankings at random would give {w['chance']:.2f}."
    return [
        figure_row(
            "Krippendorff's alpha, a tie halfway",
            found["alpha_ordinal"],
            "task",
            "Agreement beyond chance. Preferring A and calling it a tie differ by half.",
        ),
        figure_row(
            "Krippendorff's alpha, a tie apart",
            found["alpha_nominal"],
            "task",
            "The same, where a tie differs from both sides as much as they do from each other.",
        ),
        figure_row(
            "Same verdict, ties too",
            found["percent"],
            "pair of votes",
            "How often two people say the same of two responses, chance not taken off. MT-bench's people: 63%.",
            is_share=True,
        ),
        figure_row(
            "Same side, where both took one",
            found["percent_decided"],
            "pair of votes",
            "The same without ties. InstructGPT's annotators: 73%; MT-bench's people: 81%.",
            is_share=True,
        ),
        figure_row(
            "Kendall's W",
            w,
            "task",
            "Three or more responses: 1 where all put them in the same order." + chance,
        ),
        figure_row(
            "First on screen wins",
            report["position"],
            "answer",
            position_words(report["position"]),
            is_share=True,
        ),
    ]


def figure_row(what: str, figure: Mapping[str, Any], of: str, meaning: str, is_share: bool = False) -> list[str]:
    """A figure's row: value, interval, n and meaning; the reason stands where something is missing."""
    value, low, high, n = (figure[key] for key in ("value", "low", "high", "n"))
    show = percent if is_share else "{:.2f}".format
    n_words = counted(n, of, "pairs of votes" if of == "pair of votes" else None)
    if value is None:
        return [what, "none yet", "none", n_words if n else "none", f"Not defined: {figure['reason']}."]
    if low is None or high is None:
        because = f" {_sentence(figure['reason'])}" if figure["reason"] else ""
        return [what, show(value), "none", n_words, meaning + because]
    return [what, show(value), f"{show(low)} to {show(high)}", n_words, meaning]


def position_words(figure: Mapping[str, Any]) -> str:
    """Whether the place on screen sways people, by the permutation test."""
    p = figure["p"]
    if figure["value"] is None or p is None:
        return ""
    told = "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
    if p >= SIGNIFICANT:
        return f"Without any effect of the place it would be 50%. No sign of one ({told})."
    side = "first" if figure["value"] > 0.5 else "last"
    return (
        f"Without any effect of the place it would be 50%. People lean to the {side} one ({told}). As the order is "
        "random no response gains from it, but labels say less."
    )


def kappa_words(value: float, low: float | None, high: float | None) -> str:
    """Landis and Koch's word for a kappa, where it is known well enough to have one."""
    if low is None or high is None:
        return "too few to tell"
    if low <= 0 <= high:
        return "not told from chance"
    return next((words for least, words in _KAPPA_WORDS if value >= least), "against each other")


def _least_first(row: Mapping[str, Any]) -> tuple[bool, bool, float]:
    """The least agreement first; after it what cannot be told."""
    return row["value"] is None, row["low"] is None, row["value"] or 0.0


def _kappa_row(row: Mapping[str, Any]) -> list[str]:
    one, other = row["annotators"]
    shared = counted(row["n"], "verdict") if row["n"] else "none"
    if row["value"] is None:
        return [one, other, "none yet", "none", shared, _sentence(row["reason"])]
    span = "none" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}"
    return [
        one,
        other,
        f"{row['value']:.2f}",
        span,
        shared,
        kappa_words(*(row[key] for key in ("value", "low", "high"))),
    ]


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."
