"""Does curvature help to invert a gradient exactly? Levenberg-Marquardt against L-BFGS from the same starts.

    python benchmarks/second_order.py [--clients 2] [--images 4] [--repeated] [--evaluations 1200] [--steps 8]

Both go on from the images of `fast`, in float64, on the squared distance of the gradients of a GELU ConvNet. L-BFGS has
all its evaluations; Levenberg-Marquardt a sixth of them first, then steps that solve (J^T J + mu) s = -J^T r by
conjugate gradients, J v by forward over reverse mode and J^T u by reverse over reverse (Nocedal and Wright, Numerical
Optimization, chapter 10). The table outputs/bench/second_order.csv has, for each client and method: seconds, passes (an
evaluation, or a product with J^T J), the squared relative distance at the end, the mean PSNR (dB) and how many images
are right in every pixel. `--repeated`: two images of each client have one label.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from time import perf_counter

import pandas as pd
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor
from torch.func import functional_call, grad, jvp, vjp

import leaklearn as ll
from leaklearn.data import Dataset
from leaklearn.federated import Client, Payload
from leaklearn.files import REPOSITORY, write_text

Residual = Callable[[Tensor], Tensor]
PRODUCTS = 200
"""With J^T J in one step at most."""


def batches(data: Dataset, clients: int, images: int, repeated: bool) -> Iterator[Client]:
    """Clients whose images have labels of their own, but for the first two where labels are repeated."""
    generator = Generator().manual_seed(1)
    for number in range(clients):
        order = torch.randperm(len(data.train), generator=generator)
        labels = data.train.labels[order]
        first = [int((labels == each).nonzero()[0]) for each in labels.unique()]
        places = sorted(first)[: images - repeated]
        if repeated:
            places.append(int((labels == labels[places[0]]).nonzero()[1]))
        yield Client(number, data.train[order[places]])


def residual_of(payload: Payload, sent: Tensor, labels: Tensor) -> Residual:
    """From images (N, C, H, W) to the relative difference (P,) of their gradient and the one sent."""
    parameters = payload.parameters

    def loss(parameters: dict[str, Tensor], images: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(payload.model, (parameters, payload.buffers), (images,)), labels)

    def residual(images: Tensor) -> Tensor:
        gradient = grad(loss)(parameters, images)
        return (torch.cat([gradient[name].flatten() for name in parameters]) - sent) / sent.norm()

    return residual


def lbfgs(residual: Residual, images: Tensor, evaluations: int) -> tuple[Tensor, int]:
    """Images after L-BFGS with a history of 60, and the evaluations that it took."""
    images = images.clone().requires_grad_()
    options = {"max_iter": evaluations, "max_eval": evaluations, "history_size": 60, "line_search_fn": "strong_wolfe"}
    optimiser, count = torch.optim.LBFGS([images], tolerance_grad=0, tolerance_change=0, **options), 0

    def closure() -> Tensor:
        nonlocal count
        count += 1
        optimiser.zero_grad()
        value = 1e6 * residual(images).square().sum()
        value.backward()
        return value

    optimiser.step(closure)
    return images.detach(), count


def levenberg_marquardt(residual: Residual, images: Tensor, steps: int) -> tuple[Tensor, int]:
    """Images after so many steps, and the products with J^T J that they took."""
    damping, products, value = 1e-6, 0, float(residual(images).square().sum())
    for _ in range(steps):
        found, pull = vjp(residual, images)
        left = direction = -pull(found)[0]
        step, size = torch.zeros_like(images), left.square().sum()
        enough = 1e-8 * size
        for _ in range(PRODUCTS):
            curved = pull(jvp(residual, (images,), (direction,))[1])[0] + damping * direction
            products += 1
            length = size / (direction * curved).sum()
            step, left = step + length * direction, left - length * curved
            before, size = size, left.square().sum()
            if size < enough:
                break
            direction = left + size / before * direction
        after = float(residual(images + step).square().sum())
        images, value, damping = (images + step, after, damping / 5) if after < value else (images, value, damping * 8)
    return images, products


def quality(images: Tensor, true: Tensor) -> tuple[float, int]:
    """Mean PSNR (dB) and number of exact images, each beside the true one that it is nearest to."""
    error = (images.unsqueeze(1) - true.unsqueeze(0)).square().flatten(2).mean(2)
    rows, columns = linear_sum_assignment(-10 * torch.log10(1 / error))
    same = ((images[rows] * 255).round() == (true[columns] * 255).round()).flatten(1).all(1)
    return float((10 * torch.log10(1 / error[rows, columns])).mean()), int(same.sum())


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--images", type=int, default=4, help="of a client")
    parser.add_argument("--repeated", action="store_true", help="two images of a client have one label")
    parser.add_argument("--width", type=int, default=16, help="of the network")
    parser.add_argument("--evaluations", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=8, help="of Levenberg-Marquardt")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = ll.load(options.dataset)
    payload = Payload.of(ll.build("convnet", data, norm="none", activation="gelu", width=options.width))
    clients = list(batches(data, options.clients, options.images, options.repeated))
    updates = ll.respond(clients, payload, ll.FedSGD(options.images, batch_norm="eval"))
    labels = torch.stack([client.data.labels for client in clients])
    start = ll.attacks.GradientInversion("fast").invert(payload, updates, labels).leak.images.double()
    precise, rows = payload.to(dtype=torch.float64), []
    for number, (client, images) in enumerate(zip(clients, start.split(options.images), strict=True)):
        sent = torch.cat([updates.tensors[name][number].double().flatten() for name in precise.parameters])
        residual = residual_of(precise, sent, labels[number])
        true = client.data.images.double() / 255
        for method in ("L-BFGS", "Levenberg-Marquardt"):
            begin = perf_counter()
            few = options.evaluations // 6
            found, passes = lbfgs(residual, images, options.evaluations if method == "L-BFGS" else few)
            if method != "L-BFGS":
                found, products = levenberg_marquardt(residual, found, options.steps)
                passes += products
            seconds, (psnr, exact) = perf_counter() - begin, quality(found, true)
            about = {"dataset": data.name, "images": options.images, "repeated": options.repeated, "client": number}
            ends = {"distance": float(residual(found).square().sum()), "psnr": psnr, "exact": exact}
            rows.append({**about, "method": method, "seconds": seconds, "passes": passes, **ends})
            print(rows[-1], flush=True)
    folder = REPOSITORY.outputs / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "second_order.csv", pd.DataFrame(rows).to_csv(index=False))


if __name__ == "__main__":
    main()
