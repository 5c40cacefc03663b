"""The cheapest setting that fits: the first of an order in which each next one costs more time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rlhf.planner.memory import GIB, MARGIN, Account, account, least
from rlhf.planner.options import PlanOptions, Setting
from rlhf.planner.stages import Stage


@dataclass(frozen=True)
class Search:
    """What was tried.

    Args:
        chosen: the first that fits, else the one that needs least.
        fits: whether it does.
        tried: settings with the bytes of their peak, in the order of the search; a lower bound where `exact` is false.
        without_offload: where the chosen one offloads: the first with a smaller micro-batch that need not.
    """

    chosen: Account
    fits: bool
    tried: tuple[tuple[Setting, int, bool], ...]
    without_offload: Account | None = None


def search(stage: Stage, options: PlanOptions, memory: float) -> Search:
    """Go through `settings` until one needs no more than `memory` GiB less the margin."""
    room = memory * GIB * (1 - MARGIN)
    tried: list[tuple[Setting, int, bool]] = []
    passed_over: dict[tuple[int, str], tuple[Setting, int]] = {}
    best: Account | None = None
    for setting in settings(stage, options):
        bound = least(stage, setting, options)
        if bound > room and best is not None:
            tried.append((setting, bound, False))
            passed_over[setting.zero, setting.offload] = setting, bound  # the last of a kind needs least
            continue
        found = account(stage, setting, options)
        tried.append((setting, found.peak, True))
        if best is None or found.peak < best.peak:
            best = found
        if found.peak <= room:
            return Search(found, True, tuple(tried), _without_offload(stage, options, found, room))
    assert best is not None
    for setting, bound in sorted(passed_over.values(), key=lambda each: each[1]):
        if bound < best.peak:  # what is said to be the least must not be only the first
            best = min(best, account(stage, setting, options), key=lambda each: each.peak)
    return Search(best, False, tuple(tried))


def settings(stage: Stage, options: PlanOptions) -> Iterator[Setting]:
    """No sharding, ZeRO-1, 2, 3; then these with gradient checkpointing; with offloading; with less at a time.

    The global batch stays: half the micro-batch is twice the accumulation.
    """
    start = stage.start()
    for micro, accumulation in _micro_batches(stage, start):
        for offload in _offloads(options):
            for checkpointing in _checkpointing(stage, start):
                for zero in _stages(options, offload):
                    yield replace(
                        start,
                        zero=zero,
                        offload=offload,
                        checkpointing=checkpointing,
                        micro_batch=micro,
                        accumulation=accumulation,
                    )


def _stages(options: PlanOptions, offload: str) -> list[int]:
    able = {"none": [0, 1, 2, 3], "optimizer": [2, 3], "params": [3]}[offload]
    if options.zero != "auto":
        return [zero for zero in able if zero == int(options.zero)]
    # Alone there is nobody to share with.
    return [0] if options.ranks == 1 and offload == "none" else able


def _offloads(options: PlanOptions) -> list[str]:
    order = ["none", "optimizer", "params"]
    if options.gpus == 0:
        return ["none"]
    return order[order.index(options.offload) :]


def _checkpointing(stage: Stage, start: Setting) -> list[bool]:
    if start.checkpointing:
        return [True]
    if stage.verb == "ppo" and stage.training.value_model_kind == "adapter":
        return [False]  # it would recompute under the wrong adapter
    return [False, True]


def _micro_batches(stage: Stage, start: Setting) -> Iterator[tuple[int, int]]:
    micro, accumulation = start.micro_batch, start.accumulation
    least_of_all = stage.length if stage.verb == "ppo" else 1
    yield micro, accumulation
    while micro % 2 == 0 and micro // 2 >= least_of_all:
        micro //= 2
        accumulation = accumulation * 2 if stage.verb != "ppo" else accumulation
        yield micro, accumulation


def _without_offload(stage: Stage, options: PlanOptions, chosen: Account, room: float) -> Account | None:
    if chosen.setting.offload == "none" or options.offload != "none":
        return None
    for setting in settings(stage, options):
        if setting.offload != "none" or least(stage, setting, options) > room:
            continue
        if (found := account(stage, setting, options)).peak <= room:
            return found
    return None
