"""Semi-supervised training: few labelled images and many without, by FixMatch, FreeMatch or CoMatch.

What an attacker does with linear layer leakage, whose images are exact and have no labels: label a few by hand.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict
from time import perf_counter

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from leaklearn.data.images import DataInfo, ImageSet
from leaklearn.learning.pseudo import METHODS
from leaklearn.learning.recipe import SemiRecipe
from leaklearn.learning.train import (
    TrainResult,
    as_float,
    evaluate,
    labelled,
    moving_average,
    precision_of,
    restore,
    sgd,
    state_of,
)
from leaklearn.models import build
from leaklearn.store import entry

log = logging.getLogger(__name__)

EVALUATIONS = 10
"""Rows of history."""

AUGMENTED = 2048
"""Unlabelled images whose views are made at once, or one batch where that is more."""


class Embedded(nn.Module):
    """A network with a second head: features of length one, which CoMatch compares.

    Two linear layers with a leaky ReLU between them (CoMatch, section 4.1).
    """

    def __init__(self, network: nn.Module, length: int) -> None:
        super().__init__()
        self.network = network
        width = network.head.in_features
        hidden = min(width, 128)
        self.project = nn.Sequential(nn.Linear(width, hidden), nn.LeakyReLU(0.1), nn.Linear(hidden, length))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (N, C) and features (N, D) of length one."""
        features = self.network.features(images)
        return self.network.head(features), F.normalize(self.project(features), dim=1)


def train_semi_supervised(
    model: str | nn.Module,
    few: ImageSet,
    many: Tensor,
    *,
    test: ImageSet,
    method: str = "comatch",
    recipe: SemiRecipe | None = None,
    info: DataInfo | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> TrainResult:
    """Train on a few labelled images and many without labels.

    Parameters
    ----------
    model
        A network's name, or one of `leaklearn.models` to start from, which is left as it is.
    few
        Anything with ``images`` (n, C, H, W) and ``labels`` (n,).
    many
        (N, C, H, W) uint8, or float in [0, 1]; may contain the labelled images too.
    method
        ``"fixmatch"``, ``"freematch"`` or ``"comatch"``.
    recipe
        Settings; None: those of the CoMatch paper, made for days on a GPU.
    test, info, seed, device, progress
        As in `leaklearn.learning.train`.

    Returns
    -------
    TrainResult
        The averaged model. History: ``step``, ``loss``, ``labelled_loss``, ``unlabelled_loss``, ``contrastive_loss``,
        ``sure`` (share of pseudo-labels above the threshold), ``test_accuracy``, ``seconds``.

    Raises
    ------
    ValueError
        For an unknown method, no images, missing labels, or a loss that stops being finite.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    recipe, info = recipe or SemiRecipe(), info or test.info
    images, labels = (part.to(device) for part in labelled(few, info))
    if many.ndim != 4 or tuple(many.shape[1:]) != tuple(info.shape) or not len(many):
        raise ValueError(f"unlabelled images are {tuple(many.shape)}, but those of {info.name} are (N, *{info.shape})")
    many, test = many.to(device), test.to(device)
    network = build(model, test, seed=seed) if isinstance(model, str) else deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Embedded(network, recipe.embedding).to(device, memory_format=torch.channels_last)
    average = moving_average(net, recipe.ema)
    history = _fit(net, average, images, labels, many, test, method, recipe, seed, progress)
    final = average.module.network.requires_grad_(True).to(memory_format=torch.contiguous_format).eval()
    accuracy = float(history["test_accuracy"].iloc[-1])
    log.info("%s: %d labelled and %d unlabelled images, test accuracy %.4f", method, len(images), len(many), accuracy)
    return TrainResult(final, history, accuracy)


def _fit(
    net: Embedded,
    average: AveragedModel,
    images: Tensor,
    labels: Tensor,
    many: Tensor,
    test: ImageSet,
    method: str,
    recipe: SemiRecipe,
    seed: int,
    progress: bool,
) -> pd.DataFrame:
    generator = Generator(images.device).manual_seed(seed)
    optimiser = sgd(net, recipe.lr, recipe.momentum, recipe.weight_decay)
    precision = precision_of(None, images.device, net.network)
    step = METHODS[method](recipe)
    classes = net.network.head.out_features
    rows, totals, done = [], [], 0
    marks = {round(recipe.steps * i / EVALUATIONS) for i in range(1, EVALUATIONS + 1)}
    settings = {"method": method, "recipe": asdict(recipe), "seed": seed, "model": str(net), "device": str(many.device)}
    settings |= {"precision": str(precision)}
    named = {"images": images, "labels": labels, "many": many, "test": test.images, "truth": test.labels}
    makers = [train_semi_supervised, type(net.network)]
    stored = entry("semi_supervised", settings, (named | net.state_dict()).items(), makers)
    if (state := stored.load()) is not None:
        restore(state, net, optimiser, generator, average)
        step.restore({name: value.to(many.device) for name, value in state.part("method").items()})
        rows = state.tensors["history/rows"].tolist()
        totals = list(state.part("history").get("totals", torch.empty(0)).to(many.device))
        done = state.values["steps"]
    begin = perf_counter() - (state.values["seconds"] if state else 0.0)
    net.train()
    look = {"initial": done, "total": recipe.steps, "desc": method, "unit": "batch", "leave": False}
    bar = tqdm(range(done, recipe.steps), disable=not progress, **look)
    batches = _batches(step.views, images, labels, many, recipe, generator, done)
    for number, (chosen, views) in zip(bar, batches, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate(number)
        y = F.one_hot(chosen, classes).float()
        with torch.autocast(images.device.type, precision, enabled=precision is not None):
            scores, features = net(torch.cat(views).to(memory_format=torch.channels_last))
        sizes = [len(view) for view in views]
        losses = step(y, scores.float().split(sizes), features.float().split(sizes))
        loss = losses["labelled"] + recipe.unlabelled_weight * losses["unlabelled"]
        loss = loss + recipe.contrastive_weight * losses["contrastive"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        average.update_parameters(net)
        totals.append(torch.stack([loss.detach(), *(value.detach() for value in losses.values())]))
        if number + 1 in marks:
            means = torch.stack(totals).mean(0).tolist()
            if not means[0] < float("inf"):
                raise ValueError(f"the loss became {means[0]} by step {number + 1}; lower lr ({recipe.lr})")
            accuracy = evaluate(average.module.network, test)
            rows.append((number + 1, *means, accuracy, perf_counter() - begin))
            bar.set_postfix(sure=f"{means[4]:.2f}", test=f"{accuracy:.3f}")
            totals = []
        # Only between blocks has the generator drawn for what is done, and no more.
        finished = number + 1 == recipe.steps
        if stored.due(finished) and (finished or (number + 1) % _block(recipe) == 0):
            history = {"rows": torch.tensor(rows, dtype=torch.float64)}
            history |= {"totals": torch.stack(totals)} if totals else {}
            parts = state_of(net, optimiser, generator, average) | {"history": history, "method": step.state()}
            stored.save({"steps": number + 1, "seconds": perf_counter() - begin}, **parts)
    columns = ["step", "loss", "labelled_loss", "unlabelled_loss", "contrastive_loss", "sure"]
    return pd.DataFrame(rows, columns=[*columns, "test_accuracy", "seconds"]).astype({"step": int})


def _block(recipe: SemiRecipe) -> int:
    """Batches whose views are made in one go."""
    return max(1, AUGMENTED // (recipe.batch_size * recipe.ratio))


def _batches(
    make: Callable[[Tensor, Generator], list[Tensor]],
    images: Tensor,
    labels: Tensor,
    many: Tensor,
    recipe: SemiRecipe,
    generator: Generator,
    done: int,
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Labels and views of every batch: of the labelled images the weak one, of the others what `make` gives.

    Views are made for several batches in one go: on a few images augmentation takes as long as on hundreds. `done`
    batches, whole blocks of them, are behind us.
    """
    batch, count, left = recipe.batch_size, recipe.batch_size * recipe.ratio, recipe.steps - done
    while left:
        block = min(left, _block(recipe))
        few = torch.randint(len(images), (block * batch,), generator=generator, device=images.device)
        some = torch.randint(len(many), (block * count,), generator=generator, device=images.device)
        weak = recipe.views.weak(as_float(images[few]), generator).split(batch)
        views = [view.split(count) for view in make(as_float(many[some]), generator)]
        for turn, chosen in enumerate(labels[few].split(batch)):
            yield chosen, [weak[turn], *(view[turn] for view in views)]
        left -= block
