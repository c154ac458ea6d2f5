"""`leaklearn audit`: a model in a Python file, images in a folder."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors.torch import load_file
from torch import Tensor, nn

from leaklearn.auditing.run import Audit, audit
from leaklearn.federated import FedAvg, FedSGD

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}


def run(options: argparse.Namespace) -> Audit:
    """Audit what the arguments name, and write the page; a ValueError says what does not fit."""
    images, labels = folder(options.data, options.size)
    model = load_model(options.model, options.weights)
    if options.local_steps == 1:
        protocol = FedSGD(options.batch_size)
    else:
        protocol = FedAvg(options.batch_size, options.local_steps, options.lr)
    about = {name: getattr(options, name) for name in ("secure", "clients", "mean", "std", "seconds")}
    found = audit(model, images, labels, protocol=protocol, **about)
    found.save(options.out)
    return found


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
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        known = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ValueError(f"{path} has no {name!r}; it has {', '.join(known) or 'nothing that could be called'}")
    made = getattr(module, name)
    model = made if isinstance(made, nn.Module) else made()
    if not isinstance(model, nn.Module):
        raise ValueError(f"{named} gives a {type(model).__name__}, no torch.nn.Module")
    if weights is not None:
        if not weights.is_file():
            raise ValueError(f"{weights} is not there")
        missing, strange = model.load_state_dict(load_file(weights), strict=False)
        if missing or strange:
            raise ValueError(f"{weights} does not fit {name}: missing {missing[:3]}, unknown {strange[:3]}")
    return model


def folder(path: Path, size: int) -> tuple[Tensor, Tensor]:
    """Images (N, C, size, size) uint8 and labels (N,) of a folder with a folder for each class; grey if all are."""
    if not path.is_dir():
        raise ValueError(f"{path} is no folder")
    if size < 1:
        raise ValueError(f"--size is {size}; it is at least 1")
    classes = sorted(each for each in path.iterdir() if each.is_dir())
    if not classes:
        raise ValueError(f"{path} has no folders; one for each class is needed, with its images")
    images, labels = [], []
    for label, each in enumerate(classes):
        for file in sorted(each.rglob("*")):
            if file.suffix.lower() in SUFFIXES:
                try:
                    with Image.open(file) as picture:
                        images.append(
                            picture.convert("L" if picture.mode in ("1", "L") else "RGB").resize((size, size))
                        )
                except (UnidentifiedImageError, OSError) as error:
                    raise ValueError(f"{file} cannot be read as an image: {error}") from error
                labels.append(label)
    if not images:
        raise ValueError(f"{path} has no images ({', '.join(sorted(SUFFIXES))}) in its {len(classes)} folders")
    kind = "L" if all(image.mode == "L" for image in images) else "RGB"
    pixels = torch.stack([torch.from_numpy(np.array(image.convert(kind))) for image in images])
    return (pixels.unsqueeze(1) if kind == "L" else pixels.permute(0, 3, 1, 2)), torch.tensor(labels)
