"""What comes after an attempt that failed: the same once more, less memory at a time, or the end."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Lesson:
    """What one node learnt from an attempt.

    Args:
        may_help: whether the same once more may end otherwise.
        out_of_memory: whether a rank of this node ran out of memory.
        changes: the settings that then need less; None where none do.
    """

    may_help: bool = False
    out_of_memory: bool = False
    changes: dict[str, int] | None = None


@dataclass(frozen=True)
class Verdict:
    """What all nodes do next.

    Args:
        go: whether to start again.
        counts: whether that is one of `--max_restarts`.
        changes: settings to start with, laid over what was.
    """

    go: bool
    counts: bool = False
    changes: dict[str, int] | None = None


def judge(lessons: list[Lesson], auto: bool, restarts_left: int) -> Verdict:
    """The verdict on what all nodes learnt.

    Memory goes first: ranks that fail because another one has run out of it would fail again. Of several nodes the
    one that can bear least decides.
    """
    short = [lesson for lesson in lessons if lesson.out_of_memory]
    if short:
        wanted = [lesson.changes for lesson in short if lesson.changes]
        if not auto or len(wanted) < len(short):
            return Verdict(go=False)
        return Verdict(go=True, changes=_least(wanted))
    if restarts_left > 0 and any(lesson.may_help for lesson in lessons):
        return Verdict(go=True, counts=True)
    return Verdict(go=False)


def _least(wanted: list[dict[str, int]]) -> dict[str, int]:
    """Each key's smallest batch, with the accumulation that belongs to it."""
    found: dict[str, int] = {}
    for one in wanted:
        for key, value in one.items():
            keep = max if key == "gradient_accumulation_steps" else min
            found[key] = keep(found.get(key, value), value)
    return found
