"""What a training goes on from: weights, momentum, average and random numbers, as tensors and back."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from leaklearn.learning.ema import Average
from leaklearn.store import State


def state_of(
    model: nn.Module, optimiser: torch.optim.SGD, average: Average | None, generator: Generator
) -> dict[str, dict[str, Tensor]]:
    """Everything that the next step depends on, by part and name."""
    momentum = {str(i): kept.get("momentum_buffer") for i, kept in optimiser.state_dict()["state"].items()}
    parts = {
        "model": model.state_dict(),
        "momentum": {name: value for name, value in momentum.items() if value is not None},
        "random": {"generator": generator.get_state()},
    }
    if average is not None:
        parts["average"] = average.model.state_dict()
        parts["averaged"] = {"steps": torch.tensor(average.steps)}
    return parts


def restore(
    state: State, model: nn.Module, optimiser: torch.optim.SGD, average: Average | None, generator: Generator
) -> None:
    """Put what `state_of` told back into the same objects, made anew."""
    model.load_state_dict(state.part("model"))
    momentum = {int(name): {"momentum_buffer": value} for name, value in state.part("momentum").items()}
    optimiser.load_state_dict({"state": momentum, "param_groups": optimiser.state_dict()["param_groups"]})
    generator.set_state(state.tensors["random/generator"])
    if average is not None:
        average.model.load_state_dict(state.part("average"))
        average.steps = int(state.tensors["averaged/steps"])


def trainable(model: nn.Module) -> list[str]:
    """Names of the parameters that are trained: part of what decides a result, and in no tensor."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]
