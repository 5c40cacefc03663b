"""Will it fit, and how long will it take: memory of a training stage by part, before anything is loaded.

Nothing here is a formula for what a layer keeps. The stage's own networks and loss run on tensors without data
(PyTorch's FakeTensorMode), every storage that they make is counted, and only what sharding does to the sums is
arithmetic (Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models").
"""
