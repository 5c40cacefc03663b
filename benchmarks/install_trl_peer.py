"""TRL 1.12.0, the last TRL with a PPO trainer, in a folder of its own, to be measured beside ours.

    python benchmarks/install_trl_peer.py [--folder runs/trl-1.12]

It comes without its dependencies: it runs on the transformers of this environment, in a process that has
the folder first on its path (benchmarks/trl_peer.py). The environment's own TRL stays as it is.
"""

import argparse
import subprocess
import sys
from pathlib import Path

VERSION = "1.12.0"
FOLDER = Path("runs/trl-1.12")


def install(folder: Path = FOLDER, version: str = VERSION) -> Path:
    """Make the folder where it is missing; returns it."""
    if not (folder / f"trl-{version}.dist-info").exists():
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q", "--no-deps"]
        subprocess.run([*command, "--target", str(folder), f"trl=={version}"], check=True)
    return folder


def main() -> None:
    """Install and say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    print(install(parser.parse_args().folder))


if __name__ == "__main__":
    main()
