"""Tasks of lm-evaluation-harness (Gao et al. 2021), where it is installed: `pip install lm-eval`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy.special import ndtri

from rlhf.errors import UserError, nearest
from rlhf.intervals import Interval
from rlhf.models import Policy
from rlhf.records import make_id

_NUM_BOOTSTRAP = 1000  # behind the standard errors of figures that are no mean


@dataclass(frozen=True)
class Figure:
    """One figure of one task: `stderr` is the harness's, None where it gives none; `n` its examples."""

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True)
class Harness:
    """All figures of one policy.

    Args:
        id: made from the model, the tasks and the harness's version.
        version: the harness's.
        figures: in its order.
    """

    id: str
    version: str
    figures: list[Figure] = field(default_factory=list)


def check_harness(names: Sequence[str]) -> None:
    """Raise UserError where the harness is not installed, or does not know a task."""
    if not names:
        return
    _installed()
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    known = TaskManager().all_tasks
    for name in names:
        if name not in known:
            raise UserError(
                f"lm_eval: the harness has no task `{name}` (`lm-eval ls tasks` lists them){nearest(name, known)}"
            )


def harness_id(model: str, names: Sequence[str]) -> str:
    """The id of what the harness says of the model of this id."""
    return make_id("lme", model, list(names), _installed().__version__)


def harness_figures(
    policy: Policy, one_id: str, names: Sequence[str], batch_size: int, task_manager: Any = None
) -> Harness:
    """What the harness says of a policy, with its own settings and prompts (no chat template).

    Args:
        policy: the model.
        one_id: from `harness_id`.
        names: of tasks or groups.
        batch_size: requests at a time.
        task_manager: the harness's own, where tasks lie elsewhere.

    Raises UserError where a task's data cannot be read.
    """
    lm_eval = _installed()
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    model = HFLM(
        pretrained=policy.model,
        backend="causal",
        tokenizer=policy.tokenizer,
        device=str(policy.model.device),
        batch_size=batch_size,
        max_length=policy.max_length,
    )
    try:
        found = lm_eval.simple_evaluate(
            model, tasks=list(names), bootstrap_iters=_NUM_BOOTSTRAP, log_samples=False, task_manager=task_manager
        )
    except OSError as error:  # no network, a data set that is gone: datasets' errors are of this kind
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"lm_eval: the data of {', '.join(names)} cannot be read ({reason}); mend that and go on with "
            "--resume true, what was measured is kept"
        ) from error
    return Harness(one_id, lm_eval.__version__, _figures(found))


def _figures(found: dict[str, Any]) -> list[Figure]:
    figures = []
    for task, row in found["results"].items():
        n = found["n-samples"].get(task, {}).get("effective", 0)
        for key, value in row.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = row.get(f"{metric}_stderr,{chosen}")
            told = metric if chosen == "none" else f"{metric}, {chosen}"
            stderr = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
            figures.append(Figure(task, told, float(value), stderr, int(n)))
    return figures


def figure_interval(one: Figure, confidence: float) -> Interval:
    """A figure with the normal interval of the harness's standard error."""
    return _normal(one.value, one.stderr, confidence, one.n)


def figure_difference(one: Figure, other: Figure, confidence: float) -> Interval:
    """`one` less `other`, as of samples of their own: the harness's errors say nothing of pairs, so it is wide."""
    known = one.stderr is not None and other.stderr is not None
    error = math.hypot(one.stderr or 0.0, other.stderr or 0.0) if known else None
    return _normal(one.value - other.value, error, confidence, min(one.n, other.n))


def _normal(mean: float, error: float | None, confidence: float, n: int) -> Interval:
    if error is None:
        return Interval(mean, None, None, n)
    width = float(ndtri(0.5 + confidence / 2)) * error
    return Interval(mean, mean - width, mean + width, n)


def _installed() -> Any:
    try:
        import lm_eval  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            "lm_eval: lm-evaluation-harness is not installed; pip install lm-eval, or leave lm_eval out"
        ) from None
    return lm_eval
