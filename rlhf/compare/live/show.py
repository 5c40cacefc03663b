"""A snapshot of a comparison as HTML. Every text from outside is escaped, also for Gradio's templates."""

import html

from rlhf.compare.judges import label
from rlhf.compare.live.folder import Example, Rate, Snapshot, Stage
from rlhf.compare.sentences import number

_QUIET = 600  # seconds without a word, after which one should look
_LONGEST = 4000  # characters of a text that are shown; the report has all
# Gradio evaluates ${...} and {{...}} in what it shows, and a backtick would end its template.
_TEMPLATES = str.maketrans(
    {"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;", "\\": "&#92;", "\0": "\N{REPLACEMENT CHARACTER}"}
)


def escaped(text: str) -> str:
    """Text as HTML that shows it letter by letter, and that no template of Gradio's changes."""
    text = text.encode("utf-8", "replace").decode()  # lone surrogates, which JSON may hold
    return html.escape(text).translate(_TEMPLATES)


def heading(shot: Snapshot) -> str:
    """What is compared, and whether it still runs."""
    first, *others = shot.policies
    title = f"{_and(others)} against {first}" if others else first
    if shot.finished:
        kind, state = "done", "Done"
    elif shot.idle > _QUIET:
        kind = "quiet"
        state = f"Nothing new for {_span(shot.idle)}: if it stopped, go on with --resume true"
    else:
        kind, state = "runs", "Running"
    asked = f"{shot.num_prompts:,} held-out prompts" if shot.num_prompts else "the first answers have not come yet"
    return (
        f'<section class="live-head"><p class="live-kicker">Comparison of policies, live</p><h1>{escaped(title)}</h1>'
        f'<p class="live-facts"><span class="live-state {kind}" role="status">{escaped(state)}</span> {asked}</p>'
        "</section>"
    )


def progress(shot: Snapshot) -> str:
    """A bar for each stage, until all are done."""
    if shot.finished:
        return ""
    return f'<section><h2>How far it is</h2><ol class="live-stages">{"".join(map(_stage, shot.stages))}</ol></section>'


def rates(shot: Snapshot) -> str:
    """Win rates against the first policy, by judge."""
    if shot.finished or len(shot.policies) < 2:
        return ""
    first = escaped(shot.policies[0])
    judges = list(dict.fromkeys(rate.judge for rate in shot.rates))
    if not judges:
        return (
            f"<section><h2>Win rates against {first}</h2>"
            '<p class="live-note">They come with the first scores.</p></section>'
        )
    cards = "".join(_judge(judge, [rate for rate in shot.rates if rate.judge == judge], first) for judge in judges)
    return (
        f'<section><h2>Win rates against {first}, so far</h2><div class="live-judges">{cards}</div>'
        f'<p class="live-note">You look again and again, so these {shot.confidence:.0%} intervals are anytime-valid: '
        "they hold at all looks together, and are wider than those of the report, which is one look at the end. "
        "The longest prompts are answered first; until all are in, the rates speak of those.</p></section>"
    )


def examples(shot: Snapshot) -> str:
    """The last prompts, the policies' answers side by side."""
    if shot.finished or not shot.examples:
        return ""
    cards = "".join(_example(one, shot.policies) for one in shot.examples)
    return f"<section><h2>The last prompts</h2>{cards}</section>"


def report(shot: Snapshot) -> str:
    """The finished report in a frame of its own that cannot reach this page, and the files."""
    if not shot.finished or "report.html" not in shot.files:
        return ""
    links = "".join(f'<a href="files/{name}" download="{name}">{name}</a>' for name in shot.files)
    return (
        f'<section><h2>The report</h2><nav class="live-files" aria-label="Files">{links}</nav>'
        '<iframe class="live-report" title="The report" sandbox="allow-scripts allow-downloads" '
        'src="files/report.html?shown"></iframe></section>'
    )


def problem(sentence: str) -> str:
    """What cannot be read."""
    return f'<section><p class="live-problem" role="alert">{escaped(sentence)}</p></section>'


def _stage(stage: Stage) -> str:
    share = 100 * stage.done / stage.total
    if stage.complete:
        told = f"{stage.total:,} {stage.unit}" if stage.unit else "done"
    elif not stage.unit:
        told = "to come"
    else:
        told = f"{stage.done:,} of {stage.total:,} {stage.unit}"
        if stage.seconds is not None:
            told += f", about {_span(stage.seconds)} " + ("left" if stage.done else "to come")
    kind = "done" if stage.complete else "runs" if stage.done else "waits"
    return (
        f'<li class="{kind}"><span class="live-name">{escaped(stage.name)}</span><span class="live-told">{told}</span>'
        f'<span class="live-bar" role="progressbar" aria-label="{escaped(stage.name)}" aria-valuemin="0" '
        f'aria-valuemax="{stage.total}" aria-valuenow="{stage.done}"><span style="width:{share:.1f}%"></span></span>'
        "</li>"
    )


def _judge(judge: str, found: list[Rate], first: str) -> str:
    name = label(judge)
    rows = "".join(_rate(rate, first) for rate in found)
    axis = '<div class="live-axis" aria-hidden="true"><span>0%</span><span>50%</span><span>100%</span></div>'
    return f'<div class="live-judge"><h3>By {escaped(name)}</h3>{rows}{axis}</div>'


def _rate(rate: Rate, first: str) -> str:
    name = f'<span class="live-name">{escaped(rate.policy)}</span>'
    one = rate.interval
    if one is None or one.low is None or one.high is None:
        return f'<div class="live-rate waits"><p>{name}<span class="live-told">no prompt scored yet</span></p></div>'
    kind, said = "open", "open so far"
    if one.low > 0.5:
        kind, said = "ahead", f"ahead of {first}"
    elif one.high < 0.5:
        kind, said = "behind", f"behind {first}"
    low, mean, high = (100 * end for end in (one.low, one.mean, one.high))
    return (
        f'<div class="live-rate {kind}"><p>{name}<span class="live-verdict">{said}</span>'
        f'<span class="live-told"><b>{mean:.0f}%</b> ({low:.0f}% to {high:.0f}%), n = {one.n:,}</span></p>'
        f'<div class="live-track" aria-hidden="true"><i class="live-half"></i>'
        f'<i class="live-span" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
        f'<i class="live-dot" style="left:{mean:.2f}%"></i></div></div>'
    )


def _example(example: Example, policies: list[str]) -> str:
    *before, asked = example.messages
    turns = f'<p class="live-note">{len(before)} earlier messages are in the report</p>' if before else ""
    columns = "".join(_answers(name, example.answers.get(name)) for name in policies)
    return (
        f'<article class="live-example"><h3>Prompt {example.number:,}</h3>{turns}'
        f'<p class="live-text live-asked">{_shown(asked["content"])}</p>'
        f'<div class="live-columns">{columns}</div></article>'
    )


def _answers(name: str, answers: list[tuple[str, dict[str, float]]] | None) -> str:
    if answers is None:
        body = '<p class="live-note">not answered yet</p>'
    else:
        body = "".join(
            f'<p class="live-text">{_shown(text) or "<em>an empty answer</em>"}</p>'
            f'<p class="live-scores">{_scores(scores)}</p>'
            for text, scores in answers
        )
    return f'<div class="live-answer"><h4>{escaped(name)}</h4>{body}</div>'


def _scores(scores: dict[str, float]) -> str:
    return ", ".join(f"{escaped(label(judge))} <b>{number(score)}</b>" for judge, score in scores.items())


def _shown(text: str) -> str:
    return escaped(text if len(text) <= _LONGEST else text[:_LONGEST] + " \N{HORIZONTAL ELLIPSIS}")


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
