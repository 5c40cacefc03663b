"""alpaca_eval 0.6.6 on given studies, in its own environment: `PYTHON benchmarks/alpaca_eval_peer.py IN.json OUT.json`.

benchmarks/alpaca_eval_parity.py makes the environment and starts this in it. Its two functions behind the leaderboard
run as they are: `get_winrate`, and `get_length_controlled_winrate` with its own formulas. From the network it would
fetch each instruction's difficulty; it gets the study's instead. Its made-up comparisons with models that game length
come from there too, so the formulas are those without them.
"""

import json
import logging
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

# In the environment that alpaca_eval_parity.py makes, and in no other.
from alpaca_eval import metrics  # type: ignore[import-not-found]

MINIMAL, WITH_DIFFICULTY = "length_controlled_minimal", "length_controlled_noreg"


def main() -> None:
    """Read the studies, write its numbers for each."""
    logging.disable(logging.WARNING)  # that win rates move by much is what the studies are made for
    studies = json.loads(Path(sys.argv[1]).read_text())
    with TemporaryDirectory() as folder:
        found = {name: numbers(study, Path(folder) / "df_gamed.csv") for name, study in studies.items()}
    Path(sys.argv[2]).write_text(json.dumps(found))


def numbers(study: dict[str, list[float]], file: Path) -> dict[str, float]:
    """Win rates in percent: as it is, controlled as it comes, and controlled without its penalty."""
    count = len(study["wins"])
    hard = study.get("difficulty", [0.0] * count)
    pd.DataFrame({"model": "", "index": range(count), "instruction_difficulty": hard}).to_csv(file, index=False)
    module: Any = sys.modules["alpaca_eval.metrics.glm_winrate"]
    module.hf_hub_download = lambda *_, **__: str(file)
    formula = WITH_DIFFICULTY if "difficulty" in study else MINIMAL
    free = module.GLM_INFO[formula] | {"kwargs": {"n_splits": 0, "C": 1e9, "tol": 1e-10, "max_iter": 100_000}}
    told = metrics.get_winrate(frame(study))
    return {
        "win_rate": told["win_rate"],
        "standard_error": told["standard_error"],
        "controlled": controlled(study, formula, None),
        "controlled_free": controlled(study, formula, free),
    }


def controlled(study: dict[str, list[float]], formula: str, info: dict[str, Any] | None) -> float:
    """Its length-controlled win rate in percent."""
    told = metrics.get_length_controlled_winrate(
        frame(study), glm_name=formula, glm_info=info, save_weights_dir=None, is_add_glm_preference_inplace=False
    )
    return float(told["length_controlled_winrate"])


def frame(study: dict[str, list[float]]) -> pd.DataFrame:
    """A study as its annotations: preference 1 for the baseline, 2 for the model; lengths are those of texts."""
    return pd.DataFrame(
        {
            "index": range(len(study["wins"])),
            "preference": [1 + win for win in study["wins"]],
            "output_1": ["x" * int(length) for length in study["b_lengths"]],
            "output_2": ["x" * int(length) for length in study["a_lengths"]],
            "generator_1": "baseline",
            "generator_2": "model",
            "annotator": "judge",
        }
    )


if __name__ == "__main__":
    main()
