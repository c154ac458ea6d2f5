"""Makes torchvision importable where its compiled part cannot load. Import it before torchvision.

On some machines PyPI's ``torch`` 2.13.0 is a CPU build, while its partner ``torchvision`` 0.28.0 is a CUDA build
everywhere. They install beside each other, but the compiled part of torchvision then cannot load, and
``import torchvision`` fails with ``operator torchvision::nms does not exist``: it describes two operators of that part
to PyTorch, which knows them only once the part is loaded.

Here the part is tried first. Only if it does not load are the two operators declared, without an implementation.
Import, data sets, transforms, models and ``make_grid`` then work; ``torchvision.ops.nms`` still fails when called. With
a matching pair nothing is changed. Importing this module is enough, and doing so again changes nothing.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os

import torch

SCHEMAS = {
    # as in torchvision's csrc/ops/nms.cpp and csrc/ops/quantized/cpu/qnms_kernel.cpp
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def compiled_part_loads() -> bool:
    """Whether torchvision's compiled operators load with this torch; they then are loaded.

    False also where torchvision is not installed.
    """
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        return False
    finder = importlib.machinery.FileFinder(
        os.path.dirname(package.origin),
        (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
    )
    part = finder.find_spec("_C")  # found as torchvision.extension finds it
    if part is None or part.origin is None:
        return False
    try:
        torch.ops.load_library(part.origin)
    except (ImportError, OSError):
        return False
    return True


def declare_missing_operators() -> torch.library.Library | None:
    """Declare those operators that torchvision's import needs and nobody has declared yet.

    Returns
    -------
    Library or None
        Holds the declarations, which end with it; None if nothing was missing.
    """
    missing = [schema for name, schema in SCHEMAS.items() if not hasattr(torch.ops.torchvision, name)]
    if not missing:
        return None
    # FRAGMENT, because DEF may be opened only once in a process
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in missing:
        library.define(schema)
    return library


_declared = None if compiled_part_loads() else declare_missing_operators()
