"""A forward and a backward pass on tensors without data, and how many bytes are alive at the worst moment."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


@dataclass(frozen=True)
class Peak:
    """Bytes alive at one moment, beside the weights: kept and temporary activations, logits, gradients."""

    activations: int = 0
    logits: int = 0
    gradients: int = 0

    @property
    def working(self) -> int:
        """Without the gradients."""
        return self.activations + self.logits

    def grown(self, other: "Peak", times: float) -> "Peak":
        """`self + times * (self - other)`: what more layers or rows add is what the last ones added."""

        def line(mine: int, theirs: int) -> int:
            return round(mine + times * max(0, mine - theirs))

        return Peak(
            line(self.activations, other.activations),
            line(self.logits, other.logits),
            line(self.gradients, other.gradients),
        )


@dataclass(frozen=True)
class Passes:
    """A step's worst moments.

    Args:
        alone: the most that is alive without gradients: what counts where these are there before (accumulation)
            or leave at once (ZeRO-2 and 3).
        mixed: the most that is alive with the gradients as they come.
        end: what is alive beside all gradients when the last of them is made.
        tail: the most that is alive without gradients once half of these are made.
    """

    alone: Peak
    mixed: Peak
    end: Peak
    tail: Peak

    def grown(self, other: "Passes", times: float) -> "Passes":
        """As Peak's, but for the end: the first layers' backward passes see what they see in the shallowest model.

        There gradients and kept activations cross: of deep models either the first moment of the backward pass is the
        worst (`alone`), or the last ones.
        """
        return Passes(self.alone.grown(other.alone, times), self.mixed.grown(other.mixed, times), other.tail, self.tail)


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, from when they are made until nothing holds them.

    Args:
        module: what runs; its weights are there before, and views of them are nothing new.
        widths: sizes of a last dimension that tell logits from other activations.
    """

    def __init__(self, module: nn.Module, widths: set[int]) -> None:
        super().__init__()
        self._there = [tensor.untyped_storage() for tensor in (*module.parameters(), *module.buffers())]
        self.widths = widths
        self.kinds: dict[int, str] = {id(storage): "weights" for storage in self._there}
        self.bytes = {"activations": 0, "logits": 0, "gradients": 0}
        self.alone = self.mixed = self.tail = Peak()
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._half = sum(parameter.untyped_storage().nbytes() for parameter in trained) // 2
        self._watched: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it made."""
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, out)
        return out

    def now(self) -> Peak:
        """What is alive."""
        return Peak(**self.bytes)

    def keep_as_gradient(self, parameter: Tensor) -> None:
        """A hook for parameters: their gradient's storage is one from now on."""
        gradient = parameter.grad
        assert gradient is not None
        storage = gradient.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if self.kinds.get(key, "gradients") != "gradients":
            self.bytes[self.kinds[key]] -= size
            self.bytes["gradients"] += size
            self.kinds[key] = "gradients"

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self.kinds:
            return
        kind = "logits" if tensor.ndim and tensor.shape[-1] in self.widths else "activations"

        def gone(_: Any) -> None:
            self.bytes[self.kinds.pop(key)] -= size
            del self._watched[key]

        self.kinds[key] = kind
        self._watched[key] = weakref.ref(storage, gone)
        self.bytes[kind] += size
        now = self.now()
        if now.working > self.alone.working:
            self.alone = now
        if now.working > self.tail.working and now.gradients >= self._half:
            self.tail = replace(now, gradients=0)
        if now.working + now.gradients > self.mixed.working + self.mixed.gradients:
            self.mixed = now


@contextmanager
def shapes_only() -> Iterator[None]:
    """Models made in here have the shapes of their weights and no weights (PyTorch's meta device)."""
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        yield


@contextmanager
def without_data() -> Iterator[None]:
    """Tensors made in here have a shape, a type and a place, and take no memory."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def placed(module: nn.Module) -> nn.Module:
    """The module with its weights and buffers on a device, still without data; to be called within `without_data`."""
    made: dict[int, Any] = {}
    for part in module.modules():
        for name, old in part.named_parameters(recurse=False):
            if id(old) not in made:  # tied weights stay tied
                fresh = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                made[id(old)] = nn.Parameter(fresh, requires_grad=old.requires_grad)
            part._parameters[name] = made[id(old)]
        for name, old in part.named_buffers(recurse=False):
            part._buffers[name] = torch.empty(old.shape, dtype=old.dtype, device="cpu")
    return module


def dry_passes(loss: Callable[[], Tensor], module: nn.Module, widths: set[int]) -> Passes:
    """The worst moments of `loss().backward()`; to be called within `without_data`."""
    live = LiveBytes(module, widths)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(live.keep_as_gradient) for parameter in trained]
    end = Peak()

    def look(_: Any) -> None:
        nonlocal end
        end = live.now()

    hooks += [parameter.register_post_accumulate_grad_hook(look) for parameter in trained]
    try:
        with live:
            loss().backward()
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in trained:
            parameter.grad = None
    return Passes(live.alone, live.mixed, end, live.tail)


def dry_forward(forward: Callable[[], Any], module: nn.Module, widths: set[int]) -> Peak:
    """The worst moment of a pass without gradients; to be called within `without_data`."""
    live = LiveBytes(module, widths)
    with live, torch.no_grad():
        forward()
    return live.alone
