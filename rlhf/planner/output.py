"""The chosen setting as files: a DeepSpeed config, the flags that go with it, the plan as JSON."""

import json
from pathlib import Path
from typing import Any

from rlhf.config import packaged
from rlhf.planner.memory import bucket
from rlhf.planner.options import Setting
from rlhf.planner.plan import Plan
from rlhf.planner.ppo_stage import needs_ref_model
from rlhf.planner.table import as_json
from rlhf.records import write_whole


def flags(setting: Setting, verb: str, deepspeed: str | None = None) -> list[str]:
    """The verb's flags that make a run have this setting."""
    chosen = ["--gradient_checkpointing", "true" if setting.checkpointing else "false"]
    if verb == "ppo":
        chosen += ["--micro_batch_tokens", str(setting.micro_batch)]
    else:
        chosen += ["--per_device_train_batch_size", str(setting.micro_batch)]
        chosen += ["--gradient_accumulation_steps", str(setting.accumulation)]
    return chosen + (["--deepspeed", deepspeed] if deepspeed else [])


def deepspeed_config(setting: Setting, num_trained: int) -> dict[str, Any] | None:
    """launch/zeroN.json with what this setting adds; None where DeepSpeed has nothing to do."""
    if not setting.deepspeed:
        return None
    config = json.loads(packaged(f"launch/zero{setting.zero}.json").read_text(encoding="utf-8"))
    sharding = config["zero_optimization"]
    if setting.zero < 3:
        # The buffer is there whole whatever the model's size; DeepSpeed's default takes 1 GB in 16 bits.
        sharding["reduce_bucket_size"] = bucket(num_trained)
    if setting.offload != "none":
        sharding["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if setting.offload == "params":
        sharding["offload_param"] = {"device": "cpu", "pin_memory": True}
    return config


def write(plan: Plan, folder: Path) -> list[Path]:
    """`plan.json`, `flags.txt` and, with sharding, `deepspeed.json` in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    setting, written = plan.chosen.setting, []

    def put(name: str, text: str) -> Path:
        write_whole(folder / name, [text, "\n"])
        written.append(folder / name)
        return folder / name

    put("plan.json", json.dumps(as_json(plan), indent=2))
    trained = sum(model.count.trained for model in plan.stage.held if model.how == "trained")
    config = deepspeed_config(setting, trained)
    path = str(put("deepspeed.json", json.dumps(config, indent=2))) if config else None
    chosen = flags(setting, plan.stage.verb, path)
    if plan.stage.verb == "ppo" and needs_ref_model(plan.stage, setting):
        chosen += ["--ref_model", plan.stage.path]
    put("flags.txt", " ".join(chosen))
    return written
