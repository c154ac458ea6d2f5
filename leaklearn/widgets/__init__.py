"""Explorers for JupyterLab: thin skins over the functions that also draw the static figures."""

from leaklearn.widgets.audit import explore_audit
from leaklearn.widgets.defences import explore_defence
from leaklearn.widgets.inversion import compare_attacks, scrub_iterations
from leaklearn.widgets.label_matching import explore_matching
from leaklearn.widgets.linear_layer_leakage import explore_layer, explore_pair, explore_peeling
from leaklearn.widgets.overview import explore_clients
from leaklearn.widgets.reconstruction_quality import explore_quality
from leaklearn.widgets.semi_supervised import explore_labelling

__all__ = [
    "compare_attacks",
    "explore_audit",
    "explore_clients",
    "explore_defence",
    "explore_labelling",
    "explore_layer",
    "explore_matching",
    "explore_pair",
    "explore_peeling",
    "explore_quality",
    "scrub_iterations",
]
