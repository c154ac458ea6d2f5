"""torchvision imports with and without its compiled part, and is left alone where that part loads."""

import subprocess
import sys
import textwrap

import pytest
import torch

from leaklearn import torchvision_compat


def run(code: str) -> str:
    """Standard output of a fresh interpreter, in which torchvision has not been imported."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torchvision_works_after_the_import_and_is_patched_only_without_its_compiled_part():
    said = run(
        """
        from leaklearn import torchvision_compat
        import torch, torchvision
        from torchvision import datasets, models
        from torchvision.transforms import v2
        from torchvision.utils import make_grid

        assert make_grid(torch.rand(4, 3, 8, 8)).shape == (3, 12, 42)
        assert models.resnet18(num_classes=7)(torch.rand(2, 3, 32, 32)).shape == (2, 7)
        assert v2.CenterCrop(4)(torch.rand(3, 8, 8)).shape == (3, 4, 4)
        print(torchvision_compat._declared is None, torchvision.extension._has_ops())
        """
    )
    patched_nothing, compiled = said.split()
    assert patched_nothing == compiled


def test_with_a_matching_pair_nothing_is_declared():
    said = run(
        """
        import torch

        asked = []

        def loads(path):  # what a compiled part that fits does: it declares its operators itself
            asked.append(path)
            if len(asked) == 1:
                torch.compiled = torch.library.Library("torchvision", "DEF")
                for name in ("nms", "qnms"):
                    torch.compiled.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

        torch.ops.load_library = loads
        from leaklearn import torchvision_compat
        assert torchvision_compat._declared is None
        assert torchvision_compat.declare_missing_operators() is None
        print(asked[0])
        """
    )
    assert "torchvision" in said
    assert "_C" in said


@pytest.mark.parametrize("failure", [OSError("libcudart.so.13: cannot open"), ImportError("undefined symbol")])
def test_a_part_that_does_not_load_is_reported(monkeypatch, failure):
    def fails(path):
        raise failure

    monkeypatch.setattr(torch.ops, "load_library", fails)
    assert torchvision_compat.compiled_part_loads() is False


def test_a_part_that_loads_is_reported(monkeypatch):
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    assert torchvision_compat.compiled_part_loads() is True


def test_no_torchvision_at_all(monkeypatch):
    monkeypatch.setattr(torchvision_compat.importlib.util, "find_spec", lambda name: None)
    assert torchvision_compat.compiled_part_loads() is False
