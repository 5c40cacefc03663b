"""`torch_compile`: the layers of what is trained, as programs that torch.compile made of them, in updates alone.

A model's layers are alike, so one program of each kind serves them all, and lengths are free in it: it is made once,
in the first update. Trainer's own way, the whole model at once, makes it anew for each shape of a micro-batch.
Rollouts and the passes that weigh replies run as ever.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rlhf.errors import UserError
from rlhf.layers import trunk
from rlhf.packing import attend_outside_programs, packs_rows


class CompiledLayers:
    """The layers of some models, each with a compiled forward pass beside its own.

    Args:
        models: transformers' causal models or classifiers, PEFT's wrapper included; one may be None.
        backend: torch.compile's: a name, or a function of a graph and its example inputs.
        mode: torch.compile's.

    Raises UserError where there is no C++ compiler, or no stack of layers in a model.
    """

    def __init__(
        self, models: list[Any], backend: str | Callable[..., Any] = "inductor", mode: str | None = None
    ) -> None:
        if backend == "inductor":
            _need_compiler()
        self.forwards: list[tuple[nn.Module, Callable[..., Any]]] = []
        for model in models:
            if model is None:
                continue
            if packs_rows(model):
                attend_outside_programs()
            self.forwards += [
                (part, torch.compile(part.forward, dynamic=True, backend=backend, mode=mode)) for part in _parts(model)
            ]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Meanwhile the layers run compiled. Raises UserError where one cannot be compiled."""
        import torch._dynamo.exc

        before = [(part, part.__dict__.get("forward")) for part, _ in self.forwards]
        try:
            for part, forward in self.forwards:
                part.forward = forward
            yield
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"torch_compile: a layer cannot be compiled ({reason}); set --torch_compile false"
            ) from error
        finally:
            for part, forward in before:
                del part.forward
                if forward is not None:
                    part.forward = forward


def _parts(model: Any) -> list[nn.Module]:
    """What becomes a program: each layer; of the last one its parts where rlhf.packing puts hooks on its MLP."""
    layers = _layers(model)
    return [*layers[:-1], *layers[-1].children()] if packs_rows(model) else layers


def _layers(model: Any) -> list[nn.Module]:
    """The decoder's layers: the longest list of modules of one kind in the trunk."""
    lists = [list(part) for part in trunk(model).modules() if isinstance(part, nn.ModuleList)]
    alike = [layers for layers in lists if len({type(layer) for layer in layers}) == 1]
    if not alike:
        raise UserError(f"torch_compile: {type(model).__name__} has no stack of like layers; set --torch_compile false")
    return max(alike, key=len)


def _need_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UserError(
            "torch_compile: finds no C++ compiler; install one (Debian: apt-get install g++), or set "
            "--torch_compile false"
        ) from error
