"""What `rlhf dpo` does beside its updates: the KL to the reference on fresh replies, whole logits and all."""

from typing import TYPE_CHECKING, Any

import torch

from rlhf.planner.dry_run import Peak, dry_forward, placed, shapes_only, without_data
from rlhf.planner.options import Setting

if TYPE_CHECKING:
    from rlhf.planner.stages import Stage

_ON_CPU = 32  # sequences at a time there (rlhf.models.scoring_batch)


def kl(stage: "Stage", setting: Setting) -> Peak:
    """The worst moment of `rlhf.likelihood.reply_kl`: the logits of policy and reference on a batch of replies."""
    return stage.over_layers(lambda config: _run(stage, config, setting))


def _run(stage: "Stage", config: Any, setting: Setting) -> Peak:
    rows = min(stage.training.per_device_eval_batch_size, stage.data.num_kl_prompts)
    rows = rows if stage.on_gpu else min(rows, _ON_CPU)
    length = stage.length
    reply = min(stage.data.max_new_tokens, length - 1)
    with shapes_only():
        model = stage.policy(config, stage.trained_dtype(setting)).eval()
    with without_data():
        placed(model)
        ids = torch.zeros(rows, length, dtype=torch.long)
        mask = torch.ones(rows, 1, length, length, dtype=torch.bool)
        at = torch.arange(length - 1 - reply, length - 1).repeat(rows)
        kept = torch.arange(rows).repeat_interleave(reply, output_size=rows * reply), at

        def logps() -> torch.Tensor:
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1][kept].float()
            return torch.log_softmax(logits / 1.0, dim=-1)

        def measure() -> torch.Tensor:
            mine = logps()
            theirs = logps()
            return (mine.exp() * (mine - theirs)).sum(-1)

        return dry_forward(measure, model, stage.widths())
