"""What a user brings: any model, images of any kind and size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from leaklearn.auditing.off_grid import OffGridImages
from leaklearn.auditing.seen import seen_pixels, unseen_in_words
from leaklearn.data.images import DataInfo, ImageSet
from leaklearn.federated import Payload
from leaklearn.federated.local import NORM, hooked, is_random
from leaklearn.models import Normalise

MOST_IMAGES = 2048
"""Of a data set or loader that are looked at."""
TABLE = (
    "Images of one row are taken for a table's features. They were rounded to 256 levels of [0, 1], which attacks then "
    "build on: right for features of no more values than that, as ages and categories scaled so, and for others a "
    "stronger attacker than yours; the row of noise of half a level tells how much. 20 dB are errors of 0.1 in "
    "features of [0, 1]. Gradient inversion expects neighbours to be alike, as pixels are and columns are not."
)
"""What is said of features as images."""
ZERO_HEAD = (
    "The model's last layer is all zero, as torchvision's transformers begin: no gradient comes back through it, so "
    "that a server that changes nothing reads labels only. That ends with the first step of training: audit the model "
    "as it is in use."
)
"""What is said of a model that passes no gradient back."""
WITHOUT_RANDOM = (
    "Dropout, and what else is random in train mode, was left out of the clients' training. With it a gradient is that "
    "of a random part of the network: what inversion then reads was not measured; attacks on a first layer do not look "
    "at what lies behind it."
)
"""What is said of a model that draws random numbers."""
GRID = 1e-3
"""Grey levels by which floats may miss whole ones and still count as stored with 8 bits."""


class OwnModel(nn.Module):
    """A copy of a user's model with what attacks need to know: image shape, last linear layer, and that layer's input.

    Parameters
    ----------
    model
        Takes float images (N, C, H, W) to class scores (N, classes).
    images
        (2 or more, C, H, W) float in [0, 1], such as it takes, before `mean` and `std`.
    mean, std
        Of each channel, where the model wants them taken off; None: it takes pixels in [0, 1].

    Raises
    ------
    ValueError
        Where the model does not take such images, or no linear layer is executed last.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.still = False
        self.model = model = deepcopy(model)
        self.shape = tuple(images.shape[1:])
        channels, given = images.shape[1], {"mean": mean, "std": std}
        for name, plain in (("mean", 0.0), ("std", 1.0)):
            given[name] = tuple([plain] * channels if given[name] is None else map(float, given[name]))
            if len(given[name]) != channels:
                raise ValueError(f"{name} has {len(given[name])} values; the images have {channels} channels")
        self.normalise = Normalise(**given)
        self.told = _frozen(model)
        run: list[tuple[str, Tensor]] = []
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        hooks = {name: lambda _m, _i, out, name=name: run.append((name, out)) for name in linear}
        before = model.training
        try:
            with torch.no_grad(), hooked(model, hooks):
                scores = self.eval()(images)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{type(model).__name__} does not take images of shape {tuple(images.shape)}: {error}"
            ) from error
        finally:
            self.train(before)
        if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(images):
            what = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"{type(model).__name__} gives {what}; class scores (N, classes) are needed")
        last = [name for name, out in run if out.shape == scores.shape and bool((out == scores).all())]
        if not last:
            raise ValueError(f"{type(model).__name__} has no linear layer whose output are the scores: {linear}")
        self.head_name, self.classes = last[-1], scores.shape[1]
        self.told += [] if self.head.weight.any() else [ZERO_HEAD]
        if is_random(Payload.of(self), images[:1]):
            self.told.append(WITHOUT_RANDOM)
            self.still = True
            self.train(before)
        self.seen = seen_pixels(self, self.shape)
        self.told += unseen_in_words(self.seen)

    def train(self, mode: bool = True) -> OwnModel:
        """As of any module, but what is random in train mode, as dropout, stays off: norm layers alone are trained."""
        super().train(mode and not self.still)
        self.training = mode
        for module in self.modules() if mode and self.still else ():
            if isinstance(module, NORM):
                module.train()
        return self

    @property
    def head(self) -> nn.Linear:
        """The linear layer that is executed last."""
        return self.model.get_submodule(self.head_name)

    def features(self, images: Tensor) -> Tensor:
        """(N, D) what the last layer sees."""
        seen: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
        try:
            self(images)
        finally:
            handle.remove()
        return seen[-1]

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> class scores (N, classes)."""
        return self.model(self.normalise(images))


def _frozen(model: nn.Module) -> list[str]:
    count = sum(not parameter.requires_grad for parameter in model.parameters())
    plural = "s are" if count > 1 else " is"
    return [f"{count} parameter{plural} frozen: clients do not train them, and send nothing of them."] if count else []


def image_set(images: Any, labels: Any = None, classes: int | None = None) -> tuple[ImageSet, tuple[str, ...]]:
    """Images of any kind as an `ImageSet`, and what was assumed of them, in sentences; `OffGridImages` where floats are
    no whole grey levels.

    Takes an `ImageSet`; a torch ``Dataset`` or ``DataLoader`` of (image, label); or tensors or arrays (N, C, H, W) or
    (N, H, W[, C]), uint8 or float in [0, 1], with labels (N,). A ValueError names what does not fit.
    """
    if isinstance(images, ImageSet):
        return images, ()
    if labels is None and not isinstance(images, Tensor | np.ndarray):
        images, labels = _collected(images)
    if labels is None:
        raise ValueError("labels are missing: give one for each image, or a Dataset of (image, label)")
    pixels, truth, told = torch.as_tensor(images), torch.as_tensor(labels).flatten().long(), []
    off_grid: dict[str, Tensor] = {}
    if pixels.ndim == 3:
        pixels = pixels.unsqueeze(1)
    if pixels.ndim != 4:
        raise ValueError(
            f"images are {tuple(pixels.shape)}; (N, C, H, W), (N, H, W, C) or (N, H, W) are needed. Features of a "
            "table: scale each to [0, 1], give (N, 1, 1, d), and a model that begins with nn.Flatten()"
        )
    if pixels.shape[1] not in (1, 3) and pixels.shape[3] in (1, 3):
        pixels = pixels.permute(0, 3, 1, 2)
    if len(pixels) != len(truth):
        raise ValueError(f"{len(pixels)} images and {len(truth)} labels")
    if not len(pixels):
        raise ValueError("there are no images")
    if truth.min() < 0:
        raise ValueError(f"label {int(truth.min())}; classes are counted from 0")
    if pixels.dtype != torch.uint8:
        if not pixels.is_floating_point():
            raise ValueError(f"images are {pixels.dtype}; uint8, or float in [0, 1], are needed")
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                f"float images span {float(pixels.min()):.3g} to {float(pixels.max()):.3g}; give pixels in [0, 1], and "
                "what the model takes off as mean= and std="
            )
        levels = pixels * 255
        if float((levels - levels.round()).abs().max()) > GRID:
            off_grid = {"floats": pixels.float().contiguous()}
            told.append(
                "The images are no whole grey levels, as after interpolation, and were attacked as they are: attacks "
                "that know the grid of whole levels notice that it is missing, and go on without it. Where clients "
                "train on stored 8-bit images instead, more may leak: give them as uint8."
            )
        pixels = levels.round().to(torch.uint8)
    if pixels.shape[1:3] == (1, 1):
        told.append(TABLE)
    count = max(int(truth.max()) + 1, classes or 0)
    colour = (pixels.float() / 255).transpose(0, 1).flatten(1)
    info = DataInfo(
        "yours",
        tuple(map(str, range(count))),
        tuple(pixels.shape[1:]),
        tuple(colour.mean(1).tolist()),
        tuple(colour.std(1).clamp_min(1e-3).tolist()),
        False,
    )
    made = OffGridImages if off_grid else ImageSet
    return made(pixels.contiguous(), truth, torch.arange(len(truth)), info, **off_grid), tuple(told)


def _collected(source: Any) -> tuple[Tensor, Tensor]:
    """Images and labels of a torch data set or loader, `MOST_IMAGES` at most."""
    pairs, count = [], 0
    try:
        for item in source:
            image, label = (torch.as_tensor(np.asarray(part).copy()) for part in item[:2])
            batched = label.ndim > 0
            pairs.append((image if batched else image.unsqueeze(0), label.reshape(-1)))
            count += len(pairs[-1][1])
            if count >= MOST_IMAGES:
                break
    except (TypeError, IndexError, KeyError) as error:
        raise ValueError(
            f"{type(source).__name__} gives no pairs of image and label ({error}); give a Dataset or DataLoader that "
            "does, or tensors with labels="
        ) from error
    if not pairs:
        raise ValueError(f"{type(source).__name__} is empty")
    shapes = {tuple(image.shape[1:]) for image, _ in pairs}
    if len(shapes) > 1:
        raise ValueError(f"images have several sizes, such as {sorted(shapes)[:3]}; resize them to one")
    images, labels = (torch.cat(part)[:MOST_IMAGES] for part in zip(*pairs, strict=True))
    return images, labels


def read_state(given: Mapping[str, Tensor] | str | Path, what: str) -> Mapping[str, Tensor]:
    """Tensors by name, read where `given` is a safetensors file; `what` stands for it in a ValueError."""
    if isinstance(given, Mapping):
        return given
    path = Path(given).expanduser()
    if not path.is_file():
        raise ValueError(f"{what}: {path} is not there")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{what}: {path} is no safetensors file, or a damaged one: {error}") from error


def with_state(model: nn.Module, state: Mapping[str, Tensor], what: str) -> nn.Module:
    """A copy of the model with these weights and buffers; a ValueError names those that do not fit."""
    model, name = deepcopy(model), type(model).__name__
    mine = model.state_dict()
    missing, strange = [key for key in mine if key not in state], [key for key in state if key not in mine]
    if missing or strange:
        odd = [*_listed("missing", missing), *_listed("unknown", strange)]
        raise ValueError(f"{what} does not fit {name}: {'; '.join(odd)}")
    for key, value in mine.items():
        if tuple(state[key].shape) != tuple(value.shape):
            raise ValueError(
                f"{what} does not fit {name}: {key} is {tuple(state[key].shape)}, the model's is {tuple(value.shape)}"
            )
    model.load_state_dict(dict(state))
    return model


def _listed(what: str, names: Sequence[str]) -> list[str]:
    return [f"{what} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"] if names else []
