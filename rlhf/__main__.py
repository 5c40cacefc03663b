"""`python -m rlhf`, so that torchrun and `accelerate launch` can start any verb."""

from rlhf.cli import main

if __name__ == "__main__":
    main()
