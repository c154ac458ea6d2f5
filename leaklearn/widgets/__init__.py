"""Explorers for JupyterLab: thin skins over the functions that also draw the static figures."""

from leaklearn.widgets.inversion import compare_attacks, scrub_iterations
from leaklearn.widgets.linear import explore_clients, explore_layer, explore_matching
from leaklearn.widgets.worth import explore_defence, explore_labelling, explore_quality

__all__ = [
    "compare_attacks",
    "explore_clients",
    "explore_defence",
    "explore_labelling",
    "explore_layer",
    "explore_matching",
    "explore_quality",
    "scrub_iterations",
]
