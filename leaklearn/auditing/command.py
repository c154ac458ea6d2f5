"""`leaklearn audit`: a model in a Python file, and images in a folder or the weights before and after training."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from leaklearn.auditing.found import Audit
from leaklearn.auditing.inputs import read_state, with_state
from leaklearn.auditing.run import audit
from leaklearn.auditing.update import UpdateAudit, audit_update
from leaklearn.federated import FedAvg, FedSGD, PrivateSGD
from leaklearn.federated.protocols import Protocol

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
MODES = {1: "L", 3: "RGB"}


def run(options: argparse.Namespace) -> Audit:
    """Audit what the arguments name, and write the page; a ValueError says what does not fit, before any work."""
    out = writable(options.out)
    images, labels = folder(options.data, (options.size, options.size))
    model = load_model(options.model, options.weights)
    about = {name: getattr(options, name) for name in ("secure", "clients", "mean", "std", "seconds")}
    found = audit(model, images, labels, protocol=protocol_of(options, options.local_steps == 1), **about)
    found.save(out)
    return found


def run_update(options: argparse.Namespace) -> UpdateAudit:
    """Audit the update that two files make, and write the page; a ValueError says what does not fit, at once."""
    out, shape = writable(options.out), tuple(options.shape)
    if min(shape) < 1:
        raise ValueError(f"--shape is {' '.join(map(str, shape))}; it is channels, height and width, each at least 1")
    if not options.gradient and options.lr is None:
        raise ValueError("--lr is missing: the learning rate that the client trained with; or --gradient, for FedSGD")
    if options.gradient and options.local_steps != 1:
        raise ValueError(f"--gradient is of one step, not of --local-steps {options.local_steps}")
    model, about = load_model(options.model), {"mean": options.mean, "std": options.std, "seconds": options.seconds}
    if options.data is not None:
        if shape[0] not in MODES:
            raise ValueError(f"--data holds grey or colour pictures, but --shape has {shape[0]} channels")
        about["images"], about["labels"] = folder(options.data, shape[1:], MODES[shape[0]], fewest=1)
    if options.noise is not None:
        about["defence"] = PrivateSGD(options.noise, options.clip)
    protocol = protocol_of(options, options.gradient)
    found = audit_update(model, options.before, options.after, protocol=protocol, shape=shape, **about)
    found.save(out)
    return found


def protocol_of(options: argparse.Namespace, one_gradient: bool) -> Protocol:
    """What the clients do."""
    if one_gradient:
        return FedSGD(options.batch_size, options.batch_norm)
    return FedAvg(options.batch_size, options.local_steps, options.lr, options.batch_norm)


def writable(path: Path) -> Path:
    """Where the page is written; its folder is made now, so that no work is done in vain."""
    path = path.expanduser()
    if path.is_dir():
        raise ValueError(f"--out is {path}, a folder; give a file, such as {path / 'audit.html'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def load_model(named: str, weights: Path | None = None) -> nn.Module:
    """The model that `FILE.py:NAME` makes when it is called without arguments; the file is run."""
    file, _, name = named.rpartition(":")
    path = Path(file).expanduser()
    if not name or path.suffix != ".py":
        raise ValueError(f"--model is {named!r}; give a Python file and a name in it, such as net.py:Net")
    if not path.is_file():
        raise ValueError(f"{path} is not there")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # as classes that are defined there look for it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        known = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ValueError(f"{path} has no {name!r}; it has {', '.join(known) or 'nothing that could be called'}")
    model = getattr(module, name)
    if callable(model) and not isinstance(model, nn.Module):
        try:
            model = model()
        except Exception as error:
            raise ValueError(
                f"{name}() fails ({type(error).__name__}: {error}); name a class or function that needs no arguments"
            ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{named} gives a {type(model).__name__}, no torch.nn.Module")
    return model if weights is None else with_state(model, read_state(weights, "--weights"), str(weights))


def folder(path: Path, size: Sequence[int], mode: str | None = None, fewest: int = 2) -> tuple[Tensor, Tensor]:
    """Images (N, C, height, width) uint8 and labels (N,) of a folder with a folder for each class.

    Labels are by the order of the folders' names. `mode` is Pillow's ``"L"`` or ``"RGB"``; None: grey if all images
    are. A ValueError names what cannot be read, or where fewer than `fewest` folders have images.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is no folder" if path.exists() else f"{path} is not there")
    height, width = size
    if min(size) < 1:
        raise ValueError(f"images of {height} x {width} pixels; height and width are at least 1")
    classes = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    if not classes:
        raise ValueError(f"{path} has no folders; one for each class is needed, with its images")
    images, labels = [], []
    for label, each in enumerate(classes):
        for file in sorted(each.rglob("*")):
            if file.suffix.lower() in SUFFIXES and file.is_file():
                images.append(_picture(file, (width, height)))
                labels.append(label)
    if not images:
        raise ValueError(f"{path} has no images ({', '.join(sorted(SUFFIXES))}) in its {len(classes)} folders")
    if len(set(labels)) < fewest:
        named = ", ".join(each.name for each in classes[:3])
        raise ValueError(f"{path} has images of one class only (folders: {named}); a folder for each class is needed")
    kind = mode or ("L" if all(image.mode == "L" for image in images) else "RGB")
    pixels = torch.stack([torch.from_numpy(np.array(image.convert(kind))) for image in images])
    return (pixels.unsqueeze(1) if kind == "L" else pixels.permute(0, 3, 1, 2)), torch.tensor(labels)


def _picture(file: Path, size: tuple[int, int]) -> Image.Image:
    """One image, grey or RGB, resized to (width, height)."""
    try:
        with Image.open(file) as picture:
            return picture.convert("L" if picture.mode in ("1", "L") else "RGB").resize(size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all ways of Pillow
        raise ValueError(f"{file} cannot be read as an image: {error}") from error
