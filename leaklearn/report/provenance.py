"""What made a result: versions, machine, commit, and the memory it took."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pandas", "matplotlib", "leaklearn")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on; `"absent"` for one that is not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def device() -> dict[str, object]:
    """Processor, its threads as torch uses them, whether networks that gain by it are trained in bf16; GPU or None."""
    import torch

    from leaklearn.learning.train import cpu_gains_by_bf16

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "bf16": cpu_gains_by_bf16()}
    return {**found, "gpu": gpu, "platform": platform.platform()}


def cpu_name() -> str:
    """The processor's model name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def commit(root: Path) -> dict[str, object]:
    """Commit of the checkout at `root`, and whether its sources differ from it; both None without git or a checkout.

    The outputs do not count as a difference: a run writes them.
    """
    try:
        head = _git(root, "rev-parse", "HEAD").strip()
        changed = _git(root, "status", "--porcelain", "--", ".", ":(exclude)outputs").strip()
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": head, "dirty": bool(changed)}


def _git(root: Path, *arguments: str) -> str:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # only looking: never take the index lock
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30, env=environment).stdout


def peak_memory_mib() -> float | None:
    """Largest resident memory of this process so far, in MiB; None where the system does not keep it (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, Linux KiB
