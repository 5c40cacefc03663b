"""The words and tables of the section on safety."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.compare.safety.measuring import REGARD, REWARD
from rlhf.compare.safety.stereotypes import ALL
from rlhf.compare.sentences import number, percent, shown_mean, shown_span

_MOST_SENTENCES = 2
_KINDS = {"wanted": "harmful", "unwanted": "harmless"}
_ABOUT_STEREOTYPES = (
    "How often a policy finds the more stereotypical of two sentences likelier; 50% is no preference. A rare name "
    "costs its sentence likelihood whatever the stereotype, so read the change rather than the share. The sentences "
    "are American, and some pairs do not compare what they claim to (Blodgett et al. 2021)."
)
_Cell = tuple[str, str] | None  # the mean, and its interval with n


@dataclass(frozen=True)
class Table:
    """Rows of a name, words beside it and a cell a column; `folded` ones open on demand."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str], list[_Cell]]]
    folded: bool = False
    first: str = "Policy"


def view(report: dict[str, Any]) -> dict[str, Any]:
    """What the template shows: a part has a title, what it is, and tables."""
    part = report["safety"]
    parts = []
    if "refusals" in part:
        parts.append({"title": "Refusals", "about": _about_refusals(part["refusals"]), "tables": _refusals(report)})
    if "toxicity" in part:
        parts.append({"title": "Toxic replies", "about": _about_toxicity(part["toxicity"]), "tables": [_toxic(report)]})
    if "stereotypes" in part:
        tables = [table for data in part["stereotypes"] for table in _stereotypes(report, data)]
        parts.append({"title": "Stereotypes", "about": _ABOUT_STEREOTYPES, "tables": tables})
    if "groups" in part:
        tables = [table for scored in part["groups"] for table in _groups(report, scored)]
        parts.append({"title": "Groups of people", "about": _about_groups(part["groups"]), "tables": tables})
    return {"parts": parts, "notes": _notes(report)}


def sentences(report: dict[str, Any]) -> list[str]:
    """The first of what was found, a plain sentence without a full stop each."""
    part, found = report["safety"], []
    if "refusals" in part:
        figures = part["refusals"]["policies"]
        told = [f"{kind} prompts refused: {_each(figures, key)}" for key, kind in _kinds(part["refusals"])]
        found.append("; ".join(told))
    found += [
        f"stereotyped sentence of {data['data']} preferred: {_each(data['policies'], ALL)}"
        for data in part.get("stereotypes", [])
    ]
    if "groups" in part:
        told = [f"in {_measure(scored)} {_each_gap(scored)}" for scored in part["groups"]]
        found.append(f"gap between the groups of {part['groups'][0]['data']} {'; '.join(told)}")
    if "toxicity" in part:
        figures = part["toxicity"]["policies"]
        place = 1 if any(one["flagged"]["mean"] for one in figures.values()) else len(found)  # no news comes last
        found.insert(place, f"toxic replies by {_flagged_by(part['toxicity'])}: {_each(figures, 'flagged')}")
    return found[:_MOST_SENTENCES]


def warnings(report: dict[str, Any]) -> list[str]:
    """Where a whole interval lies on the wrong side of no change."""
    part, found = report["safety"], []
    if "refusals" in part:
        for name, before, change in _moved(report, part["refusals"], "wanted", lambda one: _below(one, 0)):
            found.append(f"{name} refuses fewer of the harmful prompts than {before}: {_change(report, change)}.")
        for name, before, change in _moved(report, part["refusals"], "unwanted", lambda one: _above(one, 0)):
            found.append(f"{name} refuses more of the harmless prompts than {before}: {_change(report, change)}.")
    if "toxicity" in part:
        by = _flagged_by(part["toxicity"])
        for name, before, change in _moved(report, part["toxicity"], "flagged", lambda one: _above(one, 0)):
            found.append(f"{name} writes more toxic replies than {before} by {by}: {_change(report, change)}.")
    for data in part.get("stereotypes", []):
        found += _stereotype_warnings(report, data)
    return found


# -- parts -----------------------------------------------------------------------------------------


def _kinds(part: dict[str, Any]) -> list[tuple[str, str]]:
    """The kinds of prompts that there are."""
    figures = next(iter(part["policies"].values()))
    return [(key, kind) for key, kind in _KINDS.items() if figures[key] is not None]


def _about_refusals(part: dict[str, Any]) -> str:
    of = "the compared prompts that say whether they are harmful" if part["prompts"] is None else part["prompts"]
    return (
        f"Of {of}: a refusal of a harmful prompt is wanted, one of a harmless prompt is not. Found by patterns in a "
        "reply's first two sentences, in English; a refusal by changing the subject is not seen."
    )


def _refusals(report: dict[str, Any]) -> list[Table]:
    part = report["safety"]["refusals"]
    titles = {"wanted": "Harmful prompts: a refusal is wanted", "unwanted": "Harmless prompts: a refusal is not wanted"}
    return [_by_policy(report, part, key, "Refused", titles[key]) for key, _ in _kinds(part)]


def _about_toxicity(part: dict[str, Any]) -> str:
    if part["by"] is not None:
        return (
            f"The share of replies to the compared prompts that {part['by']} holds toxic with a probability of at "
            "least 50%; each reply is read alone, without its prompt."
        )
    return (
        "The share of replies to the compared prompts with a word of a short list of insults and threats. Crude: the "
        "list is blind to meaning, and knows no slurs."
    )


def _flagged_by(part: dict[str, Any]) -> str:
    return part["by"] or "the lexicon"


def _toxic(report: dict[str, Any]) -> Table:
    return _by_policy(report, report["safety"]["toxicity"], "flagged", "Flagged")


def _stereotypes(report: dict[str, Any], data: dict[str, Any]) -> list[Table]:
    whole = _by_policy(report, data, ALL, "Stereotyped", data["data"])
    types = [name for name in next(iter(data["policies"].values())) if name != ALL]
    if len(types) < 2:
        return [whole]
    rows = []
    for kind in types:
        table = _by_policy(report, data, kind, "Stereotyped")
        rows += [(f"{kind}: {name}", tags, cells) for name, tags, cells in table.rows]
    return [whole, Table(f"{data['data']} by type", whole.columns, rows, folded=True, first="Type and policy")]


def _stereotype_warnings(report: dict[str, Any], data: dict[str, Any]) -> list[str]:
    """Who prefers the stereotyped sentence, and more so than whom it came from: a line for each, types together."""
    found: dict[str, str] = {}
    for before, by in _changes(report, data):
        for name, changes in by.items():
            shares = data["policies"][name]
            told = [
                f"{'all' if kind == ALL else kind} {percent(shares[kind]['mean'])} ({_with_n(shares[kind], percent)})"
                for kind, change in changes.items()
                if _above(shares[kind], 0.5) and _above(change, 0)
            ]
            if told:
                line = f"{name} prefers the stereotyped sentence of {data['data']}, and more often than {before}"
                found.setdefault(name, f"{line}: {', '.join(told)}.")
    return list(found.values())


def _about_groups(scored: list[dict[str, Any]]) -> str:
    by = " and ".join(f"{'' if one['measure'] == REWARD else f'in {_measure(one)} '}by {one['by']}" for one in scored)
    regard = ""
    if any(one["measure"] == REGARD for one in scored):
        regard = (
            " Regard is how a reply makes people look, which pleasant words may hide and harsh ones may not hurt "
            "(Sheng et al. 2019)."
        )
    return (
        f"Each prompt of {scored[0]['data']} is about a group of people; the replies are scored {by}.{regard} The gap "
        "is the highest group's mean less the lowest's; its interval holds for all differences between groups at "
        "once. By chance is the mean gap where prompts are shuffled between groups, and p is how often such a shuffle "
        "gives as large a gap. The gap of a change is between the groups that it lifted most and least."
    )


def _measure(scored: dict[str, Any]) -> str:
    return "score" if scored["measure"] == REWARD else scored["measure"]


def _each_gap(scored: dict[str, Any]) -> str:
    """Every policy's gap with its interval and p, and the n that they have in common."""
    figures = scored["policies"]
    told = [
        f"{name} {number(one['gap']['mean'])} ({shown_span(one['gap'], '')}, p = {_p(one['p_value'])})"
        for name, one in figures.items()
    ]
    return f"{', '.join(told)}, n = {next(iter(figures.values()))['gap']['n']:,}"


def _groups(report: dict[str, Any], part: dict[str, Any]) -> list[Table]:
    changes = _changes(report, part)
    gaps, gaps_of_changes, means = [], [], []
    for name, tags, figures in _entries(report, part):
        moved = [None if _apart(tags) else by.get(name) for _, by in changes]
        ends = [(_group(figures[end]), _with_n(figures["means"][figures[end]])) for end in ("highest", "lowest")]
        gaps.append((name, tags, [_gap_cell(figures), *ends]))
        if any(moved):
            gaps_of_changes.append((name, tags, [_gap_cell(one) for one in moved]))
    for group in next(iter(part["policies"].values()))["means"]:
        for name, tags, figures in _entries(report, part):
            moved = [None if _apart(tags) or name not in by else by[name]["means"][group] for _, by in changes]
            cells = [_mean_cell(one) for one in (figures["means"][group], *moved)]
            means.append((f"{_group(group)}: {name}", tags, cells))
    titles, measure = _change_titles(changes), _measure(part).capitalize()
    tables = [Table(measure, ["Gap", "Highest", "Lowest"], gaps)]
    if changes:
        tables.append(Table(f"{measure}: gap of the change", titles, gaps_of_changes))
    by_group = Table(f"{measure} by group", ["Mean", *titles], means, folded=True, first="Group and policy")
    return [*tables, by_group]


def _gap_cell(one: dict[str, Any] | None) -> _Cell:
    if one is None:
        return None
    gap = one["gap"]
    p = f"p\u00a0=\u00a0{_p(one['p_value'])}"  # no line ends within it on a phone
    return number(gap["mean"]), f"{_with_n(gap)}; {p}, by chance {number(one['expected'])}"


def _group(name: str) -> str:
    return name.replace("_", " ")


def _p(value: float) -> str:
    return f"{value:.2g}"


def _notes(report: dict[str, Any]) -> list[str]:
    settings = report["settings"]
    notes = [
        "A change of a share is in percentage points, of the same prompts or pairs; its interval is paired. With many "
        "rows some interval misses by chance."
    ]
    missing = [
        what
        for key, what in (("refusals", "refusals of the compared prompts"), ("toxicity", "toxic replies"))
        if (part := report["safety"].get(key)) and part["from_reference"] is None
    ]
    if missing and settings["reference"] not in report["policies"]:
        notes.append(
            f"No change of {' and '.join(missing)} from {settings['reference']}, the reference, is known: it is not "
            "one of the policies, so it has not answered the compared prompts."
        )
    return notes


# -- tables ----------------------------------------------------------------------------------------


def _by_policy(report: dict[str, Any], part: dict[str, Any], key: str, measure: str, title: str = "") -> Table:
    """A row a policy: its share, and the changes of it."""
    changes = _changes(report, part)
    rows = []
    for name, tags, figures in _entries(report, part):
        moved = [by[name][key] if name in by and not _apart(tags) else None for _, by in changes]
        rows.append((name, tags, [_share_cell(figures[key]), *map(_points_cell, moved)]))
    return Table(title, [measure, *_change_titles(changes)], rows)


def _change_titles(changes: Sequence[tuple[str, Any]]) -> list[str]:
    return [f"change from {name}" for name, _ in changes]


def _entries(report: dict[str, Any], part: dict[str, Any]) -> list[tuple[str, list[str], dict[str, Any]]]:
    """Each policy's name, tags and figures; the reference last where it is none of them."""
    settings = report["settings"]
    entries = []
    for name, figures in part["policies"].items():
        tags = [tag for tag in ("baseline", "reference") if settings[tag] == name and not _apart_in(part, tag)]
        entries.append((name, tags, figures))
    if part["reference"] is not None:
        entries.append((settings["reference"], ["reference, not compared"], part["reference"]))
    return entries


def _apart_in(part: dict[str, Any], tag: str) -> bool:
    """Whether a policy only has the name of the reference: that one is another model."""
    return tag == "reference" and part["reference"] is not None


def _apart(tags: Sequence[str]) -> bool:
    return "reference, not compared" in tags


def _changes(report: dict[str, Any], part: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What changes are known, as the name of what from, and by policy."""
    settings = report["settings"]
    known = [(settings["baseline"], part["from_baseline"])] if part["from_baseline"] else []
    if part["from_reference"]:
        known.append((settings["reference"], part["from_reference"]))
    return known


def _moved(
    report: dict[str, Any], part: dict[str, Any], key: str, wrong: Callable[[dict[str, Any]], bool]
) -> list[tuple[str, str, dict[str, Any]]]:
    """Policies that moved the wrong way: their names, from whom, and the change; of each the first that did."""
    found: dict[str, tuple[str, str, dict[str, Any]]] = {}
    for before, by in _changes(report, part):
        for name, figures in by.items():
            if figures[key] is not None and wrong(figures[key]):
                found.setdefault(name, (name, before, figures[key]))
    return list(found.values())


# -- numbers ---------------------------------------------------------------------------------------


def _above(interval: dict[str, Any], value: float) -> bool:
    return interval["low"] is not None and interval["low"] > value


def _below(interval: dict[str, Any], value: float) -> bool:
    return interval["high"] is not None and interval["high"] < value


def _each(figures: Mapping[str, dict[str, Any]], key: str) -> str:
    """Every policy's share with its interval, and the n that they have in common."""
    told = [f"{name} {percent(one[key]['mean'])} ({_span(one[key], percent)})" for name, one in figures.items()]
    return f"{', '.join(told)}, n = {next(iter(figures.values()))[key]['n']:,}"


def _change(report: dict[str, Any], change: dict[str, Any]) -> str:
    return (
        f"{points(change['mean'])} points ({report['settings']['confidence']:.0%} interval {_span(change, points)}; "
        f"n = {change['n']:,})"
    )


def _share_cell(interval: dict[str, Any] | None) -> _Cell:
    return None if interval is None else (percent(interval["mean"]), _with_n(interval, percent))


def _points_cell(interval: dict[str, Any] | None) -> _Cell:
    return None if interval is None else (points(interval["mean"]), _with_n(interval, points))


def _mean_cell(interval: dict[str, Any] | None) -> _Cell:
    return None if interval is None else (shown_mean(interval, ""), _with_n(interval))


def _with_n(interval: dict[str, Any], shown: Callable[[float], str] | None = None) -> str:
    """The interval and n, `shown` as given or as a plain number."""
    return f"{shown_span(interval, '') if shown is None else _span(interval, shown)}, n = {interval['n']:,}"


def _span(interval: dict[str, Any], shown: Callable[[float], str]) -> str:
    if interval["low"] is None or interval["high"] is None:
        return "interval unknown"
    return f"{shown(interval['low'])} to {shown(interval['high'])}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    value = round(100 * difference, 1)
    return f"{value:+.1f}" if value else "0.0"
