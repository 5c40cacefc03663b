"""`rlhf launch`: a verb on many GPUs, checked before it starts and watched while it runs."""
