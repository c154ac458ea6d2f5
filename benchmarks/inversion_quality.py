"""How far gradient inversion gets at batch size 4 on four networks, each with the prior that suits it.

    LEAKLEARN_DATA=... python benchmarks/inversion_quality.py
    LEAKLEARN_DATA=... python benchmarks/inversion_quality.py --networks resnet18 --clients 16 --device cuda

The weight of the total variation is chosen for each network on the first images of the training set, with a network of
another seed; what is reported comes from images far behind those, three seeds. Untrained networks, batch norm in eval
mode with the public statistics, labels known, attack `fast`. The paper's 27.88 dB (P4: CIFAR-10, batch size 4) stand
beside; which network they rest on is not known. Written to outputs/bench/inversion_quality.csv, a row an image, and
inversion_quality_choice.csv.
"""

import argparse
import json

import pandas as pd
import torch

import leaklearn as ll
from leaklearn.attacks import GradientInversion
from leaklearn.evaluation import Truth, interval, quality
from leaklearn.federated import Payload
from leaklearn.files import REPOSITORY, write_json, write_text
from leaklearn.report.provenance import commit, device, versions

NETWORKS = {
    "lenet": ("lenet", {}),
    "convnet16": ("convnet", {"width": 16, "norm": "none"}),
    "convnet16_gelu": ("convnet", {"width": 16, "norm": "none", "activation": "gelu"}),
    "resnet18": ("resnet18", {}),
}
WEIGHTS = {
    "lenet": (0.1, 0.03, 0.01, 3e-3),
    "convnet16": (0.1, 0.05, 0.02, 0.01),
    "convnet16_gelu": (3e-3, 1e-3, 3e-4),
    "resnet18": (0.2, 0.1, 0.05, 0.02),
}
# Where in the training set the reported images begin; the choice is made on the first ones.
REPORTED = 2000


def attack(data, network, weight, *, first, clients, iterations, seed, device):
    """Invert `clients` batches of 4, images from position `first` on; a table of `quality`, and the seconds."""
    name, options = NETWORKS[network]
    train = data.train[torch.arange(first, first + 4 * clients)]
    group = ll.make_clients(train, clients, seed=seed)
    protocol = ll.FedSGD(4, batch_norm="eval")
    payload = Payload.of(ll.build(name, data, seed=seed, **options)).to(device)
    updates = ll.respond(group, payload, protocol, seed)
    images, labels = ll.gather(group, ll.draw_batches(group, protocol, seed).flat)
    settings = {"iterations": iterations, "priors": {"tv_smooth": weight}}
    found = GradientInversion("fast").replace(**settings).invert(payload, updates, labels, seed=seed, progress=True)
    table = quality(found.leak, Truth(images, labels, updates.clients))
    repeats = pd.Series({k: 4 - len(set(row.tolist())) for k, row in enumerate(labels)}, name="repeated_labels")
    return table.join(repeats, on="client"), found.seconds


def choose(data, network, options):
    """The best weight on other images and another network than those reported; a table of all of them."""
    rows = []
    for weight in WEIGHTS[network]:
        table, _ = attack(data, network, weight, first=0, seed=100, **options)
        rows.append({"network": network, "tv": weight, "psnr": table["psnr"].mean(), **options})
    return pd.DataFrame(rows)


def record(path, network, arguments):
    """Add where a network's rows come from to the JSON beside the tables."""
    known = json.loads(path.read_text()) if path.exists() else {}
    about = {"arguments": arguments, "versions": versions(), "machine": device(), "git": commit(REPOSITORY.root)}
    write_json(path, {**known, network: about})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--clients", type=int, default=8, help="attacked batches of 4 images, for each seed")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--choice-clients", type=int, default=4)
    parser.add_argument("--choice-iterations", type=int, default=None, help="None: as many")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    args.choice_iterations = args.choice_iterations or args.iterations
    folder = REPOSITORY.outputs / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    data = ll.load(args.dataset, train_size=REPORTED + 4 * args.clients * len(args.seeds), test_size=10, seed=0)
    for network in args.networks:
        few = {"clients": args.choice_clients, "iterations": args.choice_iterations, "device": args.device}
        choice = choose(data, network, few)
        best = float(choice.loc[choice["psnr"].idxmax(), "tv"])
        parts = []
        for i, seed in enumerate(args.seeds):
            many = {"clients": args.clients, "iterations": args.iterations, "device": args.device}
            table, seconds = attack(data, network, best, first=REPORTED + 4 * args.clients * i, seed=seed, **many)
            about = {"dataset": data.name, "network": network, "seed": seed, "tv": best, "iterations": args.iterations}
            parts.append(table.assign(**about, seconds=seconds / len(table)))
        found = pd.concat(parts, ignore_index=True)
        mean = interval(found.groupby("seed")["psnr"].mean())
        alone = found[found["repeated_labels"] == 0]["psnr"].mean()
        print(
            f"{network}: PSNR {mean.mean:.2f} dB [{mean.low:.2f}, {mean.high:.2f}], "
            f"median {found['psnr'].median():.2f}, "
            f"{(found['psnr'] >= 27.88).mean():.0%} at 27.88 dB or more; without repeated labels {alone:.2f}; "
            f"tv {best:g} ({choice.set_index('tv')['psnr'].round(2).to_dict()})",
            flush=True,
        )
        for name, new in (("inversion_quality", found), ("inversion_quality_choice", choice)):
            path = folder / f"{name}.csv"
            old = pd.read_csv(path) if path.exists() else new.iloc[:0]
            merged = pd.concat([old[old["network"] != network], new], ignore_index=True)
            write_text(path, merged.to_csv(index=False))
        record(folder / "inversion_quality.json", network, vars(args))


if __name__ == "__main__":
    main()
