"""Explorers of what a leak is worth: few labels, poor reconstructions, and defences."""

from __future__ import annotations

import ipywidgets as widgets
import pandas as pd
import torch
from matplotlib.figure import Figure

from leaklearn.data.views import Views
from leaklearn.experiments.defences import DefenceStudy
from leaklearn.experiments.quality_groups import MEASURES, GroupComparison
from leaklearn.experiments.semi_supervised import SemiComparison
from leaklearn.report.defences import LOOKS, attack_name, case_name, defended_pictures, summary_line
from leaklearn.report.pictures import labelled_rows
from leaklearn.report.quality import NAMES
from leaklearn.widgets.parts import choices, explorer, menu, slider

METHODS = {"labelled_only": "labelled images alone", "fixmatch": "FixMatch", "comatch": "CoMatch"}


def explore_labelling(comparison: SemiComparison, views: Views, *, images: int = 20, draws: int = 8) -> widgets.VBox:
    """Slide the labels of each class and look at an image as the learners see it: weak, strong and contrastive views.

    Parameters
    ----------
    comparison
        What `leaklearn.experiments.semi_supervised.compare_labelling` measured.
    views
        The views that it was trained with.
    images
        How many of the leaked images the slider goes over.
    draws
        Views of each kind.

    Returns
    -------
    ipywidgets.VBox
        Two sliders, a line of text with the accuracy of each method, and a picture.
    """
    table, leak = comparison.table, comparison.leak
    mean = table.groupby(["method", "labels_per_class"])["accuracy"].mean()
    labels = choices("labels of each class", sorted({int(count) for _, count in mean.index}))
    image = slider("image", 0, min(images, len(leak)) - 1, 0)

    def view() -> tuple[str, Figure]:
        few = {name: mean.get((method, labels.value)) for method, name in METHODS.items()}
        line = "; ".join(
            f"{name} <b>{100 * accuracy:.1f} %</b>" for name, accuracy in few.items() if accuracy is not None
        )
        copies = leak.images[image.value].expand(draws, *leak.images.shape[1:])
        generator = torch.Generator().manual_seed(image.value)
        rows = [
            (kind, getattr(views, kind)(copies, generator).clamp(0, 1), [])
            for kind in ("weak", "strong", "contrastive")
        ]
        return line, labelled_rows(rows, f"Leaked image {image.value}, as the learner sees it")

    return explorer([labels, image], view)


def explore_quality(comparison: GroupComparison, *, images: int = 10) -> widgets.VBox:
    """Slide from the worst reconstruction to the best: what they look like, and what such a group is worth.

    Parameters
    ----------
    comparison
        What `leaklearn.experiments.quality_groups.compare_groups` measured.
    images
        How many reconstructions to show, of neighbouring quality.

    Returns
    -------
    ipywidgets.VBox
        A menu of measures, a slider, a line of text and a picture.
    """
    graded, table = comparison.graded, comparison.table
    measure, place = (
        menu("measure", [(NAMES[name], name) for name in MEASURES]),
        slider("from worst to best, %", 0, 100, 25),
    )

    def view() -> tuple[str, Figure]:
        values = graded.measures[measure.value]
        order = values.sort_values(ascending=MEASURES[measure.value]).index.to_numpy()
        first = round((len(order) - min(images, len(order))) * place.value / 100)
        chosen = torch.tensor(order[first : first + images])
        alone = table[(table["measure"] == measure.value) & (table["labels"] == "right")]
        alone = alone[alone["group"].astype(str).str.isdigit()].astype({"group": int})
        groups = alone["group"].max()
        group = min(groups, 1 + first * groups // len(order))
        means = alone[alone["group"] == group][["accuracy", "equivalent_images", "images"]].mean()
        line = (
            f"Group {group} of {groups} by {NAMES[measure.value]}: {means['images']:.0f} reconstructions train to "
            f"<b>{100 * means['accuracy']:.1f} %</b>, as <b>{means['equivalent_images']:.0f} clean images</b> do"
        )
        notes = [f"{value:.3g}" for value in values[chosen.tolist()]]
        rows = [("truth", graded.truth[chosen], []), ("read from\nthe update", graded.leak.images[chosen], notes)]
        return line, labelled_rows(
            rows, f"{NAMES[measure.value]} beneath each; images from {first + 1} of {len(order)}"
        )

    return explorer([measure, place], view)


def explore_defence(study: DefenceStudy) -> widgets.VBox:
    """Pick an attack and a defence, slide its strength: the reconstructions, what they are worth, and the federation.

    Parameters
    ----------
    study
        What `leaklearn.experiments.defences.study_defences` measured; nothing is computed anew.

    Returns
    -------
    ipywidgets.VBox
        Two dropdowns, a slider over the measured strengths, a line of text and a picture. It begins with the defence
        that was measured at most strengths.
    """
    table = study.table
    attack = menu("attack", [(attack_name(name), name) for name in dict.fromkeys(table["attack"])])
    defences = [name for name in dict.fromkeys(table["defence"]) if name != "none"]
    defence = menu("defence", [(LOOKS[name][0], name) for name in defences or ["none"]])
    defence.value = max(defences or ["none"], key=lambda name: len(strengths(table, name)))
    strength = choices("strength", strengths(table, defence.value))

    def view() -> tuple[str, Figure]:
        options = strengths(table, defence.value)
        if list(strength.options) != options:  # another defence: its own strengths, from the first
            strength.options = options
        case = (defence.value, strength.value)
        fig = defended_pictures(study.examples, attack.value, [("none", 0.0), case])
        return summary_line(table, *case, attack.value), fig

    return explorer([attack, defence, strength], view)


def strengths(table: pd.DataFrame, defence: str) -> list[tuple[str, float]]:
    """Options of a slider: every measured strength of a defence, named in words."""
    values = dict.fromkeys(table.loc[table["defence"] == defence, "strength"])
    return [(case_name(defence, value), value) for value in values]
