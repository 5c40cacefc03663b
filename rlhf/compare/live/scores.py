"""Judges score answers as these come, a batch at a time, and leave the scores in the run's folder."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from rlhf.compare.judges import ask_judge
from rlhf.parts import PartFile
from rlhf.records import Prompt, RewardFunction

PROMPTS = "prompts.jsonl"  # in the run's folder: what is asked, in the order that parts count in


def scores_file(folder: Path, judge: str) -> Path:
    """Where a judge's scores lie while a comparison runs."""
    return folder / f"scores.{quote(judge, safe='')}.part"


class ScoresSoFar:
    """The scores of the answers that have come; `known` holds them by judge, place of the prompt and text.

    What an earlier process left is removed: a judge may have been mended since. A judge that fails is not asked
    again here, and what it gave is forgotten: `score_texts` asks it at the end and says what is wrong, when all
    answers are on disk.
    """

    def __init__(self, judges: Mapping[str, RewardFunction], prompts: Sequence[Prompt], folder: Path) -> None:
        self.known: dict[str, dict[tuple[int, str], float]] = defaultdict(dict)
        self._prompts = prompts
        self._folder = folder
        self._judges = dict(judges)
        self._parts: dict[str, PartFile] = {}
        for name in judges:
            self._start(name)

    def hear(self, policy: str, batch: Sequence[tuple[int, int, str]]) -> None:
        """Score a batch of a policy's answers, (prompt, index, text) each, and put the scores on disk."""
        for name, judge in list(self._judges.items()):
            known, part = self.known[name], self._parts[name]
            new = list(dict.fromkeys((at, text) for at, _, text in batch if (at, text) not in known))
            try:
                known |= ask_judge(name, judge, self._prompts, new)
            except Exception:
                del self._judges[name]
                known.clear()
                part.path.unlink(missing_ok=True)
                continue
            rows = [{"policy": policy, "prompt": at, "index": i, "score": known[at, text]} for at, i, text in batch]
            with part:
                part.add(len(part.done), rows)

    def remove(self) -> None:
        """Remove the files: the report holds all scores."""
        for part in self._parts.values():
            part.path.unlink(missing_ok=True)

    def _start(self, name: str) -> None:
        path = scores_file(self._folder, name)
        path.unlink(missing_ok=True)
        self._parts[name] = PartFile(path)
