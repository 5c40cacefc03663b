"""Classic RLHF, whole: rank responses, learn a reward, train PPO and DPO, compare them honestly."""

__version__ = "0.1.0"
