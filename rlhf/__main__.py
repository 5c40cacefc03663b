"""`python -m rlhf`, so that torchrun and `accelerate launch` can start any verb."""

import sys

from rlhf.cli import main

if __name__ == "__main__":
    main()
    if training := sys.modules.get("rlhf.training"):  # not where the verb had no need of it
        training.leave()
