"""Supervised training on image tensors: clean, leaked or partial data, the same code for all."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from leaklearn.data.augment import augment
from leaklearn.learning.accuracy import as_float, evaluate, labelled
from leaklearn.learning.ema import Average
from leaklearn.learning.recipe import Recipe, default_pad
from leaklearn.learning.resume import restore, state_of, trainable
from leaklearn.models import build
from leaklearn.store import entry

if TYPE_CHECKING:
    from leaklearn.data.images import DataInfo, ImageSet

log = logging.getLogger(__name__)

# Rows of history at most: passes over a few images take milliseconds, and evaluating each would take most of the time.
HISTORY_ROWS = 100


@dataclass
class TrainResult:
    """What training gives back.

    Attributes
    ----------
    model : nn.Module
        The trained model (its moving average, if the recipe has one), in eval mode.
    history : DataFrame
        A row for each epoch, or for each hundredth of the training where that is longer: ``epoch`` (passes begun),
        ``step`` (batches so far), ``loss`` and ``train_accuracy`` (means over the row's augmented training batches),
        ``test_accuracy`` (0..1, NaN where not evaluated), ``seconds`` (since the start, evaluation included).
    accuracy : float
        Test accuracy of ``model``, 0..1: of the end of training, not of the best epoch.
    recipe : Recipe
        How it was trained.
    """

    model: nn.Module
    history: pd.DataFrame
    accuracy: float
    recipe: Recipe = field(default_factory=Recipe)

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
    norm: str | None = None,
    activation: str | None = None,
    width: int | None = None,
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
    recipe
        Settings; None: ``Recipe()``.
    info
        Description of the data set; None: that of ``data``, else of ``test``.
    seed
        Of the initial weights, the order of the images and the augmentation: on one machine with one number of threads
        the same seed gives the same history.
    device
        Where to train; None: where the test images are.
    norm, activation, width
        Passed to `build` when ``model`` is a name.
    progress
        Show a progress bar.
    evaluate_every
        Rows of history (epochs) between two evaluations; 0: only at the end.

    Returns
    -------
    TrainResult

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

    if isinstance(model, str):
        model = build(model, info, norm=norm, activation=activation, width=width, seed=seed)
    elif (norm, activation, width) != (None, None, None):
        raise ValueError("norm, activation and width apply when the model is built by its name, not to a given model")
    else:
        model = deepcopy(model)
    # oneDNN and cuDNN convolve channels_last tensors faster: a quarter less time for the ConvNet on two cores.
    model = model.to(device, memory_format=torch.channels_last)
    average = None if recipe.ema is None else Average(model, recipe.ema)
    history = _fit(model, average, images, labels, test, info, recipe, seed, evaluate_every, progress)

    final = model if average is None else average.model.requires_grad_(True)
    final = final.to(memory_format=torch.contiguous_format).eval()  # safetensors stores contiguous tensors only
    return TrainResult(final, history, float(history["test_accuracy"].iloc[-1]), recipe)


def _fit(
    model: nn.Module,
    average: Average | None,
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
    generator = torch.Generator(images.device).manual_seed(seed)
    groups = parameter_groups(model, recipe.weight_decay)
    optimiser = torch.optim.SGD(groups, recipe.lr, recipe.momentum, nesterov=recipe.nesterov)
    precision = precision_of(recipe.amp, images.device)
    scaler = torch.amp.GradScaler(images.device.type, enabled=precision == torch.float16)
    crop = {
        "pad": default_pad(info.shape[1]) if recipe.pad is None else recipe.pad,
        "flip": info.flip if recipe.flip is None else recipe.flip,
        "cutout": recipe.cutout,
    }
    total, batches = recipe.total_steps(len(images)), recipe.batches(len(images))
    row_steps = batches * max(1, -(-total // (batches * HISTORY_ROWS)))
    rows, losses, hits, seen, epoch, step = [], [], [], 0, 0, 0
    about = {"model": str(model), "trained": trainable(model), "info": str(info), "device": str(images.device)}
    settings = {"recipe": asdict(recipe), "seed": seed, "evaluate_every": evaluate_every, **about}
    named = {"images": images, "labels": labels, "test": test.images, "truth": test.labels, **model.state_dict()}
    stored = entry("training", settings, named.items(), [train, type(model)])
    if (state := stored.load()) is not None:
        restore(state, model, optimiser, average, generator)
        scaler.load_state_dict(state.values["scaler"])
        rows = state.tensors["history/rows"].tolist()
        epoch, step = int(rows[-1][0]), int(rows[-1][1])
    start = perf_counter() - (rows[-1][-1] if rows else 0.0)

    model.train()
    bar = tqdm(total=total, initial=step, desc="training", unit="batch", disable=not progress)
    while step < total:
        order = torch.randperm(len(images), generator=generator, device=images.device)
        epoch += 1
        for chosen in order.tensor_split(batches)[: total - step]:
            x = augment(as_float(images[chosen]), generator, **crop).to(memory_format=torch.channels_last)
            y = labels[chosen]
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate(step, total)
            with torch.autocast(images.device.type, precision, enabled=precision is not None):
                scores = model(x)
                loss = cross_entropy(scores, y, label_smoothing=recipe.label_smoothing)
            optimiser.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            if average is not None:
                average.update(model)
            losses.append(loss.detach() * len(y))
            hits.append((scores.detach().argmax(1) == y).sum())
            seen += len(y)
            step += 1
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
        accuracy = evaluate(model if average is None else average.model, test) if due else float("nan")
        train_accuracy = torch.stack(hits).sum().item() / seen
        rows.append((epoch, step, mean_loss, train_accuracy, accuracy, perf_counter() - start))
        losses, hits, seen = [], [], 0
        bar.set_postfix(loss=f"{mean_loss:.3f}", test=f"{accuracy:.3f}")
        if stored.due() or step == total:
            history = {"rows": torch.tensor(rows, dtype=torch.float64)}
            stored.save(
                {"scaler": scaler.state_dict()}, **state_of(model, optimiser, average, generator), history=history
            )
    bar.close()
    log.info("trained %d steps on %d images: test accuracy %.4f", total, len(images), rows[-1][4])
    columns = ["epoch", "step", "loss", "train_accuracy", "test_accuracy", "seconds"]
    return pd.DataFrame(rows, columns=columns).astype({"epoch": int, "step": int})


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: weights with decay, vectors (biases, norm layers) without."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("the model has no trainable parameters; call requires_grad_(True) on what is to be trained")
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def precision_of(amp: str | None, device: torch.device) -> torch.dtype | None:
    """The type that autocast computes in, None for full precision."""
    if amp is None:
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
