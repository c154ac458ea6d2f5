"""Supervised training on image tensors: clean, leaked or partial data, the same code for all; and how good a model is.

What a training needs to go on where it was killed (weights, momentum, averages, random numbers) is told here too.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from leaklearn.data.augment import augment
from leaklearn.learning.recipe import Recipe, default_pad
from leaklearn.models import ARCHITECTURES, build
from leaklearn.store import State, entry

if TYPE_CHECKING:
    from leaklearn.data.images import DataInfo, ImageSet

log = logging.getLogger(__name__)

HISTORY_ROWS = 100
"""Rows of history at most: passes over a few images take milliseconds, evaluating each would take most of the time."""

LOOKAHEAD = 0.95
"""What slow weights keep of themselves for each step at the end; less before, by the cube of the share of the steps."""

PRECISIONS = {None: "off", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""What autocast computes in, None for full precision, and the name that a recipe gives it."""

GAIN = 1.2
"""Times as fast as float32 that bf16 must be on a CPU for networks to be trained in it."""

EVALUATED = 500
"""Images in one forward pass of `evaluate`; bounds the memory."""


@dataclass
class TrainResult:
    """The trained model, in eval mode, its history and its test accuracy, 0..1: of the end, not of the best epoch.

    ``history`` has a row for each epoch, or for each hundredth of the training where that is longer: ``epoch`` (passes
    begun), ``step`` (batches so far), ``loss`` and ``train_accuracy`` (means over the row's augmented training
    batches), ``test_accuracy`` (0..1, NaN where not evaluated), ``seconds`` (since the start, evaluation included).
    """

    model: nn.Module
    history: pd.DataFrame
    accuracy: float

    def __repr__(self) -> str:
        last = self.history.iloc[-1]
        return f"TrainResult(accuracy={self.accuracy:.4f}, steps={last['step']:.0f}, seconds={last['seconds']:.1f})"


def train(
    model: nn.Module | str,
    data: Any,
    *,
    test: ImageSet,
    recipe: Recipe | None = None,
    info: DataInfo | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
    evaluate_every: int = 1,
) -> TrainResult:
    """Train a model on labelled images and evaluate it on the test set.

    Parameters
    ----------
    model
        A network's name (`leaklearn.models.build` makes it with this seed), or a model to start from, which is left
        as it is: a copy is trained.
    data
        An `ImageSet`, a `Leak`, or anything with ``images`` (N, C, H, W), uint8 or float in [0, 1], and ``labels``
        (N,) int64.
    test
        The test set; it also tells shape and classes where ``data`` cannot (a leak knows neither).
    info
        Description of the data set; None: that of ``data``, else of ``test``.
    seed
        Of the initial weights, the order of the images and the augmentation: on one machine with one number of threads
        the same seed gives the same history.
    device
        Where to train; None: where the test images are.
    evaluate_every
        Rows of history (epochs) between two evaluations; 0: only at the end.

    Raises
    ------
    ValueError
        If there are no images, some have no label (None or below 0) or one beyond the classes, shapes or ranges do not
        fit, or the loss stops being finite.
    """
    recipe = Recipe() if recipe is None else recipe
    info = info or getattr(data, "info", None) or test.info
    device = torch.device(test.images.device if device is None else device)
    if isinstance(evaluate_every, bool) or not isinstance(evaluate_every, int) or evaluate_every < 0:
        raise ValueError(f"evaluate_every is {evaluate_every!r}; it is a whole number of epochs, 0 for only at the end")
    images, labels = labelled(data, info)
    images, labels, test = images.to(device), labels.to(device), test.to(device)
    model = build(model, test, seed=seed) if isinstance(model, str) else deepcopy(model)
    # oneDNN and cuDNN convolve channels_last tensors faster: a quarter less time for the ConvNet on two cores.
    model = model.to(device, memory_format=torch.channels_last)
    history = _fit(model, images, labels, test, info, recipe, seed, evaluate_every, progress)
    model = model.to(memory_format=torch.contiguous_format).eval()  # safetensors stores contiguous tensors only
    return TrainResult(model, history, float(history["test_accuracy"].iloc[-1]))


def _fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    test: ImageSet,
    info: DataInfo,
    recipe: Recipe,
    seed: int,
    evaluate_every: int,
    progress: bool,
) -> pd.DataFrame:
    """Train ``model`` in place; returns the history."""
    generator = Generator(images.device).manual_seed(seed)
    optimiser = sgd(model, recipe.lr, recipe.momentum, recipe.weight_decay, recipe.norm_lr)
    precision = precision_of(recipe.amp, images.device, model)
    scaler = torch.amp.GradScaler(images.device.type, enabled=precision == torch.float16)
    pad = default_pad(info.shape[1]) if recipe.pad is None else recipe.pad
    flip = info.flip if recipe.flip is None else recipe.flip
    total, batches = recipe.total_steps(len(images)), recipe.batches(len(images))
    row_steps = batches * max(1, -(-total // (batches * HISTORY_ROWS)))
    turned = torch.rand(len(images), generator=generator, device=images.device) < 0.5 if recipe.alternate else None
    slow = {name: value.clone() for name, value in model.state_dict().items()} if recipe.lookahead else {}
    rows, losses, hits, seen, epoch, step = [], [], [], 0, 0, 0
    # What is trained decides the result too, and is in no tensor.
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    about = {"model": str(model), "trained": trained, "info": str(info), "device": str(images.device)}
    about |= {"precision": str(precision)}  # which a recipe may leave to the processor
    settings = {"recipe": asdict(recipe), "seed": seed, "evaluate_every": evaluate_every, **about}
    named = {"images": images, "labels": labels, "test": test.images, "truth": test.labels, **model.state_dict()}
    stored = entry("training", settings, named.items(), [train, type(model)])
    if (state := stored.load()) is not None:
        restore(state, model, optimiser, generator)
        scaler.load_state_dict(state.values["scaler"])
        slow = {name: value.to(images.device) for name, value in state.part("slow").items()}
        rows = state.tensors["history/rows"].tolist()
        epoch, step = int(rows[-1][0]), int(rows[-1][1])
    start = perf_counter() - (rows[-1][-1] if rows else 0.0)

    model.train()
    bar = tqdm(total=total, initial=step, desc="training", unit="batch", disable=not progress)
    while step < total:
        order = torch.randperm(len(images), generator=generator, device=images.device)
        epoch += 1
        for chosen in order.tensor_split(batches)[: total - step]:
            mirrored = turned[chosen] ^ bool(epoch % 2) if flip and recipe.alternate else flip
            x = augment(as_float(images[chosen]), generator, pad=pad, flip=mirrored, reflect=recipe.reflect)
            y = labels[chosen]
            for group in optimiser.param_groups:
                group["lr"] = group["times"] * recipe.learning_rate(step, total)
            with torch.autocast(images.device.type, precision, enabled=precision is not None):
                scores = model(x.to(memory_format=torch.channels_last))
                loss = cross_entropy(scores, y, label_smoothing=recipe.label_smoothing)
            optimiser.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            losses.append(loss.detach() * len(y))
            hits.append((scores.detach().argmax(1) == y).sum())
            seen += len(y)
            step += 1
            if recipe.lookahead and step % recipe.lookahead == 0:
                fall_back(model, slow, LOOKAHEAD**recipe.lookahead * (step / total) ** 3)
            bar.update()
        if step < total and step % row_steps:
            continue
        mean_loss = torch.stack(losses).sum().item() / seen
        if not mean_loss < float("inf"):
            raise ValueError(
                f"the loss became {mean_loss} in epoch {epoch} (step {step} of {total}); lower lr ({recipe.lr}), "
                f"lengthen warmup ({recipe.warmup}) or check the images"
            )
        due = step == total or (evaluate_every and (len(rows) + 1) % evaluate_every == 0)
        look = {"mirror": recipe.mirror and info.flip, "amp": recipe.amp}
        accuracy = evaluate(model, test, **look) if due else float("nan")
        train_accuracy = torch.stack(hits).sum().item() / seen
        rows.append((epoch, step, mean_loss, train_accuracy, accuracy, perf_counter() - start))
        losses, hits, seen = [], [], 0
        bar.set_postfix(loss=f"{mean_loss:.3f}", test=f"{accuracy:.3f}")
        if stored.due(step == total):
            history = {"rows": torch.tensor(rows, dtype=torch.float64)}
            parts = state_of(model, optimiser, generator) | {"history": history, "slow": slow}
            stored.save({"scaler": scaler.state_dict()}, **parts)
    bar.close()
    log.info("trained %d steps on %d images: test accuracy %.4f", total, len(images), rows[-1][4])
    columns = ["epoch", "step", "loss", "train_accuracy", "test_accuracy", "seconds"]
    return pd.DataFrame(rows, columns=columns).astype({"epoch": int, "step": int})


@torch.no_grad()
def fall_back(model: nn.Module, slow: dict[str, Tensor], keep: float) -> None:
    """Move slow weights by 1 - `keep` towards the model's, and set the model to them (Zhang et al., NeurIPS 2019)."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(slow[name].lerp_(value, 1 - keep))


def evaluate(model: nn.Module, images: ImageSet, *, mirror: bool = False, amp: str | None = None) -> float:
    """Accuracy of a model on labelled images: the share whose largest score is their label's, 0..1.

    The model takes float images in [0, 1]; it is evaluated in eval mode on its own device and left in the modes it was
    in. The images are an `ImageSet`, or anything with ``images`` (uint8 or float in [0, 1]) and a label for each. With
    `mirror` an image's scores are the means of its own and its mirror image's; `amp` is as in `Recipe`.
    """
    pixels, labels = labelled(images, None)
    device = next(model.parameters()).device
    precision = precision_of(amp, device, model)

    def scores(x: Tensor) -> Tensor:
        x = as_float(x.to(device)).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, precision, enabled=precision is not None):
            return model(x).float() + model(x.flip(3)).float() if mirror else model(x)

    with evaluating(model), torch.inference_mode():
        parts = zip(pixels.split(EVALUATED), labels.split(EVALUATED), strict=True)
        right = [(scores(x).argmax(1) == y.to(device)).sum() for x, y in parts]
    return torch.stack(right).sum().item() / len(labels)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode; afterwards every submodule is back in its own mode (some may have been frozen)."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, mode in modes.items():
            module.training = mode


def as_float(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1], from uint8 or float."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def labelled(data: Any, info: DataInfo | None) -> tuple[Tensor, Tensor]:
    """Images and labels of ``data``, checked against each other and, if given, against the data set."""
    images, labels = data.images, data.labels
    if len(images) == 0:
        raise ValueError("there are no images to learn from or to evaluate on")
    if info is not None and tuple(images.shape[1:]) != tuple(info.shape):
        raise ValueError(f"images are {tuple(images.shape[1:])}, but those of {info.name} are {tuple(info.shape)}")
    if images.is_floating_point():
        low, high = images.amin().item(), images.amax().item()
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also false for NaN, which amin and amax pass on
            raise ValueError(f"float images must lie in [0, 1], but these span {low:.3g} to {high:.3g}")
    elif images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 or float in [0, 1], not {images.dtype}")
    unlabelled = len(images) if labels is None else int((labels < 0).sum())
    if unlabelled:
        raise ValueError(
            f"{unlabelled} of {len(images)} images have no label; give labels (Leak.with_labels) or drop those"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{len(images)} images need {len(images)} labels, not shape {tuple(labels.shape)}")
    if info is not None and labels.max() >= info.num_classes:
        raise ValueError(f"label {labels.max().item()} is beyond the {info.num_classes} classes of {info.name}")
    return images, labels.long()


def sgd(model: nn.Module, lr: float, momentum: float, weight_decay: float, norm_lr: float = 1.0) -> torch.optim.SGD:
    """SGD with Nesterov momentum on what can be trained: weights with decay, vectors (biases, norm layers) without.

    Each group has the factor `times` on the learning rate: `norm_lr` for norm layers, else 1.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("the model has no trainable parameters; call requires_grad_(True) on what is to be trained")
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm)]
    of_norms = {id(parameter) for module in norms for parameter in module.parameters()}
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay, "times": 1.0},
        {"params": [p for p in trainable if p.ndim <= 1 and id(p) not in of_norms], "weight_decay": 0.0, "times": 1.0},
        {"params": [p for p in trainable if id(p) in of_norms], "weight_decay": 0.0, "times": norm_lr},
    ]
    return torch.optim.SGD([group for group in groups if group["params"]], lr, momentum, nesterov=momentum > 0)


def precision_of(amp: str | None, device: torch.device, model: nn.Module) -> torch.dtype | None:
    """The type that autocast computes in, None for full precision.

    None chooses: on a GPU bf16 where it has that, else fp16; on a CPU bf16 where the network was measured to gain
    (`leaklearn.models.Architecture.bf16`) and this processor is (`cpu_gains_by_bf16`), else full precision.
    """
    if amp is not None:
        return {name: precision for precision, name in PRECISIONS.items()}[amp]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    settings = getattr(model, "settings", {})
    gains = settings.get("name") in ARCHITECTURES and ARCHITECTURES[settings["name"]].bf16
    return torch.bfloat16 if device.type == "cpu" and gains and cpu_gains_by_bf16() else None


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 by instructions of its own: AVX512-BF16, AMX, or Arm's."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


@functools.cache
def cpu_gains_by_bf16() -> bool:
    """Whether a convolution is at least `GAIN` times as fast in bf16 as in float32 here; takes a tenth of a second.

    Instructions are not enough: an AMD processor with AVX512-BF16 was twice as fast in bf16, an Intel one with the same
    instructions half as fast.
    """
    if not cpu_has_bf16():
        return False
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    with torch.inference_mode():
        for _ in range(6):  # in turns, for another process may take the core meanwhile; the first only warms up
            for precision, taken in seconds.items():
                images = torch.ones(8, 256, 16, 16, dtype=precision).to(memory_format=torch.channels_last)
                weight = torch.ones(256, 256, 3, 3, dtype=precision).to(memory_format=torch.channels_last)
                begin = perf_counter()
                torch.nn.functional.conv2d(images, weight, padding=1)
                taken.append(perf_counter() - begin)
    return min(seconds[torch.float32]) >= GAIN * min(seconds[torch.bfloat16])


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Average of a model over its training steps, to be evaluated instead of the last step's weights.

    It starts as the model. `update_parameters` after step t = 0, 1, ... moves it by 1 - d_t towards the model,
    d_t = min(decay, (1 + t) / (10 + t)): the growing decay keeps a short training from being dominated by its first,
    random weights. Batch norm's running statistics are averaged alike; whole numbers are copied.
    """

    def move(averages: list[Tensor], latest: list[Tensor], _: Tensor) -> None:
        step = int(average.n_averaged) - 1
        share = 1 - min(decay, (1 + step) / (10 + step))
        for mean, value in zip(averages, latest, strict=True):
            mean.lerp_(value, share) if mean.is_floating_point() else mean.copy_(value)

    average = AveragedModel(model, multi_avg_fn=move, use_buffers=True).requires_grad_(False)
    average.n_averaged += 1  # the start is one: with none yet, torch would take the first step instead of averaging
    return average


def state_of(
    model: nn.Module, optimiser: torch.optim.SGD, generator: Generator, average: AveragedModel | None = None
) -> dict[str, dict[str, Tensor]]:
    """Everything that the next step depends on, by part and name, for `leaklearn.store`."""
    momentum = {str(i): kept.get("momentum_buffer") for i, kept in optimiser.state_dict()["state"].items()}
    return {
        "model": model.state_dict(),
        "momentum": {name: value for name, value in momentum.items() if value is not None},
        "random": {"generator": generator.get_state()},
        "average": {} if average is None else average.state_dict(),
    }


def restore(
    state: State,
    model: nn.Module,
    optimiser: torch.optim.SGD,
    generator: Generator,
    average: AveragedModel | None = None,
) -> None:
    """Put what `state_of` told back into the same objects, made anew."""
    model.load_state_dict(state.part("model"))
    momentum = {int(name): {"momentum_buffer": value} for name, value in state.part("momentum").items()}
    optimiser.load_state_dict({"state": momentum, "param_groups": optimiser.state_dict()["param_groups"]})
    generator.set_state(state.tensors["random/generator"])
    if average is not None:
        average.load_state_dict(state.part("average"))
