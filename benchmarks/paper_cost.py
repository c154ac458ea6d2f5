"""How long the paper preset would take on a GPU: operations counted, times estimated, nothing of it run.

Counted are the two things that take the time: images that networks are trained on, and images times iterations of
gradient inversion, by the parameters in params/paper/. The operations of each come from torch's own counter. Hours
follow from rates that an H100-class GPU is assumed to reach with these small networks: they say minutes or days, and no
more. `python benchmarks/paper_cost.py [--training-tflops 40] [--inversion-tflops 15]`
"""

import argparse
from functools import cache

import pandas as pd
import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from leaklearn import parameters
from leaklearn.data.catalogue import CATALOGUE
from leaklearn.files import REPOSITORY
from leaklearn.learning.recipe import Recipe
from leaklearn.models import build
from leaklearn.runner.plan import plan

BATCH = Recipe().batch_size
Work = list[tuple[str, str, str, float]]  # kind ("training" or "inversion"), network, data set, images


def federated(p: dict) -> float:
    """Images that the clients of a federation are trained on."""
    return p["rounds"] * p["clients_per_round"] * p["images_per_client"]


def trained(p: dict, name: str, times: float, images: float | None = None) -> Work:
    """Trainings of `steps` batches, or of so many images each, for every seed."""
    images = p["steps"] * BATCH if images is None else images
    return [("training", p["model"], name, times * images * len(p["seeds"]))]


def inverted(p: dict, name: str, images: float, network: str | None = None) -> Work:
    """Inversions of so many images for every seed."""
    return [("inversion", network or p["gi_network"], name, images * p["gi_iterations"] * len(p["seeds"]))]


def overview(p: dict) -> Work:
    seen = p["epochs"] * p["clients"] * p["images_per_client"]
    return trained(p | {"seeds": [0]}, p["dataset"], 2, seen)


def gradient_inversion(p: dict) -> Work:
    sizes = sum(max(size, p["images"]) for size in p["batch_sizes"])
    found: Work = []
    for network in p["networks"]:
        found += [("inversion", network, p["dataset"], sizes * p["iterations"] * len(p["seeds"]))]
    found += [("inversion", p["networks"][0], p["dataset"], 7 * p["compare_images"] * p["compare_iterations"])]
    for model in p["label_models"]:
        seen = sum(p["label_epochs"]) * CATALOGUE[p["dataset"]].train
        found += trained(p | {"model": model}, p["dataset"], 1, seen)
    return found


def training_on_leaks(p: dict) -> Work:
    found: Work = []
    for name in p["datasets"]:
        splits = 1 + len(p["alphas"])
        trainings = 3 + splits + len(p["fc_factors"])
        found += trained(p, name, trainings, p["epochs"] * CATALOGUE[name].train)
        found += trained(p, name, splits, federated(p))
        found += inverted(p, name, p["gi_images"])
    return found


def fedavg(p: dict) -> Work:
    attacked = p["gi_images"] * (len(p["gi_steps"]) + sum(p["gi_epochs"]))
    trainings = sum(len(p[name]) for name in ("steps_attacked", "epochs_attacked", "gi_steps", "gi_epochs"))
    name = p["datasets"][0]
    found = trained(p, name, trainings + len(p["trained_after"])) + trained(p, name, 1, federated(p))
    return found + inverted(p, name, attacked)


def semi_supervised(p: dict) -> Work:
    name, views = p["datasets"][0], {"fixmatch": 2, "comatch": 3}
    seen = sum(1 + views[method] * p["ratio"] for method in p["methods"]) * p["steps"] * p["batch_size"]
    alone = p["steps"] * BATCH
    return trained(p, name, len(p["labels_per_class"]), seen + alone) + trained(p, name, 1, alone)


def initialisation(p: dict) -> Work:
    name, starts = p["datasets"][0], 2
    # Two ways to freeze and each rate on two held-back parts, then once with the choice.
    tunings = starts * (2 * 2 * len(p["tuning_rates"]) + 1)
    each = p["scratch_steps"] * BATCH + tunings * p["tuning_steps"] * BATCH
    return trained(p, name, len(p["leaked_images"]), each) + trained(p, name, 1, federated(p))


def quality_groups(p: dict) -> Work:
    name = p["datasets"][0]
    bins, others = 15 + 2, 3 * p["groups"]  # PSNR bins, two of them with wrong labels too; groups by other measures
    found = trained(p, name, 1 + len(p["ladder"]) + bins + others + 1 + 3 * len(p["added_per_class"]))
    return found + inverted(p, name, p["gi_images"] * len(p["gi_batch_sizes"]))


def trends(p: dict) -> Work:
    p = p | {"model": p["gi_network"], "gi_iterations": max(p["gi_iterations"])}
    found = inverted(p, p["dataset"], p["gi_images"] * (len(p["gi_batch_sizes"]) + len(p["gi_epochs"]) + 2))
    return found + trained(p, p["dataset"], 1, sum(p["gi_epochs"]) * CATALOGUE[p["dataset"]].train)


def label_matching(p: dict) -> Work:
    found: Work = []
    for name in p["datasets"]:
        semi = p["comatch_steps"] * p["batch_size"] * (1 + 3 * p["ratio"])
        found += trained(p, name, 3) + trained(p, name, 1, semi)
        found += trained(p, name, 1, sum(p["epochs"]) * CATALOGUE[name].train)
    return found


def non_iid(p: dict) -> Work:
    divisions = len(p["alphas"]) + len(p["shards"])
    found = trained(p, p["dataset"], 2 * divisions + 1) + trained(p, p["dataset"], divisions, federated(p))
    return found + inverted(p, p["dataset"], divisions * p["gi_images"])


def defences(p: dict) -> Work:
    lists = ("clip_norms", "noise_multipliers", "client_noise_multipliers", "top_k_shares", "quantise_bits")
    cases = 3 + sum(len(p[name]) for name in (*lists, "soteria_shares", "batch_factors", "local_steps"))
    found = trained(p, p["dataset"], 3 * cases) + trained(p, p["dataset"], cases, federated(p))
    return found + inverted(p, p["dataset"], cases * p["gi_images"])


COUNTED = {
    "00": overview, "01": gradient_inversion, "03": training_on_leaks, "04": fedavg, "05": semi_supervised,
    "06": initialisation, "07": quality_groups, "08": trends, "09": label_matching, "10": non_iid, "11": defences,
}  # fmt: skip
"""Notebook 02 needs no GPU."""


@cache
def operations(kind: str, network: str, name: str) -> float:
    """Floating-point operations for one image: of a training step, or of an iteration of gradient inversion."""
    info = CATALOGUE[name].info(tuple(map(str, range(CATALOGUE[name].num_classes))))
    model = build(network, info).eval()
    images = torch.rand(2, *info.shape, requires_grad=True)
    labels, inverting = torch.zeros(2, dtype=torch.int64), kind == "inversion"
    with FlopCounterMode(display=False) as counter:
        loss = cross_entropy(model(images), labels)
        slopes = torch.autograd.grad(loss, list(model.parameters()), create_graph=inverting)
        if inverting:
            sum((slope**2).sum() for slope in slopes).backward()
    return counter.get_total_flops() / len(images)


def estimate(rates: dict[str, float]) -> pd.DataFrame:
    """A row for each notebook: operations of training and inversion, hours at these rates (operations a second)."""
    rows = []
    for job in plan("paper", [], [], REPOSITORY):
        count = COUNTED.get(job.notebook[:2])
        if count is None:
            continue
        declared = parameters.read(REPOSITORY.notebook(job.notebook))
        values = {name: each.default for name, each in declared.items()} | job.parameters
        total = dict.fromkeys(rates, 0.0)
        for kind, network, name, images in count(values):
            total[kind] += images * operations(kind, network, name)
        hours = sum(total[kind] / rates[kind] for kind in rates) / 3600
        peta = {f"{kind}, 10^15 operations": round(value / 1e15, 1) for kind, value in total.items()}
        rows.append({"notebook": job.notebook, **peta, "hours, estimated": round(hours, 2)})
    return pd.DataFrame(rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--training-tflops", type=float, default=40, help="assumed rate of training, bfloat16")
    parser.add_argument("--inversion-tflops", type=float, default=15, help="assumed rate of inversion, float32")
    options = parser.parse_args()
    rates = {"training": options.training_tflops * 1e12, "inversion": options.inversion_tflops * 1e12}
    table = estimate(rates)
    print(table.to_string(index=False))
    print(f"together {table['hours, estimated'].sum():.0f} hours")


if __name__ == "__main__":
    main()
