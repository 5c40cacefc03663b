"""Do the statistics of `rlhf compare` hold what they promise? Made-up studies whose truth is known, by the thousand.

    python -m benchmarks.compare_validity [--studies 2000] [--prompts 200] [--processes 2]

Each study is 200 prompts and two policies, judged by the functions that a comparison calls. Measured: how often the
95% interval holds the truth (93 to 97% is right), how often a policy is called better that is not (at most 5%), what
the win rate at equal length is where the judge likes length, and what bias is left where both orders are asked.
Prints a Markdown table and writes benchmarks/results/compare_validity.json.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from rlhf.compare.judge_agreement import position_bias
from rlhf.compare.length_control import length_controlled
from rlhf.compare.llm_judge.questions import Verdict, combine
from rlhf.compare.statistics import UNDECIDED, Bootstrap, compare_pair
from rlhf.intervals import Interval

RESULTS = Path(__file__).parent / "results" / "compare_validity.json"
COVERAGE = (0.93, 0.97)
MOST_FALSE = 0.05
QUALITY = 0.3  # logits that a is better by where length or place counts too
LIKING = 1.0  # logits of length: one standard deviation moves tanh by 0.76
FIRST = 1.0  # logits that a place counts
TIES = 0.4
RESPONSES = 5  # rows of a correlated prompt
SHARES = ("coverage", "decided", "false")
UNCONTROLLED = ("raw", "one order")
OFF_BY = 0.001  # a mean over the studies may lie so far from the truth beside its own error

Array = NDArray[np.float64]
Found = dict[str, float]  # what one study found, by name
Truth = Callable[[np.random.Generator, int, int], Found]


def main() -> None:
    """Run all studies of each truth, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    started = time.perf_counter()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of the processes: each has a core
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        rows = []
        for name in TRUTHS:
            study = partial(one_study, name, arguments.prompts)
            rows += summary(name, list(pool.map(study, range(arguments.studies), chunksize=20)))
            print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    setup = {
        "studies": arguments.studies,
        "prompts": arguments.prompts,
        "num_bootstrap": Bootstrap().num_bootstrap,
        "seconds": round(time.perf_counter() - started),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("numpy", "scipy")},
    }
    arguments.out.write_text(json.dumps({"setup": setup, "rows": rows}, indent=2) + "\n")
    print(table(rows))


def one_study(name: str, num_prompts: int, seed: int) -> Found:
    """What a study of a truth found: for each figure its mean, whether its interval holds the truth, and so on."""
    generator = np.random.default_rng([seed, list(TRUTHS).index(name)])
    return TRUTHS[name](generator, num_prompts, seed)


def equal(generator: np.random.Generator, num_prompts: int, seed: int) -> Found:
    """Both policies' scores are of the same distribution, on prompts of unlike difficulty."""
    hard = generator.normal(0, 1, (num_prompts, 1))
    a, b = (hard + generator.normal(0, 1, (num_prompts, 1)) for _ in range(2))
    return _pair(a, b, 0.5, Bootstrap(seed=seed))


def better(generator: np.random.Generator, num_prompts: int, seed: int) -> Found:
    """a wins 55% of prompts."""
    a = np.where(generator.random((num_prompts, 1)) < 0.55, 1.0, -1.0)
    return _pair(a, np.zeros_like(a), 0.55, Bootstrap(seed=seed))


def correlated(generator: np.random.Generator, num_prompts: int, seed: int) -> Found:
    """Five rows of each prompt, on which the same policy tends to win; equally good over prompts."""
    lead = np.repeat(generator.normal(0, 1, num_prompts // RESPONSES), RESPONSES)[:, None]
    a = lead + generator.normal(0, 1, lead.shape)
    clusters = np.repeat(np.arange(num_prompts // RESPONSES), RESPONSES).tolist()
    return _pair(a, np.zeros_like(a), 0.5, Bootstrap(clusters, seed=seed))


def ties(generator: np.random.Generator, num_prompts: int, seed: int) -> Found:
    """Grades of equally good policies, of which 40% of pairs tie."""
    chance = [(1 - TIES) / 2, TIES, (1 - TIES) / 2]
    a = generator.choice([-1.0, 0.0, 1.0], size=(num_prompts, 1), p=chance)
    return _pair(a, np.zeros_like(a), 0.5, Bootstrap(seed=seed))


def length(generator: np.random.Generator, num_prompts: int, seed: int, quality: float) -> Found:
    """The judge likes length, and a is the longer by half a standard deviation of the difference.

    `raw` is the win rate as it is, against how good the policy is without length; what it misses is the bias.
    """
    difference = generator.normal(0.5, 1, num_prompts)
    won = generator.random(num_prompts) < expit(quality + LIKING * np.tanh(difference))
    rate = length_controlled(won, difference + 3, np.full(num_prompts, 3.0), Bootstrap(seed=seed))
    truth = float(expit(quality))
    return _held("at equal length", rate.controlled, truth) | _held("raw", rate.raw, truth)


def placed(generator: np.random.Generator, num_prompts: int, seed: int, quality: float) -> Found:
    """The judge likes what it is shown first, and is asked in both orders.

    A pair has a lead that counts in both orders, and each order noise of its own. `both orders` and `one order` (a
    shown first) are held against a's wins before the same judge without a liking for places; `both orders, of the
    same judge` against the mean of what this judge gives in either order, which is what combining estimates.
    """
    lead = quality + generator.normal(0, 1, num_prompts)
    shown_first = generator.random(num_prompts) < expit(lead + FIRST)
    shown_second = generator.random(num_prompts) < expit(lead - FIRST)
    first: list[Verdict] = ["A" if won else "B" for won in shown_first]
    second: list[Verdict] = ["B" if won else "A" for won in shown_second]  # a stands second
    both = np.array([combine(*verdicts) for verdicts in zip(first, second, strict=True)])
    bootstrap = Bootstrap(seed=seed)
    bias = position_bias(shown_first, shown_second, bootstrap).first_place
    assert bias is not None
    combined = bootstrap.interval(both, (0.0, 1.0))
    unbiased = _mean_chance(quality)
    ahead, behind = _mean_chance(quality + FIRST), _mean_chance(quality - FIRST)
    found = _held("one order", bootstrap.interval(shown_first.astype(float), (0.0, 1.0)), unbiased)
    found |= _held("both orders", combined, unbiased)
    found |= _held("both orders, of the same judge", combined, (ahead + behind) / 2)
    return found | _held("first place", bias, (1 + ahead - behind) / 2)


@cache
def _mean_chance(lead: float) -> float:
    """The share of wins over all prompts: the mean of the logistic function over leads N(lead, 1)."""
    at, weights = np.polynomial.hermite_e.hermegauss(80)
    return round(float(weights @ expit(lead + at) / weights.sum()), 12)  # one half is to be one half


TRUTHS: dict[str, Truth] = {
    "A = B": equal,
    "A better by 5 points": better,
    "several rows of a prompt, A = B": correlated,
    "40% ties, A = B": ties,
    "judge likes length, A = B": partial(length, quality=0.0),
    "judge likes length, A better": partial(length, quality=QUALITY),
    "judge likes the first place, A = B": partial(placed, quality=0.0),
    "judge likes the first place, A better": partial(placed, quality=QUALITY),
}


def _pair(a: Array, b: Array, truth: float, bootstrap: Bootstrap) -> Found:
    pair = compare_pair("a", "b", "gold", a, b, bootstrap)
    found = _held("win rate", pair.win_rate, truth)
    assert (pair.verdict != UNDECIDED) == bool(found["win rate: decided"])
    return found


def _held(figure: str, interval: Interval, truth: float) -> Found:
    assert interval.low is not None and interval.high is not None
    above, below = interval.is_above(0.5), interval.is_below(0.5)
    return {
        f"{figure}: planted": truth,
        f"{figure}: mean": interval.mean,
        f"{figure}: coverage": float(interval.low <= truth <= interval.high),
        f"{figure}: decided": float(above or below),
        f"{figure}: false": float((above and truth <= 0.5) or (below and truth >= 0.5)),
    }


def summary(name: str, found: list[Found]) -> list[dict[str, Any]]:
    """A row for each figure: its mean over the studies beside the truth, coverage, false verdicts, and what misses."""
    rows = []
    for figure in dict.fromkeys(key.split(":")[0] for key in found[0]):
        values = {key: np.array([one[f"{figure}: {key}"] for one in found]) for key in ("planted", "mean", *SHARES)}
        planted, mean = float(values["planted"][0]), float(values["mean"].mean())
        row: dict[str, Any] = {"truth": name, "figure": figure, "planted": planted, "mean": mean}
        row |= {"bias": mean - planted, "error_of_bias": float(values["mean"].std(ddof=1) / np.sqrt(len(found)))}
        row |= {key: float(values[key].mean()) for key in SHARES}
        row = {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
        rows.append(row | {"misses": misses(row)})
    return rows


def misses(row: dict[str, Any]) -> list[str]:
    """What is not as promised; nothing is promised of a rate that is not controlled for what the judge likes."""
    if row["figure"] in UNCONTROLLED:
        return []
    found = []
    if not COVERAGE[0] <= row["coverage"] <= COVERAGE[1]:
        found.append("coverage")
    if row["false"] > MOST_FALSE:
        found.append("false")
    if abs(row["bias"]) > OFF_BY + 3 * row["error_of_bias"]:
        found.append("bias")
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """As Markdown: means and biases in points, the bias with its 95% error."""
    lines = [
        "| truth | figure | planted | mean | bias | 95% interval holds it | called better | falsely | misses |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        shares = " | ".join(f"{row[key]:.1%}" for key in SHARES)
        means = (
            f"{row['planted']:.1%} | {row['mean']:.1%} | {100 * row['bias']:+.2f} ± {196 * row['error_of_bias']:.2f}"
        )
        what = ", ".join(row["misses"]) or ("not controlled" if row["figure"] in UNCONTROLLED else "")
        lines.append(f"| {row['truth']} | {row['figure']} | {means} | {shares} | {what} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
