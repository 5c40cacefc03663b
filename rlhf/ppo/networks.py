"""The trained pair of policy and value model, and the log-probabilities of tokens without whole logits."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf.decoding import Note
from rlhf.errors import UserError
from rlhf.layers import causal, logits_of, trunk
from rlhf.packing import packed_hidden, packs_rows

# Logits held at a time: more are computed in pieces, and once again in the backward pass.
MAX_LOGITS = 2**24
MAX_LOGITS_GPU = 2**28  # 1 GB in float32; a GPU is idle on pieces of a hundred tokens
VALUE_ADAPTER = "value"


class PolicyAndValue(nn.Module):
    """Policy and value model as one module, so that one optimizer, one DDP or one DeepSpeed engine holds both.

    Args:
        policy: a causal language model, a PEFT one included.
        kind: `separate` (its own weights), `shared` (a head on the policy's trunk) or `adapter` (a
            second LoRA, named `value`, on the policy's weights).
        value_model: a sequence classifier with one label, for `separate`.
    """

    def __init__(self, policy: Any, kind: str, value_model: Any = None) -> None:
        super().__init__()
        self.policy = policy
        self.kind = kind
        self.value_model = value_model
        self.value_head: nn.Linear | None = None
        if kind != "separate":
            embedding = policy.get_input_embeddings().weight
            self.value_head = nn.Linear(policy.config.get_text_config().hidden_size, 1, bias=False)
            nn.init.zeros_(self.value_head.weight)  # the first values are 0, and so is their noise
            self.value_head.to(device=embedding.device, dtype=torch.float32)

    @property
    def config(self) -> Any:
        """The policy's config: what Trainer and DeepSpeed ask sizes of."""
        return self.policy.config

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        return bool(self.policy.is_gradient_checkpointing)

    def forward(
        self,
        input_ids: Tensor,
        keep: Tensor,
        temperature: float,
        detach_value: bool = False,
        entropy: bool = False,
        part: str = "both",
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability of each kept token, the value of the state before it, and the entropy there.

        All `(tokens,)` float32; the entropy, in nats, is empty unless asked for.

        Args:
            input_ids: `(batch, time)`, padded on the right: causal attention then needs no mask.
            keep: `(batch, time - 1)`, true where the next token is one of the reply's.
            temperature: the logits are divided by it.
            detach_value: keep the value loss out of the policy's trunk.
            entropy: whether to compute it.
            part: `policy` leaves the values out and `value` the rest (empty tensors), where they have
                a forward pass each.
        """
        hidden = logps = values = spread = torch.zeros(0, device=input_ids.device)
        if part != "value":
            hidden, logits = kept_hidden(self.policy, input_ids, keep), logits_of(self.policy)
            targets = input_ids[:, 1:][keep]
            if entropy:
                logps, spread = token_logps_and_entropy(logits, hidden, targets, temperature)
            else:
                logps = token_logps(logits, hidden, targets, temperature)
        if part != "policy":
            values = self._values(input_ids, keep, hidden.detach() if detach_value else hidden)
        return logps, values, spread

    def _values(self, input_ids: Tensor, keep: Tensor, hidden: Tensor) -> Tensor:
        if self.kind == "separate":
            hidden = kept_hidden(self.value_model, input_ids, keep)
            return score_head(self.value_model)(hidden).squeeze(-1).float()
        if self.kind == "adapter":
            with active_adapter(self.policy, VALUE_ADAPTER):
                hidden = kept_hidden(self.policy, input_ids, keep)
        return self._head(hidden)

    def _head(self, hidden: Tensor) -> Tensor:
        assert self.value_head is not None
        return self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1).float()

    def note(self, temperature: float) -> Note:
        """What the decode loop keeps of a token for PPO: its log-probability, the entropy there, a shared head's value.

        As `forward` gives them, but for rounding; `(batch, 2)`, or 3 with the value.
        """

        def keep(hidden: Tensor, logits: Tensor, drawn: Tensor) -> Tensor:
            figures = logps_and_entropy(logits, drawn, temperature)
            return torch.stack([*figures, *([self._head(hidden)] if self.kind == "shared" else [])], dim=1)

        return keep

    @property
    def packs_rows(self) -> bool:
        """Whether rows of unlike length go through it without padding (rlhf/packing.py)."""
        return all(packs_rows(model) for model in (self.policy, self.value_model) if model is not None)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """Recompute activations in the backward pass, in both models."""
        if self.kind == "adapter":
            raise UserError(
                "gradient_checkpointing: recomputes under the wrong adapter with value_model_kind adapter; "
                "set --gradient_checkpointing false, or --value_model_kind shared"
            )
        for model in (self.policy, self.value_model):
            if model is not None:
                model.gradient_checkpointing_enable(**kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations."""
        for model in (self.policy, self.value_model):
            if model is not None:
                model.gradient_checkpointing_disable()

    def value_parameters(self) -> list[nn.Parameter]:
        """The weights that only the value has: they may have a learning rate of their own."""
        if self.kind == "separate":
            return list(self.value_model.parameters())
        assert self.value_head is not None
        found = list(self.value_head.parameters())
        if self.kind == "adapter":
            found += [p for name, p in self.policy.named_parameters() if f".{VALUE_ADAPTER}." in name]
        return found


def score_head(classifier: Any) -> Any:
    """The last layer of a sequence classifier."""
    model = causal(classifier)
    head = getattr(model, "score", None) or getattr(model, "classifier", None)
    if not isinstance(head, nn.Module):
        raise UserError(f"value model: {type(model).__name__} has no `score` layer; use --value_model_kind shared")
    return head


def kept_hidden(model: Any, input_ids: Tensor, keep: Tensor) -> Tensor:
    """The last hidden states that predict the kept tokens, `(tokens, hidden)`; what lies behind these is left out."""
    if packs_rows(model):
        return packed_hidden(model, input_ids[:, :-1], keep)
    hidden = trunk(model)(input_ids=input_ids, use_cache=False).last_hidden_state
    return hidden[:, :-1][keep]


def token_logps(logits: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """log softmax(logits(hidden)/temperature) at the targets, `(tokens,)`, float32.

    Never more than MAX_LOGITS logits at a time (on a GPU MAX_LOGITS_GPU): longer inputs go in pieces, whose logits
    are made again in the backward pass instead of kept.
    """

    def piece(hidden: Tensor, targets: Tensor) -> Tensor:
        return -nn.functional.cross_entropy(_scaled(logits(hidden), temperature), targets, reduction="none")

    size = _piece(logits, hidden)
    if len(hidden) <= size:
        return piece(hidden, targets)
    pieces = zip(hidden.split(size), targets.split(size), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([piece(h, t) for h, t in pieces])
    return torch.cat([checkpoint(piece, h, t, use_reentrant=False) for h, t in pieces])  # type: ignore[misc]


def token_logps_and_entropy(
    logits: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """`token_logps`, and the entropy of each token's distribution in nats, from the same logits; not to train on."""
    size = _piece(logits, hidden)
    pieces = [
        torch.stack(logps_and_entropy(logits(part), tokens, temperature))
        for part, tokens in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    logps, entropies = torch.cat(pieces, dim=1)
    return logps, entropies


def logps_and_entropy(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log softmax(logits/temperature) at the targets, and the entropy in nats; `(tokens,)` float32 each."""
    each = torch.log_softmax(_scaled(logits, temperature), dim=-1)
    return each.gather(1, targets[:, None]).squeeze(1), -(each.exp() * each).sum(-1)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """In float32; at temperature 1 they are as they are, and the whole vocabulary need not be gone over."""
    return logits.float() if temperature == 1.0 else logits.float() / temperature


def _piece(logits: Callable[[Tensor], Tensor], hidden: Tensor) -> int:
    """How many tokens' logits are made at a time."""
    with torch.no_grad():
        vocabulary = logits(hidden[:1]).shape[-1] if len(hidden) else 1
    return max(1, (MAX_LOGITS_GPU if hidden.is_cuda else MAX_LOGITS) // vocabulary)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to 0: the same tokens must have the same log-probability at each look."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # attention layers keep theirs as a number
            if ("dropout" in name or name == "layerdrop") and isinstance(value, float):
                setattr(module, name, 0.0)


class Reference:
    """The policy as it was at the start, frozen.

    Args:
        kind: `copy`, `offload` (in host memory, on the device only while used) or `adapter_off` (the
            policy without its LoRA: no memory at all).
        policy: the policy; `copy` and `offload` copy it unless `model` is given.
        model: a causal language model to be the reference.
    """

    def __init__(self, kind: str, policy: Any, model: Any = None) -> None:
        if kind == "adapter_off" and not hasattr(policy, "peft_config"):
            raise UserError("reference: adapter_off needs LoRA (--use_peft true); set --reference copy")
        self.kind = kind
        self.policy = policy
        self.model = None
        if kind != "adapter_off":
            self.model = model if model is not None else copy.deepcopy(policy)
            self.model.requires_grad_(False).eval()

    def follow(self, policy: Any, decay: float) -> None:
        """Move the reference towards the policy: ref <- decay ref + (1 - decay) policy (Ramé et al. 2024, WARP)."""
        assert self.model is not None
        with torch.no_grad():
            for mine, theirs in zip(self.model.parameters(), policy.parameters(), strict=True):
                mine.lerp_(theirs.to(mine.device, mine.dtype), 1 - decay)

    @contextmanager
    def active(self, device: Any) -> Iterator[Any]:
        """The reference, ready for a forward pass on `device`, whole under ZeRO-3 too."""
        if self.model is None:
            trainable = [p for p in self.policy.parameters() if p.requires_grad]
            try:
                with self.policy.disable_adapter():
                    yield self.policy
            finally:
                for parameter in trainable:  # PEFT freezes all adapters but the active one as it switches back
                    parameter.requires_grad_(True)
            return
        self.model.to(device)
        with whole(self.model):
            yield self.model
        if self.kind == "offload":
            self.model.to("cpu")


@contextmanager
def whole(model: nn.Module, written: bool = False) -> Iterator[None]:
    """Gather the parameters of a model that ZeRO-3 has cut up; nothing to do for others.

    What is `written` to them meanwhile, the same on every rank, stays.
    """
    parameters = [p for p in model.parameters() if hasattr(p, "ds_id")]
    if not parameters:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if written else None):
        yield


@contextmanager
def active_adapter(policy: Any, name: str) -> Iterator[None]:
    """Switch a PEFT model to another adapter, and back; every adapter keeps learning."""
    before = policy.active_adapter
    trainable = [p for p in policy.parameters() if p.requires_grad]
    try:
        _switch(policy, name, trainable)
        yield
    finally:
        _switch(policy, before, trainable)


def _switch(policy: Any, name: str, trainable: list[nn.Parameter]) -> None:
    policy.set_adapter(name)
    for parameter in trainable:  # PEFT freezes the adapters that it switches off
        parameter.requires_grad_(True)
