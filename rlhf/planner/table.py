"""A plan as a table for people and as JSON for programs."""

from dataclasses import asdict
from typing import Any

from rlhf.planner.memory import GIB, MARGIN, Account
from rlhf.planner.options import Setting
from rlhf.planner.plan import Plan
from rlhf.planner.ppo_stage import needs_ref_model

_SHOWN = 12  # rows of the table of settings


def words(setting: Setting, verb: str, batch: bool = True) -> str:
    """A setting in a few words, with or without its micro-batch."""
    sharding = f"ZeRO-{setting.zero}" if setting.zero else "no sharding"
    parts = [sharding]
    if setting.checkpointing:
        parts.append("gradient checkpointing")
    if setting.offload != "none":
        parts.append("offloaded optimizer" if setting.offload == "optimizer" else "offloaded parameters and optimizer")
    if batch and verb == "ppo":
        parts.append(f"{setting.micro_batch:,} tokens at a time")
    elif batch:
        parts.append(f"micro-batch {setting.micro_batch} x {setting.accumulation}")
    return ", ".join(parts)


def verdict(plan: Plan) -> str:
    """Whether it fits, in one sentence, and what to do where it does not."""
    peak, room = plan.chosen.peak / GIB, plan.memory * (1 - MARGIN)
    what = f"{plan.stage.verb} at {plan.stage.length:,} tokens"
    if plan.search.fits:
        return (
            f"{what} fits: {peak:.2f} of {plan.memory:g} GiB at its peak ({plan.chosen.worst.phase}), "
            f"{MARGIN:.0%} kept free"
        )
    mends = ["more GPUs"] if plan.options.gpus else ["GPUs"]
    if plan.chosen.setting.zero == 3 and plan.chosen.worst.phase in ("rollout", "scoring", "KL"):
        mends = ["GPUs with more memory (the weights are whole there meanwhile, however many share them)"]
    mends += ["--num_kl_prompts 0"] if plan.chosen.worst.phase == "KL" else []
    mends += [] if plan.stage.lora else ["LoRA (--use_peft true)"]
    if plan.stage.verb == "ppo" and plan.stage.training.value_model_kind == "separate":
        mends.append("--value_model_kind shared")
    mends += ["shorter sequences (--length)"]
    if plan.options.zero != "auto":
        mends.append("--zero auto")
    return (
        f"{what} does not fit: the least is {peak:.2f} GiB ({words(plan.chosen.setting, plan.stage.verb)}), and "
        f"{room:.2f} of {plan.memory:g} GiB may be used; try {', '.join(mends)}"
    )


def reason(plan: Plan) -> str:
    """Why this setting: what the one before it needed."""
    before = [peak for setting, peak, _ in plan.search.tried if setting != plan.chosen.setting]
    if not plan.search.fits:
        return ""
    if not before:
        return "the first setting that was tried fits: the cheapest"
    cheaper = "the cheaper setting needs" if len(before) == 1 else f"the {len(before)} cheaper settings need"
    return f"{cheaper} {min(before) / GIB:.2f} GiB{' or more' if len(before) > 1 else ''}"


def as_json(plan: Plan) -> dict[str, Any]:
    """All of the plan in plain values; memory in bytes."""
    stage, options = plan.stage, plan.options
    return {
        "verb": stage.verb,
        "model": getattr(stage.model_config, "model_name_or_path", None),
        "gpus": options.gpus,
        "nodes": options.nodes,
        "gpu_memory": plan.memory,
        "length": stage.length,
        "models": [asdict(model) for model in stage.held],
        "fits": plan.search.fits,
        "verdict": verdict(plan),
        "reason": reason(plan),
        "chosen": _account(plan.chosen),
        "without_offload": _account(plan.search.without_offload) if plan.search.without_offload else None,
        "tried": [
            {"setting": asdict(setting), "peak": peak, "lower_bound": not exact}
            for setting, peak, exact in plan.search.tried
        ],
        "duration": asdict(plan.duration) if plan.duration else None,
    }


def show(plan: Plan) -> None:
    """Print the plan."""
    from rich.console import Console

    console = Console()
    console.print(_parts(plan))
    console.print(_tried(plan))
    for line in _lines(plan):
        console.print(line, highlight=False, soft_wrap=True)


def _account(account: Account) -> dict[str, Any]:
    return {
        "setting": asdict(account.setting),
        "peak": account.peak,
        "phase": account.worst.phase,
        "host": account.host,
        "moments": [
            {"phase": moment.phase, "total": moment.total, "parts": [asdict(part) for part in moment.parts]}
            for moment in account.moments
        ],
    }


def _parts(plan: Plan) -> Any:
    """What a GPU holds: a row a part, a column a phase."""
    from rich.table import Table

    moments = plan.chosen.moments
    place = "a GPU" if plan.options.gpus else "the process"
    table = Table(title=f"GiB on {place}: {words(plan.chosen.setting, plan.stage.verb)}", title_justify="left")
    table.add_column("model", style="dim")
    table.add_column("part")
    for moment in moments:
        table.add_column(moment.phase, justify="right")
    held = [{(part.model, part.kind): part.bytes for part in moment.parts} for moment in moments]
    for key in dict.fromkeys(key for each in held for key in each):
        table.add_row(*key, *(f"{each[key] / GIB:.2f}" if key in each else "" for each in held))
    table.add_section()
    worst = plan.chosen.worst
    totals = [f"[bold]{m.total / GIB:.2f}[/]" if m is worst else f"{m.total / GIB:.2f}" for m in moments]
    table.add_row("", "sum", *totals)
    return table


def _tried(plan: Plan) -> Any:
    from rich.table import Table

    table = Table(title="tried, cheapest first", title_justify="left")
    table.add_column("setting")
    table.add_column("GiB", justify="right")
    table.add_column("")
    room, tried = plan.memory * (1 - MARGIN), plan.search.tried
    shown = (
        tried if len(tried) <= _SHOWN else [*tried[: _SHOWN - 1], *(t for t in tried if t[0] == plan.chosen.setting)]
    )
    batches = len({setting.micro_batch for setting, _, _ in tried}) > 1
    for setting, peak, exact in shown:
        size = peak / GIB
        table.add_row(
            words(setting, plan.stage.verb, batches),
            f"{'' if exact else '> '}{size:.2f}",
            "fits" if size <= room else "too much",
        )
    return table


def _lines(plan: Plan) -> list[str]:
    stage = plan.stage
    lines = [verdict(plan)] if plan.search.fits else []
    lines += [reason(plan)] if reason(plan) else []
    if plan.search.without_offload:
        other = plan.search.without_offload
        lines.append(f"without offloading, and faster, fits too: {words(other.setting, plan.stage.verb)}")
    if stage.verb == "ppo" and needs_ref_model(stage, plan.chosen.setting):
        lines.append(f"with ZeRO-3 name the reference: --ref_model {stage.path}")
    if plan.chosen.host:
        lines.append(f"host memory: {plan.chosen.host / GIB:.2f} GiB a rank")
    if plan.duration:
        time = plan.duration
        cost = "" if time.cost is None else f", {time.cost:,.2f} at {plan.options.price:g} a GPU-hour"
        lines.append(
            f"at most {time.tokens:,} tokens at {time.tokens_per_second:,.0f} a second and GPU ({time.source}): "
            f"{time.hours:.2f} hours, {time.gpu_hours:.2f} GPU-hours{cost}"
        )
    return lines
