"""Reward against KL: how much gold each run has at each distance from the start, and which has more at equal KL.

A point is one policy (a checkpoint, or one setting of a sweep) measured on the same prompts as all others.
Intervals resample prompts; they say nothing of how another training seed would have turned out.
"""
