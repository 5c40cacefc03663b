"""What a comparison's folder holds so far: how far each stage is, win rates, the last answers. It only reads."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from rlhf.compare.anytime import AnytimeInterval
from rlhf.compare.judges import GOLD, REWARD_MODEL, label
from rlhf.compare.live.scores import PROMPTS, scores_file
from rlhf.compare.llm_judge.policies import CACHE
from rlhf.compare.sources import named_policies
from rlhf.compare.statistics import prompt_wins
from rlhf.errors import UserError
from rlhf.intervals import Interval
from rlhf.parts import read_batches
from rlhf.records import Messages, Prompt, Response, read_jsonl
from rlhf.runs import read_run

FILES = ("report.html", "report.json", "report.md", "policies.csv", "pairs.csv")
_EXAMPLES = 4


@dataclass(frozen=True)
class Stage:
    """One stage: `done` of `total`; `seconds` are left, None where that is not known."""

    name: str
    done: int
    total: int
    seconds: float | None = None
    unit: str = "answers"

    @property
    def complete(self) -> bool:
        return self.done >= self.total


@dataclass(frozen=True)
class Rate:
    """How often `policy` beats the first one before a judge, on the prompts that both have scored answers to."""

    judge: str
    policy: str
    interval: Interval | None


@dataclass(frozen=True)
class Example:
    """A prompt and what each policy answered; a policy that has not is not in `answers`."""

    number: int
    messages: Messages
    answers: dict[str, list[tuple[str, dict[str, float]]]]  # text, and score by judge


@dataclass(frozen=True)
class Snapshot:
    """A comparison at one moment. `idle` is seconds since anything was written; `files` can be downloaded."""

    policies: list[str]
    confidence: float
    num_prompts: int | None
    stages: list[Stage]
    rates: list[Rate]
    examples: list[Example]
    finished: bool
    idle: float
    files: list[str]


@dataclass
class RunReader:
    """Reads one comparison's folder, as often as one likes; files that did not change are not read again.

    Raises UserError for a folder that is no comparison, and for files in it that are not ours.
    """

    folder: Path
    _read: dict[Path, tuple[tuple[int, int], Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._run()

    def snapshot(self, now: float | None = None) -> Snapshot:
        """How things stand at `now`, in seconds since 1970."""
        now = time.time() if now is None else now
        run = self._run()
        policies = list(named_policies(run.config["policies"]))
        prompts = self._prompts() or []
        size = int(run.config["num_responses"])
        texts = {name: self._texts(name, prompts, size) for name in policies}
        scores = self._scores()
        stages = [*self._answering(policies, texts, len(prompts) * size, _seconds(run.started), now)] if prompts else []
        if prompts:
            stages += self._judging(scores, policies, run.config, len(prompts) * size)
        stages.append(Stage("Statistics and report", int(run.finished), 1, unit=""))
        return Snapshot(
            policies,
            float(run.config["confidence"]),
            len(prompts) or None,
            stages,
            list(_rates(scores, policies, len(prompts), size, float(run.config["confidence"]))),
            _examples(prompts, policies, texts, scores),
            run.finished,
            max(0.0, now - self._last_written()),
            [name for name in FILES if (self.folder / name).is_file()] if run.finished else [],
        )

    def _run(self) -> Any:
        run = read_run(self.folder)
        if run.stage != "compare":
            raise UserError(f"{self.folder}: holds a {run.stage} run, no comparison; give the folder of `rlhf compare`")
        if missing := [key for key in ("policies", "num_responses", "confidence") if key not in run.config]:
            raise UserError(f"{self.folder}/run.json: has no `{missing[0]}` in its config; run the comparison again")
        return run

    def _prompts(self) -> list[Prompt] | None:
        return self._cached(self.folder / PROMPTS, lambda path: read_jsonl(path, Prompt))

    def _texts(self, name: str, prompts: list[Prompt], size: int) -> dict[tuple[int, int], str]:
        """A policy's answers by (prompt, index), those that came last at the end."""

        def whole(path: Path) -> dict[tuple[int, int], str]:
            places = {prompt.id: at for at, prompt in enumerate(prompts)}
            return {
                (places[one.prompt_id], one.sampling["index"]): one.text
                for one in read_jsonl(path, Response)
                if one.prompt_id in places
            }

        def part(path: Path) -> dict[tuple[int, int], str]:
            rows = [row for batch in read_batches(path)[0].values() for row in batch]
            try:
                return {(row["prompt_index"], row["index"]): row["text"] for row in rows}
            except (KeyError, TypeError):
                raise UserError(f"{path}: holds no answers; remove it and run the comparison again") from None

        found = self._cached(self.folder / f"responses.{name}.jsonl", whole)
        if found is None or len(found) < len(prompts) * size:
            found = self._cached(self.folder / f"responses.{name}.part", part) or found
        return found or {}

    def _scores(self) -> dict[str, dict[str, dict[tuple[int, int], float]]]:
        """By judge, by policy: the score of (prompt, index)."""

        def part(path: Path) -> dict[str, dict[tuple[int, int], float]]:
            found: dict[str, dict[tuple[int, int], float]] = {}
            try:
                for batch in read_batches(path)[0].values():
                    for row in batch:
                        found.setdefault(row["policy"], {})[row["prompt"], row["index"]] = float(row["score"])
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{path}: holds no scores; remove it and run the comparison again") from None
            return found

        there = [unquote(path.name[len("scores.") : -len(".part")]) for path in self.folder.glob("scores.*.part")]
        read = {judge: self._cached(scores_file(self.folder, judge), part) for judge in there}
        kept = {judge: found for judge, found in read.items() if found is not None}
        first = (GOLD, REWARD_MODEL)  # as in the report: what decides comes first
        return {judge: kept[judge] for judge in sorted(kept, key=lambda name: (name not in first, name))}

    def _answering(
        self, policies: list[str], texts: Mapping[str, Any], total: int, started: float, now: float
    ) -> Iterator[Stage]:
        """A policy begins when the one before is done, so the files' times tell the pace."""
        pace = None
        for name in policies:
            whole, part = (self.folder / f"responses.{name}.{end}" for end in ("jsonl", "part"))
            done = len(texts[name])
            if not done:
                done = _lines(self.folder / f"answers.{name}.jsonl")  # a server's
            seconds = None
            if done >= total and (written := _written(whole)):
                pace, started = (written - started) / total, written
            elif written := _written(part):
                pace = max(0.0, written - started) / max(done, 1)
                seconds = max(0.0, pace * (total - done) - (now - written))
            elif pace is not None:
                seconds = pace * total
            yield Stage(f"Answers of {name}", min(done, total), total, seconds)

    def _judging(
        self, scores: Mapping[str, Mapping[str, Any]], policies: list[str], config: Mapping[str, Any], total: int
    ) -> Iterator[Stage]:
        for judge, found in scores.items():
            done = sum(len(found.get(name, {})) for name in policies)
            yield Stage(f"Scores of {label(judge)}", done, total * len(policies), unit="scores")
        if config.get("llm_judge"):
            pairs = len(policies) * (len(policies) - 1) // 2
            asked = _lines(self.folder / CACHE)
            yield Stage("Verdicts of the language model", asked, 2 * pairs * total, unit="questions")

    def _last_written(self) -> float:
        return max((written for path in self.folder.iterdir() if (written := _written(path))), default=0.0)

    def _cached(self, path: Path, read: Any) -> Any:
        """`read(path)`, or None where the file is not there: it may go at any moment."""
        try:
            about = path.stat()
            state = (about.st_mtime_ns, about.st_size)
            if self._read.get(path, (None, None))[0] != state:
                self._read[path] = state, read(path)
        except FileNotFoundError:
            return None
        except UserError:
            if not path.exists():
                return None
            raise
        return self._read[path][1]


def _rates(
    scores: Mapping[str, Mapping[str, Mapping[tuple[int, int], float]]],
    policies: list[str],
    num_prompts: int,
    size: int,
    confidence: float,
) -> Iterator[Rate]:
    for judge, found in scores.items():
        first = found.get(policies[0], {})
        for name in policies[1:]:
            other = found.get(name, {})
            places = [[(at, index) for index in range(size)] for at in range(num_prompts)]
            both = [row for row in places if all(place in first and place in other for place in row)]
            interval = None
            if both:
                ours, theirs = (np.array([[one[place] for place in row] for row in both]) for one in (other, first))
                interval = AnytimeInterval(confidence).look(prompt_wins(ours, theirs))
            yield Rate(judge, name, interval)


def _examples(
    prompts: list[Prompt],
    policies: list[str],
    texts: Mapping[str, Mapping[tuple[int, int], str]],
    scores: Mapping[str, Mapping[str, Mapping[tuple[int, int], float]]],
) -> list[Example]:
    """The last prompts that were answered by the policy whose turn it is."""
    turn = next((name for name in reversed(policies) if texts[name]), None)
    if turn is None:
        return []
    last = list(dict.fromkeys(at for at, _ in reversed(list(texts[turn])) if at < len(prompts)))[:_EXAMPLES]
    return [
        Example(
            at + 1,
            prompts[at].messages,
            {
                name: [
                    (text, {judge: one[name][at, i] for judge, one in scores.items() if (at, i) in one.get(name, {})})
                    for (place, i), text in sorted((key, text) for key, text in texts[name].items() if key[0] == at)
                ]
                for name in policies
                if any(place == at for place, _ in texts[name])
            },
        )
        for at in last
    ]


def _seconds(started: str) -> float:
    return datetime.fromisoformat(started).timestamp()


def _written(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _lines(path: Path) -> int:
    try:
        with path.open("rb") as lines:
            return sum(line.endswith(b"\n") for line in lines)
    except OSError:
        return 0
