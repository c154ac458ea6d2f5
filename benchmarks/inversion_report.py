"""Tables, figure and provenance of `inversion.py`, assembled from what each model gave."""

from __future__ import annotations

import io
import json
from math import ceil, isfinite
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from leaklearn.attacks.inversion import PRESETS
from leaklearn.files import write_bytes, write_json, write_text
from leaklearn.report.lines import use_style
from leaklearn.report.names import PALETTE

IMAGES = 50_000
PAPER_DAYS = 61.17
"""Of an A100 for CIFAR-10's 50,000 images in batches of 4 ("Leak and Learn", CVPR 2024)."""

LOOKS = {
    "leaklearn/fast": {"color": PALETTE["orange"], "marker": "o"},
    "leaklearn/inverting_gradients": {"color": PALETTE["vermilion"]},
    "breaching, TV 0.2": {"color": PALETTE["black"]},
    "breaching, TV 0.01": {"color": PALETTE["blue"]},
    "breaching, TV 0.0001": {"color": PALETTE["sky"]},
    "breaching, TV 1e-05": {"color": PALETTE["green"], "linestyle": ":"},
}


def part_file(folder: Path, model: str, batch_size: int, device: str) -> Path:
    """Where a model's measurements are kept."""
    return folder / "inversion" / f"{model}_b{batch_size}_{device.replace(':', '')}.json"


def read_parts(files: list[Path], settings: dict | None = None) -> list[dict]:
    """The parts that are there, whole, and, if settings are given, made with these."""
    parts = []
    for file in files:
        try:
            part = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if settings is None or part["settings"] == settings:
            parts.append(part)
    return parts


def assemble(folder: Path) -> None:
    """Write the tables, the figure and the provenance anew from all parts in ``folder/inversion``."""
    files = sorted((folder / "inversion").glob("*.json"), key=lambda file: file.stat().st_mtime)
    parts = read_parts(files)
    rows = pd.DataFrame([row for part in parts for row in part["rows"]])
    courses = pd.DataFrame(
        [
            {"system": system, **_named(part), "iteration": i, "seconds": seconds, "psnr": psnr}
            for part in parts
            for system, course in part["courses"].items()
            for i, seconds, psnr in course
        ]
    )
    clients = pd.DataFrame([row for part in parts for row in part["sweep"]])
    tables = {"inversion": rows, "inversion_course": courses, "inversion_days": days(rows, clients)}
    if len(clients):
        tables["inversion_clients"] = clients
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", table.to_csv(index=False))
    keys = ("settings", "started", "seconds", "flops", "matmul_rate", "device", "versions", "git")
    write_json(folder / "inversion.json", {f.stem: {k: p[k] for k in keys} for f, p in zip(files, parts, strict=True)})
    use_style()
    panels = [part for part in parts if part["rows"][0]["device"] == parts[-1]["rows"][0]["device"]]
    height = ceil(len(panels) / 2)
    figure, axes = plt.subplots(height, 2, figsize=(9.0, 3.1 * height + 0.6), squeeze=False)
    for part, ax in zip(panels, axes.flat, strict=False):
        course_chart(part, ax)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    handles = {label: h for ax in axes.flat for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    write_bytes(folder / "fig_inversion.png", buffer.getvalue())


def course_chart(part: dict, ax: Axes) -> Axes:
    """PSNR against seconds a client: each point of `fast` is the end of a run, the other lines are courses of one."""
    for system, course in part["courses"].items():
        look = {"linewidth": 1.4, "label": system, **LOOKS.get(system, {})}
        ax.plot([seconds for _, seconds, _ in course], [psnr for _, _, psnr in course], **look)
    row = part["rows"][0]
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("seconds a client")
    ax.set_ylabel("PSNR in dB")
    ax.set_title(f"{row['model']}, batch {row['batch_size']}, {row['dataset']}, {row['device']}")
    return ax


def days(rows: pd.DataFrame, clients: pd.DataFrame) -> pd.DataFrame:
    """Days for 50,000 images, extrapolated from the fastest number of clients at once that was measured."""
    found = []
    for (model, batch, device), group in rows.groupby(["model", "batch_size", "device"], sort=False):
        each = group.set_index("system")["seconds_per_client_iteration"]
        ours = each["leaklearn/inverting_gradients"]
        if len(clients):
            same = (clients["model"] == model) & (clients["batch_size"] == batch) & (clients["device"] == device)
            ours = min([ours, *clients.loc[same, "seconds_per_client_iteration"]])
        cases = [("leaklearn/inverting_gradients", 24_000, ours)]
        cases.append(("leaklearn/fast", PRESETS["fast"].iterations, ours))
        if "breaching" in each.index:
            cases.append(("breaching", 24_000, float(each.loc[["breaching"]].iloc[0])))
        for system, iterations, seconds in cases:
            if isfinite(seconds):
                total = IMAGES / batch * iterations * seconds / 86_400
                named = {"system": system, "model": model, "batch_size": batch, "device": device}
                cost = {"iterations": iterations, "seconds_per_client_iteration": seconds, "days_for_50k": total}
                found.append({**named, **cost, "paper_days": PAPER_DAYS})
    return pd.DataFrame(found)


def _named(part: dict) -> dict:
    return {key: part["rows"][0][key] for key in ("model", "batch_size", "device")}
