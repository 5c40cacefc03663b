"""What replies are like, and what alignment cost: fluency, repetition, known answers, calibration, held-out loss."""
