"""Which values the notebooks' parameters may have, checked before any work; the types are in the notebooks themselves.

A name means the same in every notebook, so ranges stand here by name; `NN.name` is of notebook NN alone. Of a list each
value is meant. `tests/test_ranges.py` holds the names against the catalogues of data sets, networks and attacks, whose
modules take seconds to import.
"""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from math import isfinite

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""What can be the name of a folder or file of results."""

INTERVALS = {
    "[0, inf)": """client newcomers partly_rounds iterations gi_iterations deep_iterations label_epochs deep_epochs
        gi_epochs 09.epochs width widths deep_widths training_width layer_width gi_images cutout noise_multipliers
        client_noise_multipliers fairness seconds update_seconds noise""",
    "[1, 1024]": "threads",
    "[0, 4294967295]": "seed seeds",  # NumPy's generators take no more
    "[1, inf)": """clients images_per_client clients_per_round rounds local_steps epochs batch_size batch_sizes ratio
        images steps cost_batch_sizes cost_images label_batch_sizes label_draws 01.widths width_batch_sizes
        exact_batch_sizes exact_images exact_iterations deep_batch_sizes deep_images compare_images compare_iterations
        our_clients crowds crowd_images rounds_clients pool sampled_batches reweighted_batches soliton_batches
        spear_width gi_batch_size gi_batch_sizes steps_attacked epochs_attacked gi_steps 04.gi_epochs trained_after
        labels_per_class leaked_images scratch_steps tuning_steps images_per_class groups good_per_class added_per_class
        ladder 08.gi_iterations training_clients training_steps comatch_steps shards attacked batch_factors
        update_images""",
    "(-inf, inf)": "shifts",
    "(0, inf)": """lr lrs clipped_lr learning_rate training_lr tuning_rates training_scale feature_scales fc_factor
        fc_factors our_factors rounds_factors new_factors crowd_factor peeled_factors alphas clip clip_norms
        dither_levels 11.shifts""",
    "[0, 1]": "confident threshold fill",
    "[0, 1)": "ema follow soteria_shares",
    "(0, 1]": "crop top_k_shares",
    "[1, 2]": "half_kinds",
    "[2, 16]": "quantise_bits",
    "(12, inf)": "poor_below",
}
"""Names of numbers by their interval, whose ends are excluded by round brackets."""

_NETWORKS = "lenet convnet airbench94 resnet18 mlp convnet-relu convnet-gelu"
_INVERSION = "dlg idlg inverting_gradients gradinversion modern fast exact"
_LINEAR = """trap_weights trap_weights_split qbi_published qbi_normal qbi_quantiles qbi_quantiles_split robbing_the_fed
    robbing_the_fed_split robbing_the_fed_bounded robbing_the_fed_kernel robbing_the_fed_random loki loki_kernel
    adaptive split_bins peeled_bins peeled_bins_unsplit peeled_loki peeled_honest soliton_free soliton_data spear
    spear_reweighted"""
CHOICES = {
    "mnist5k photos mnist fashion_mnist cifar10 tinyimagenet": "dataset datasets",
    _NETWORKS: """model learner lll_model label_models networks cost_networks exact_networks deep_network width_network
        gi_network""",
    _INVERSION: "01.attacks cost_attacks gi_attack",
    _LINEAR: """02.attacks 04.attacks our_attacks local_attacks our_local_attacks sum_attacks local_sum_attacks
        returning_attacks neuron_attacks lll_attack""",
    "fixmatch freematch comatch": "methods",
    "relu gelu sigmoid leaky_relu": "activation",
    "batch group none": "norms",
    "auto off bf16 fp16": "precision",
    "fedsgd fedavg fedsgd+secagg fedavg+secagg": "protocols",
}
"""Names of texts by the values that they may have."""

AT_MOST = {"client": ("clients", 1), "newcomers": ("clients", 1), "clients_per_round": ("clients", 0)}
"""Numbers that another parameter bounds, and by how much they have to stay below it."""

ONE_FOR_EACH = {"03.widths", "03.rounds", "03.epochs", "03.gi_images"}
"""Lists that have a value for each of `datasets`, or a single one for all; in others no value stands twice."""

FILLED = {"datasets", "seeds", *ONE_FOR_EACH}
FILLED |= {f"01.{name}" for name in ("networks", "attacks", "cost_networks", "cost_attacks", "label_models")}
"""Lists that must not be empty; without one of the others a notebook leaves a part out."""

_INTERVAL_OF = {name: interval for interval, names in INTERVALS.items() for name in names.split()}
_CHOICES_OF = {name: choices.split() for choices, names in CHOICES.items() for name in names.split()}


def check(notebook: str, values: Mapping[str, object]) -> None:
    """Refuse the first value of a notebook's parameters, all of them given, that is out of its range.

    The ValueError has one line: the notebook, the parameter, its value and what it may be.
    """
    for name, value in values.items():
        for reason in _reasons(notebook[:2], name, value, values):
            raise ValueError(f"{notebook}: {name} is {shortened(value)}; {reason}")


def in_words(interval: str) -> str:
    """An interval for a reader: `[1, inf)` is `at least 1`."""
    low, high = interval[1:-1].split(", ")
    words = [] if low == "-inf" else [f"{'at least' if interval[0] == '[' else 'above'} {low}"]
    words += [] if high == "inf" else [f"{'at most' if interval[-1] == ']' else 'below'} {high}"]
    return " and ".join(words)


def shortened(value: object) -> str:
    """A value as it is written, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _reasons(number: str, name: str, value: object, values: Mapping[str, object]) -> Iterable[str]:
    """What speaks against a value."""
    own = f"{number}.{name}"
    items = value if isinstance(value, list) else [value]
    if not items and (own in FILLED or name in FILLED):
        yield "give at least one value"
    if own in ONE_FOR_EACH:
        if len(items) not in (1, len(values["datasets"])):
            yield f"give one value for each of {len(values['datasets'])} data sets, or a single one for all"
    elif any(items.count(item) > 1 for item in items):
        yield "give each value once: a repeat would count as another measurement"
    if any(isinstance(item, float) and not isfinite(item) for item in items):
        yield "give finite numbers"
    interval = _INTERVAL_OF.get(own, _INTERVAL_OF.get(name))
    if interval and any(not _within(item, interval) for item in items):
        yield f"{'each value' if isinstance(value, list) else 'it'} is {in_words(interval)}"
    choices = _CHOICES_OF.get(own, _CHOICES_OF.get(name))
    for wrong in [item for item in items if choices and item not in choices]:
        near = get_close_matches(str(wrong), choices, n=1)
        yield f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(choices)}"
    other, below = AT_MOST.get(name, ("", 0))
    if other in values and value > values[other] - below:
        yield f"it is {'below' if below else 'at most'} {other}, which is {values[other]}"
    if name == "preset" and not NAME.fullmatch(str(value)):
        yield "it becomes the name of a folder: use letters, digits, '_' and '-' only"
    if name == "device":
        yield from _device(str(value))


def _within(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(", "))
    return (low <= value if interval[0] == "[" else low < value) and (
        value <= high if interval[-1] == "]" else value < high
    )


def _device(device: str) -> Iterable[str]:
    if device == "cpu":
        return
    if not re.fullmatch(r"cuda(:\d+)?", device):
        yield "choose cpu or cuda"
        return
    import torch  # takes seconds, and only a GPU needs it

    if not torch.cuda.is_available():
        yield "PyTorch finds no CUDA GPU here: use cpu"
    elif int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        yield f"there are {torch.cuda.device_count()} CUDA GPUs, counted from 0"
