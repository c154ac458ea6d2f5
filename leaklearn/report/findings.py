"""One plain sentence on what each notebook found, made from its tables: README and report open with them.

A sentence has the means over seeds of the first data set; intervals and everything else stand in the notebook's
headline, its tables and `docs/results.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from leaklearn.files import Paths
from leaklearn.project import PROJECT
from leaklearn.report import results
from leaklearn.report.names import label, measure

OPENING = ("03", "02", "01", "09", "11")
"""Notebooks whose findings open the report; README takes the first three."""
EVEN = 1.0
"""Neurons for each image at which attacks on linear layers are told."""


class Results:
    """What one notebook left under a preset: tables by name, of their first data set, and single numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = results.record(folder / "metrics.json")

    def table(self, name: str) -> pd.DataFrame:
        """A table's rows of its first data set; raises FileNotFoundError where the notebook did not write it."""
        frame = results.table(self.folder / f"{name}.csv")
        return frame[frame["dataset"] == frame["dataset"].iloc[0]]


def finding(name: str, preset: str, paths: Paths = PROJECT) -> str:
    """What a notebook found under a preset, in one sentence.

    Empty where it has not run, where its tables are damaged or of an earlier form, and where what the sentence tells
    was not measured.
    """
    sentence = SENTENCES.get(name[:2])
    try:
        return sentence(Results(paths.results(preset, name))) if sentence else ""
    except (FileNotFoundError, LookupError, ValueError, TypeError):
        return ""


def dataset(name: str, preset: str, paths: Paths = PROJECT) -> str:
    """The first data set that a notebook ran on under a preset, as it is written; empty where it has not run."""
    parameters = results.provenance(paths.results(preset, name)).get("parameters", {})
    named = parameters.get("dataset") or next(iter(parameters.get("datasets", [])), "")
    return label(named) if named else ""


def mean(frame: pd.DataFrame, column: str, digits: int = 0, **keys: object) -> str:
    """Mean of a measured column where keys have these values, shares in percent; KeyError where there is none."""
    for key, value in keys.items():
        frame = frame[frame[key] == value]
    values = frame[column].dropna()
    if values.empty:
        raise KeyError(f"no {column} with {keys}")
    text = f"{values.mean() * (100 if measure(column).unit == '%' else 1):.{digits}f}"
    return text.removeprefix("-") if not float(text) else text


def _overview(found: Results) -> str:
    leaked, peeled = found.metrics["leak_rate"], found.metrics["peeled_rate"]
    learned, clean = found.metrics["accuracy_leak"], found.metrics["accuracy_clean"]
    return (
        f"A malicious layer reads {100 * leaked:.0f} % of all clients' images in one round; one of ours, with a "
        f"quarter of the neurons, {100 * peeled:.0f} % of one client's. A model trained on the former reaches "
        f"{100 * learned:.1f} %, on clean images {100 * clean:.1f} %."
    )


def _gradient_inversion(found: Results) -> str:
    table = found.table("gi_quality")
    model = "convnet-gelu" if "convnet-gelu" in set(table["model"]) else table["model"].iloc[0]
    mine, one, many = table[table["model"] == model], table["batch_size"].min(), table["batch_size"].max()
    alone, together = (mean(mine, "psnr", batch_size=size) for size in (one, many))
    text = f"From the honest gradient of an untrained {label(model)} one image is read at {alone} dB, "
    if "psnr_of_mean_image" not in mine:
        return text + f"{many} at once at {together} dB."
    blank = mean(mine, "psnr_of_mean_image", batch_size=many)
    return text + f"{many} at once at {together} dB, where a picture that shows nothing has {blank} dB."


def _linear_layer(found: Results) -> str:
    table = found.table("lll_leakage")
    told = partial(mean, table, "leak_rate", 1, protocol="fedsgd", fc_factor=EVEN)
    return (
        f"With one neuron for each image, one step gives away {told(attack='robbing_the_fed')} % of the images to "
        f"Robbing the Fed and {told(attack='peeled_bins')} % to bins of several measurements (ours)."
    )


def _training(found: Results) -> str:
    told = partial(mean, found.table("training"), "accuracy", 1)
    return (
        f"Trained on what one round leaked, a model reaches {told(source='lll')} %, on all true images "
        f"{told(source='centralised')} %, on inverted gradients {told(source='gi')} %; the federation "
        f"{told(source='fedavg')} %."
    )


def _local_steps(found: Results) -> str:
    table = found.table("fedavg")
    table = table[(table["attack"] == "loki") & (table["local_epochs"] == 1)]
    few, many = table["local_steps"].min(), table["local_steps"].max()
    told = partial(mean, table, "leak_rate")
    return (
        f"LOKI leaks {told(local_steps=few)} % of the images at {few} local step, {told(local_steps=many)} % at {many}."
    )


def _few_labels(found: Results) -> str:
    table = found.table("semi_supervised")
    learned = table[~table["method"].isin(["labelled_only", "all_labels"])]
    counts = sorted(set(learned["labels_per_class"]))
    few = counts[min(1, len(counts) - 1)]  # the second smallest: with one label a class it matters too much which
    best = learned[learned["labels_per_class"] == few].groupby("method")["accuracy"].mean().idxmax()
    told = partial(mean, table, "accuracy", 1)
    return (
        f"With {few:g} labels for each class a leak trains a model to {told(method=best, labels_per_class=few)} % "
        f"({label(best)}); with all labels {told(method='all_labels')} %."
    )


def _initialisation(found: Results) -> str:
    gains = found.table("gains")
    gains, most = gains[gains["start"] == "fedavg"], gains["leaked_images"].max()
    few, gained = gains["leaked_images"].min(), partial(mean, gains, "gain", 1)
    return (
        f"Fine-tuned on {few:,} leaked images, the federated model changes by {gained(leaked_images=few)} points, on "
        f"{most:,} by {gained(leaked_images=most)}."
    )


def _quality(found: Results) -> str:
    table = found.table("poor_added")
    most, told = table["added_images"].max(), partial(mean, table, "accuracy")
    good = int(table["good_images"].max())
    return (
        f"{most} poor reconstructions beside {good} good ones raise a model from {told(added='poor', added_images=0)} "
        f"to {told(added='poor', added_images=most)} %; clean ones to {told(added='clean', added_images=most)} %."
    )


def _trends(found: Results) -> str:
    effects = found.table("effects").set_index("factor")["change_db"].dropna()
    words = [f"{factor.replace('_', ' ')} {effects[factor]:+.0f} dB" for factor in effects.abs().nlargest(3).index]
    return f"What moves the quality of inversion most, from its first to its last value: {', '.join(words)}."


def _labels(found: Results) -> str:
    table = found.table("label_matching")
    base = table[(table["varied"] == "base") & (table["method"] == "combined")]
    share, images = mean(base, "label_accuracy", 1), int(base["images"].sum())
    return f"{share} % of {images:,} leaked images get their own label back from the same update."


def _skewed(found: Results) -> str:
    table = found.table("non_iid").dropna(subset=["alpha"])
    even, skewed = table["alpha"].max(), table["alpha"].min()

    def told(column: str, source: str) -> str:
        return " to ".join(mean(table, column, source=source, alpha=alpha) for alpha in (even, skewed))

    return (
        f"From even to skewed clients (α {even:g} to {skewed:g}) the leak goes from {told('leak_rate', 'lll')} % of "
        f"the images and the federation from {told('accuracy', 'fedavg')} %."
    )


def _defences(found: Results) -> str:
    sums = partial(mean, found.table("defences"), "leak_rate", defence="secure_aggregation")
    return (
        f"From a secure sum LOKI still reads {sums(attack='loki')} % of the images, Robbing the Fed "
        f"{sums(attack='robbing_the_fed')} %."
    )


def _audit(found: Results) -> str:
    def strongest(rows: pd.DataFrame) -> str:
        """A share without its interval would read as an all-clear where it is 0."""
        row = rows.loc[rows["high"].idxmax()]
        rate, high = (f"{100 * row[name]:.0f} %" for name in ("leak_rate", "high"))
        return rate if rate == high else f"{rate} (at most {high})"

    table, defences = found.table("attacks"), found.table("defences")
    changed, honest = table[table["changes"] != "nothing"], table[table["changes"] == "nothing"]
    best = defences.groupby("defence")["high"].max().idxmin()
    return (
        f"Of {table['images'].max():,} images in Flower's tutorial network, the attacks tried take "
        f"{strongest(changed)} where the server changes the model and {strongest(honest)} where it only reads; under "
        f"the defence that helps most, {strongest(defences[defences['defence'] == best])}. More time may take more."
    )


SENTENCES: dict[str, Callable[[Results], str]] = {
    "00": _overview,
    "01": _gradient_inversion,
    "02": _linear_layer,
    "03": _training,
    "04": _local_steps,
    "05": _few_labels,
    "06": _initialisation,
    "07": _quality,
    "08": _trends,
    "09": _labels,
    "10": _skewed,
    "11": _defences,
    "12": _audit,
}
