"""How a PPO checkpoint lies on disk: the policy as a plain Hugging Face folder, the rest beside it."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate.utils import gather_object
from transformers import Trainer

from rlhf.errors import UserError
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.networks import VALUE_ADAPTER
from rlhf.ppo.state import PPOState

_STATE = "ppo_state.json"
_VALUE = "value"
_HEAD = "value_head.safetensors"
_EMA = "ema.safetensors"
_REFERENCE = "reference.safetensors"


class Checkpoints(Trainer):
    """The part of PPOTrainer that saves and loads.

    A folder holds the policy (with its tokenizer, loadable without this project), `value/` (the value
    model, or its head and adapter), and in checkpoints also ppo_state.json beside what Trainer saves.
    """

    args: PPOConfig
    model: Any
    model_wrapped: Any
    processing_class: Any
    ppo: PPOState
    average: Any
    reference: Any

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        networks = self.model
        parts: dict[str, Any] = {"policy": None, "value_model": None}
        if state_dict is not None:  # sharded weights come gathered
            for name in parts:
                parts[name] = {k[len(name) + 1 :]: v for k, v in state_dict.items() if k.startswith(f"{name}.")}
        adapters = {"selected_adapters": ["default"]} if hasattr(networks.policy, "peft_config") else {}
        networks.policy.save_pretrained(folder, state_dict=parts["policy"], **adapters)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        value = folder / _VALUE
        value.mkdir(exist_ok=True)
        if networks.kind == "separate":
            networks.value_model.save_pretrained(value, state_dict=parts["value_model"])
            return
        weight = networks.value_head.weight if state_dict is None else state_dict["value_head.weight"]
        safetensors.torch.save_file({"weight": weight.detach().cpu().contiguous()}, value / _HEAD)
        if networks.kind == "adapter":
            networks.policy.save_pretrained(value, state_dict=parts["policy"], selected_adapters=[VALUE_ADAPTER])

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """As Trainer's, so that on the Hub the policy is found under what made it."""
        kwargs["tags"] = [*(kwargs.get("tags") or []), "rlhf", "ppo"]
        super().create_model_card(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder, networks = Path(resume_from_checkpoint), self.model
        if hasattr(networks.policy, "peft_config"):
            _load_adapter(networks.policy, folder, "default")
        else:
            networks.policy.load_state_dict(_weights(networks.policy, folder))
        if networks.kind == "separate":
            networks.value_model.load_state_dict(_weights(networks.value_model, folder / _VALUE))
            return
        networks.value_head.load_state_dict(safetensors.torch.load_file(folder / _VALUE / _HEAD))
        if networks.kind == "adapter":
            _load_adapter(networks.policy, folder / _VALUE / VALUE_ADAPTER, VALUE_ADAPTER)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if not self.args.should_save:
            return
        folder = Path(output_dir)
        self.ppo.save(folder / _STATE)
        if self.average is not None:
            safetensors.torch.save_file(self.average.weights, folder / _EMA)
        if self.args.ref_ema_decay is not None:
            weights = {name: p.detach().clone() for name, p in self.reference.model.named_parameters()}
            safetensors.torch.save_file(weights, folder / _REFERENCE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        if not (folder / _STATE).is_file():
            raise UserError(f"{folder}: has no {_STATE}; it is no PPO checkpoint, resume from another")
        self.ppo = PPOState.load(folder / _STATE)
        if self.average is not None:
            self.average.load(safetensors.torch.load_file(folder / _EMA))
        if self.args.ref_ema_decay is not None:
            weights = safetensors.torch.load_file(folder / _REFERENCE)
            with torch.no_grad():
                for name, parameter in self.reference.model.named_parameters():
                    parameter.copy_(weights[name])

    def save_before_end(self) -> None:
        """Save a checkpoint of the last whole round, where there is none yet: the training is about to stop.

        Of the ranks all must call it, or none.
        """
        step = self.state.global_step
        if not self.is_in_train or step == 0 or self.args.save_strategy == "no":
            return
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{step}"
        if not any(gather_object([folder.is_dir()])):  # asked on all ranks before the first of them makes it
            self._save_checkpoint(self.model_wrapped, None)


def _weights(model: Any, folder: Path) -> dict[str, Any]:
    """A checkpoint's weights under the model's own names, tied ones included."""
    return type(model).from_pretrained(folder, dtype=model.dtype).state_dict()


def _load_adapter(policy: Any, folder: Path, name: str) -> None:
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(policy, load_peft_weights(str(folder), device="cpu"), adapter_name=name)
