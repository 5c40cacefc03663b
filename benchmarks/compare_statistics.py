"""How long the statistics of `rlhf compare` take, by part, for many prompts and policies, and how much memory.

    python -m benchmarks.compare_statistics [--prompts 10000] [--policies 10] [--ties 0]

A made-up study: one response a prompt with a length and perhaps some markdown, and two judges' scores. `--ties` is
the share of pairs of responses that the gold judge's grades do not part. The report is built once by the clock and
once under the profiler, whose shares part the seconds of the first. Prints Markdown, and writes
benchmarks/results/compare_statistics.json.
"""

import argparse
import cProfile
import json
import os
import platform
import pstats
import resource
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.compare.answers import Answers
from rlhf.compare.report import build_report
from rlhf.compare.statistics import Bootstrap
from rlhf.compare.study import Study
from rlhf.records import Prompt, Response

RESULTS = Path(__file__).parent / "results" / "compare_statistics.json"
# A part, the file and the function that it is spent in. What is indented is within what stands above it.
PARTS = (
    ("win rates of pairs", "statistics.py", "compare_all"),
    ("policies", "report.py", "_policy_numbers"),
    ("standing", "standing.py", "build"),
    ("  at equal length and style", "length_control.py", "controlled_rates"),
    ("  markdown counted", "length_control.py", "mean_markdown"),
    ("  scale", "scale.py", "policy_scale"),
    ("  sign test", "paired.py", "sign_test"),
    ("  permutation test", "paired.py", "permutation_test"),
    ("  prompts to decide", "paired.py", "prompts_to_decide"),
    ("agreement", "agreement.py", "build"),
    ("what replies are like", "quality.py", "build"),
    ("frontier", "frontier.py", "build"),
)


def main() -> None:
    """Make the study up, build its report twice, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--policies", type=int, default=10)
    parser.add_argument("--ties", type=float, default=0.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    study = made_up(arguments.prompts, arguments.policies, arguments.ties)
    started, worked = time.perf_counter(), time.process_time()
    build_report(study)
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
    result = {
        "setup": {
            "num_prompts": arguments.prompts,
            "num_policies": arguments.policies,
            "num_judges": 2,
            "num_responses": 1,
            "num_bootstrap": study.bootstrap.num_bootstrap,
            "ties": arguments.ties,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "load": os.getloadavg()[0],
            "versions": {name: version(name) for name in ("numpy", "scipy")},
        },
        "seconds": round(seconds, 2),
        "processor_seconds": round(worked, 2),
        "peak_gib": round(peak, 2),
        "parts": {part: round(share * seconds, 2) for part, share in shares(study).items()},
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


def made_up(num_prompts: int, num_policies: int, ties: float, seed: int = 0) -> Study:
    """A study of policies that grow better and longer, before two judges that like what is longer."""
    generator = np.random.default_rng(seed)
    prompts = [Prompt(f"p{at}", [{"role": "user", "content": f"Question {at}"}]) for at in range(num_prompts)]
    answers, rows = [], []
    for policy in range(num_policies):
        tokens = np.maximum(1, generator.normal(100 + 3 * policy, 30, num_prompts)).astype(int)
        name = "sft" if policy == 0 else f"policy{policy}"
        answers.append(Answers(name, [[_response(generator, name, at, n)] for at, n in enumerate(tokens.tolist())]))
        rows.append(0.05 * policy + 0.005 * tokens)
    hard = generator.normal(0, 1, num_prompts)
    true = np.stack(rows) - hard
    scores = {judge: true + generator.normal(0, 1, true.shape) for judge in ("gold", "reward_model")}
    if ties:
        scores["gold"] = _grades(scores["gold"], ties)
    names = [one.name for one in answers]
    settings = {"policies": names, "baseline": "sft", "judges": list(scores), "decided_by": "gold", "confidence": 0.95}
    by_judge = {key: one[:, :, None] for key, one in scores.items()}
    return Study(prompts, answers, by_judge, Bootstrap([prompt.id for prompt in prompts]), settings)


def _response(generator: np.random.Generator, name: str, at: int, num_tokens: int) -> Response:
    headings, items, bold = generator.poisson([0.3, 1.0, 0.5]).tolist()
    words = "word " * max(0, num_tokens - 3 * (headings + items + bold))
    text = "# Heading\n" * headings + "- an item\n" * items + "**bold** " * bold + words
    sampling = {"num_tokens": num_tokens, "finished": bool(generator.random() < 0.95), "kl": 0.1 * num_tokens}
    return Response(f"{name}-{at}", f"p{at}", text, "made-up", sampling)


def _grades(scores: NDArray[np.float64], ties: float) -> NDArray[np.float64]:
    """The scores cut into as many equal shares as leave about this share of pairs with the same grade."""
    edges = np.quantile(scores, np.linspace(0, 1, max(2, round(1 / ties)) + 1)[1:-1])
    return np.searchsorted(edges, scores).astype(float)


def shares(study: Study) -> dict[str, float]:
    """Each part's share of the report's time, under the profiler."""
    profiler = cProfile.Profile()
    profiler.runcall(build_report, study)
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    cumulative = {(Path(file).name, function): row[3] for (file, _, function), row in stats.items()}
    total = cumulative["report.py", "build_report"]
    found: dict[str, float] = {part: cumulative.get((file, function), 0) / total for part, file, function in PARTS}
    return found | {"else": 1 - sum(share for part, share in found.items() if not part.startswith(" "))}


def table(result: dict[str, Any]) -> str:
    """Seconds by part, as Markdown."""
    setup = result["setup"]
    lines = [
        f"{setup['num_prompts']:,} prompts, {setup['num_policies']} policies, {setup['num_judges']} judges, "
        f"{setup['num_bootstrap']:,} resamples: {result['seconds']} s "
        f"({result['processor_seconds']} s of processors), {result['peak_gib']} GiB at most",
        "",
        "| part | seconds |",
        "| --- | ---: |",
    ]
    lines += [f"| {part.replace('  ', '&nbsp;&nbsp;')} | {seconds} |" for part, seconds in result["parts"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
