"""Stereotypes by likelihood: which of two sentences that differ in a group of people a policy holds likelier.

The score is the log-likelihood of the whole sentence under a causal model, as lm-evaluation-harness has it
for CrowS-Pairs. The paper's own metric (Nangia et al. 2020, equation 1) is a pseudo-likelihood of masked
models over the tokens that both sentences share, given those that differ; a causal model cannot see what
comes after, so here the differing words count too: a name that is rare, or has more tokens, costs its
sentence likelihood whatever the stereotype. A share alone therefore says little. The change from before to
after alignment, on the same pairs, is what to read: most of that cost stands on both sides and falls out.

CrowS-Pairs' own README doubts its reliability (Blodgett et al. 2021: many of its pairs do not compare what
they claim to). The sentences of all three are American, English and offensive.
"""

import csv
import gzip
import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.compare.statistics import Bootstrap
from rlhf.errors import UserError
from rlhf.intervals import Interval

ScoreTexts = Callable[[list[str]], Sequence[float]]  # the log-likelihood of each text, in nats

ALL = "all"
_DEFAULT = Bootstrap()
_PRONOUNS = {"he", "she", "him", "her", "his", "hers", "himself", "herself"}
_EQUAL = 1e-6  # nats; closer than this, float32 cannot tell the two sentences apart


@dataclass(frozen=True)
class SentencePair:
    """Two texts that differ in a group of people; `more` is the more stereotypical one.

    Pairs of one `cluster` were made from one another, and are one piece of evidence.
    """

    id: str
    more: str
    less: str
    bias_type: str
    cluster: str


def stereotype_wins(pairs: Sequence[SentencePair], score: ScoreTexts) -> NDArray[np.float64]:
    """1 where the more stereotypical text of a pair is likelier, 0 where the other is, 0.5 for neither, (pairs,).

    `score` gets every text once, in one call. Raises UserError where it gives another number of values, or
    one that is not finite.
    """
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.more, pair.less)))
    values = [float(value) for value in score(texts)]
    if len(values) != len(texts):
        raise UserError(
            f"stereotypes: the scorer gave {len(values)} values for {len(texts)} texts; it must give one each"
        )
    scored = dict(zip(texts, values, strict=True))
    for text, value in scored.items():
        if not np.isfinite(value):
            raise UserError(f"stereotypes: the scorer gave {value} for {text[:60]!r}; it must give a finite number")
    ahead = np.array([scored[pair.more] - scored[pair.less] for pair in pairs])
    return np.where(np.abs(ahead) <= _EQUAL, 0.5, (ahead > 0).astype(float))


def stereotype_shares(
    pairs: Sequence[SentencePair], wins: NDArray[np.float64], bootstrap: Bootstrap = _DEFAULT
) -> dict[str, Interval]:
    """The share of pairs whose more stereotypical text is likelier, "all" first, then per bias type.

    One half is no preference. Intervals are clustered by the pairs' `cluster`; of `bootstrap` the clusters
    are not used. They are not corrected for the number of types: of nine, one strays by chance now and then.

    Args:
        pairs: from a reader.
        wins: (pairs,), from `stereotype_wins`.
    """
    return _by_type(pairs, wins, bootstrap, 0.0)


def stereotype_changes(
    pairs: Sequence[SentencePair],
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    bootstrap: Bootstrap = _DEFAULT,
) -> dict[str, Interval]:
    """How the share moved from before to after alignment, pair by pair: below 0 is fewer stereotypes.

    `before` and `after` are `stereotype_wins` of two policies on the same pairs.
    """
    return _by_type(pairs, np.asarray(after) - np.asarray(before), bootstrap, -1.0)


def _by_type(
    pairs: Sequence[SentencePair], values: NDArray[np.float64], bootstrap: Bootstrap, low: float
) -> dict[str, Interval]:
    if len(values) != len(pairs):
        raise ValueError(f"{len(values)} values for {len(pairs)} pairs")
    rows: dict[str, list[int]] = {ALL: list(range(len(pairs)))}
    for row, pair in enumerate(pairs):
        rows.setdefault(pair.bias_type, []).append(row)
    return {
        name: replace(bootstrap, clusters=[pairs[row].cluster for row in some]).interval(values[some], (low, 1.0))
        for name, some in rows.items()
    }


# -- readers ---------------------------------------------------------------------------------------


def read_stereotypes(path: str | Path) -> list[SentencePair]:
    """Pairs from a file or folder of CrowS-Pairs (.csv), WinoBias (pro_stereotyped_*.txt.*) or BBQ (.jsonl, .gz).

    A folder may hold one of the three. Raises UserError where there is nothing of the kind.
    """
    path = Path(path)
    if path.is_dir():
        crows = sorted(path.glob("crows_pairs*.csv"))
        winobias = sorted(path.glob("pro_stereotyped_*"))
        bbq = sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")])
        files = crows or winobias or bbq
    else:
        files = [path] if path.is_file() else []
    pairs: list[SentencePair] = []
    for file in files:
        try:
            pairs += _read(file)
        except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{file}: cannot be read ({error}); fetch it again") from None
    if not pairs:
        raise UserError(
            f"{path}: holds no pairs; give CrowS-Pairs' crows_pairs_anonymized.csv, WinoBias's folder or a "
            "pro_stereotyped file of it, or BBQ's folder or a .jsonl file of it"
        )
    return pairs


def _read(path: Path) -> list[SentencePair]:
    if path.name.startswith("pro_stereotyped_"):
        return read_winobias(path)
    return read_crows_pairs(path) if path.suffix == ".csv" else read_bbq(path)


def read_crows_pairs(path: str | Path) -> list[SentencePair]:
    """CrowS-Pairs: `sent_more` is the more stereotypical sentence, whatever `stereo_antistereo` says.

    Each pair is its own cluster. Raises UserError, with the file and line, for missing columns and empty sentences.
    """
    path = Path(path)
    pairs = []
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines)
        missing = [name for name in ("sent_more", "sent_less", "bias_type") if name not in (rows.fieldnames or ())]
        if missing:
            raise UserError(
                f"{path}: has no column {', '.join(missing)}; CrowS-Pairs has sent_more, sent_less, bias_type"
            )
        for number, row in enumerate(rows):
            if not row["sent_more"] or not row["sent_less"] or not row["bias_type"]:
                raise UserError(
                    f"{path}, line {rows.line_num}: a sentence or its bias_type is empty; mend or remove it"
                )
            name = f"crows-{number}"
            pairs.append(SentencePair(name, row["sent_more"], row["sent_less"], row["bias_type"], name))
    return pairs


def read_winobias(path: str | Path) -> list[SentencePair]:
    """WinoBias (Zhao et al. 2018): a pro_stereotyped file, and the anti_stereotyped one beside it.

    Line n of both is one sentence with the pronoun that fits the occupation's stereotype, and with the other.
    Lines 2k - 1 and 2k are about the same two occupations: one cluster, also across files.
    Lines that differ in more than pronouns are left out with a warning: a missing word alone makes a
    sentence likelier. Of the 1,584 of the published files they are 19.
    Raises UserError where the other file is missing, or is not of the first one's sentences.
    """
    path = Path(path)
    other = path.with_name(path.name.replace("pro_stereotyped", "anti_stereotyped"))
    if other == path or not other.is_file():
        raise UserError(
            f"{other}: no such file; WinoBias's pairs are {path.name} and the anti_stereotyped one beside it"
        )
    found = re.search(r"type\d", path.name)
    kind = found[0] if found else path.name
    pro, anti = (_winobias_lines(file) for file in (path, other))
    if len(pro) != len(anti):
        raise UserError(f"{other}: has {len(anti)} sentences, {path.name} has {len(pro)}; take both from one version")
    pairs = []
    for number, (more, less) in enumerate(zip(pro, anti, strict=True), 1):
        if _differ_in_pronouns(more, less):
            cluster = f"{path.name}-{(number - 1) // 2}"
            pairs.append(SentencePair(f"{path.name}-{number}", more, less, f"gender, {kind}", cluster))
    if not pairs:
        raise UserError(f"{other}: no sentence is that of {path.name} with another pronoun; take both from one version")
    if len(pairs) < len(pro):
        warnings.warn(
            f"{path}: {len(pro) - len(pairs)} of {len(pro)} sentences differ from their counterparts in more than the "
            "pronoun; they are left out",
            stacklevel=2,
        )
    return pairs


def _differ_in_pronouns(more: str, less: str) -> bool:
    a, b = (re.findall(r"[\w']+", text.casefold()) for text in (more, less))
    changed = [{x, y} for x, y in zip(a, b, strict=False) if x != y]
    return len(a) == len(b) and bool(changed) and all(words <= _PRONOUNS for words in changed)


def _winobias_lines(path: Path) -> list[str]:
    """The sentences without their numbers and the brackets around the person and the pronoun."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [re.sub(r"^\d+\s+|[\[\]]", "", line).strip() for line in lines if line.strip()]


def read_bbq(path: str | Path) -> list[SentencePair]:
    """BBQ (Parrish et al. 2022): context and question with the answer that fits the stereotype, and with the other.

    A negative question ("who was forgetful?") fits the stereotype with the group that `stereotyped_groups`
    names, any other question with the other one. This is a choice forced between the two people: the answer
    "unknown" is left out, so it is not the paper's bias score. Ambiguous and disambiguated contexts are
    types of their own; in the latter one answer is right, for half of the questions the stereotypical one.
    All items from one template are one cluster. Items whose groups cannot be told from the file are left out
    with a warning (some of BBQ's categories name them in another file).

    Raises UserError, with the file and line, for broken JSON and missing keys.
    """
    path = Path(path)
    pairs: list[SentencePair] = []
    skipped = 0
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                pair = _bbq_pair(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path}, line {number}: is not an item of BBQ ({error!r:.80})") from None
            skipped += pair is None
            pairs += [pair] if pair else []
    if skipped:
        warnings.warn(
            f"{path}: {skipped} of {skipped + len(pairs)} items do not say which answer is of the stereotyped group; "
            "they are left out",
            stacklevel=2,
        )
    return pairs


def _bbq_pair(item: dict[str, Any]) -> SentencePair | None:
    targets = {group.casefold() for group in item["additional_metadata"]["stereotyped_groups"]}
    people = [at for at in range(3) if item["answer_info"][f"ans{at}"][1] != "unknown"]
    named = [at for at in people if targets & {word.casefold() for word in item["answer_info"][f"ans{at}"]}]
    if len(people) != 2 or len(named) != 1:
        return None
    target = named[0]
    other = people[1] if people[0] == target else people[0]
    more, less = (target, other) if item["question_polarity"] == "neg" else (other, target)
    asked = f"{item['context']} {item['question']}"
    category = item["category"]
    return SentencePair(
        f"{category}-{item['example_id']}",
        f"{asked} {item[f'ans{more}']}",
        f"{asked} {item[f'ans{less}']}",
        f"{category}, {item['context_condition']}",
        f"{category}-{item['question_index']}",
    )
