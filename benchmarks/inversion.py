"""Gradient inversion: all clients in one program against breaching, which attacks one after another.

    python benchmarks/inversion.py [--models lenet convnet16 convnet resnet18] [--batch-size 4] [--device cuda]

Both attack the same clients: the same network and weights, images, labels, iterations and threads. breaching
(benchmarks/peer.py) runs its Inverting Gradients with each of four weights of total variation, 0.2 being its default;
where it is not installed, ours is measured alone.

1. Speed: our `inverting_gradients` on all clients and breaching on one take turns; medians of whole calls.
2. Quality: breaching at each weight, client by client. Its best weight sets the target: the mean PSNR that it ends
   with, less 0.1 dB, so that a plateau does not count as its time. Between its runs ours, `fast`, is given a budget of
   1/16 of its iterations, then twice that and so on until it ends at the target, then two budgets in between. A row's
   `seconds_to_psnr` is the time until then for each client: ours the whole run with the least budget that got there,
   over its clients; breaching's until an iterate gets there. Then `inverting_gradients` with that weight from
   breaching's own starts: the same quality is expected.
3. Where asked for (`--clients-at-once`; on a GPU without asking): from 1 to 1,024 clients in one program.

Images are CIFAR-10's where LEAKLEARN_DATA holds it, else embedded digits, padded and repeated in three channels.
`share_of_matmul_rate`: FLOPs of plain automatic differentiation for a client-iteration (counted), over the seconds,
over the rate of a large matrix product in the same process. `psnr` is the mean over the clients that both attacked;
`psnr_of_grey` what images of one colour have: times to a PSNR hardly above it say nothing.

In outputs/bench: inversion.csv, inversion_course.csv (PSNR against time, as drawn), inversion_clients.csv,
inversion_days.csv, fig_inversion.png, inversion.json (provenance); what each model gave is in inversion/, from where a
run with --resume goes on. With the defaults about 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from time import perf_counter

import inversion_work as work
import torch
from inversion_measure import Size, measure, sweep
from inversion_report import assemble, part_file, read_parts
from peer import INSTALL, installed

from leaklearn.files import REPOSITORY, write_json
from leaklearn.report import provenance

# Iterations of an attack and of a timed call, and breaching's clients: what two cores, or a GPU, do in a few minutes.
DEFAULTS = {"lenet": (400, 40, 4), "convnet16": (400, 20, 4), "convnet": (300, 20, 4), "resnet18": (80, 8, 2)}
# Total variation of `fast`, chosen by inversion_quality.py on other images than those attacked here.
FAST_TV = {"lenet": 0.1, "convnet16": 0.05, "convnet": 0.05, "convnet16_gelu": 3e-4, "resnet18": 0.02}
ON_GPU = {"resnet18": (1000, 50, 2)} | dict.fromkeys(("lenet", "convnet16", "convnet"), (2000, 100, 4))


def main() -> None:
    """Measure each model and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", choices=work.MODELS, default=["lenet", "convnet16", "convnet", "resnet18"]
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--clients", type=int, default=16, help="clients of ours, all in one call")
    parser.add_argument("--peer-clients", type=int, help="as many of them breaching attacks")
    parser.add_argument("--iterations", type=int, help="of both")
    parser.add_argument("--tv", type=float, help="weight of total variation in `fast`; by default FAST_TV")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3, help="turns of the timing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients-at-once", type=int, nargs="*", help="sizes of step 3")
    parser.add_argument("--resume", action="store_true", help="leave out models that are measured already")
    options = parser.parse_args()
    sizes = options.clients_at_once
    if sizes is None:
        sizes = [4**i for i in range(6)] if options.device != "cpu" else []
    if not installed():
        print(f"breaching is not installed, ours is measured alone. To compare: {INSTALL}", flush=True)
    folder = REPOSITORY.outputs / "bench"
    (folder / "inversion").mkdir(parents=True, exist_ok=True)
    most = max([options.clients, *sizes])
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        batches = pool.submit(work.draw, most, options.batch_size, options.seed).result()
    for model in options.models:
        case = work.Case(model, options.batch_size, options.device, options.threads, options.seed)
        defaults = DEFAULTS if options.device == "cpu" else ON_GPU
        iterations, timed, peers = defaults.get(model, defaults["convnet16"])
        peers = min(options.peer_clients or peers, options.clients)
        tv = FAST_TV[model] if options.tv is None else options.tv
        size = Size(options.iterations or iterations, timed, options.clients, peers, options.repeats, tv)
        settings = {"case": asdict(case), "size": asdict(size), "clients_at_once": sizes, "peer": installed()}
        file = part_file(folder, model, options.batch_size, options.device)
        if options.resume and read_parts([file], settings):
            print(f"{model}: measured already", flush=True)
            continue
        print(f"{model}, batches of {options.batch_size}, {options.clients} clients, {options.device}:", flush=True)
        began, clock = datetime.now(UTC), perf_counter()
        part = measure(case, batches.first(options.clients), size, with_peer=installed())
        part |= {"settings": settings, "started": began.isoformat(timespec="seconds")}
        part["sweep"] = sweep(case, batches, sizes, part)
        part |= {"seconds": round(perf_counter() - clock, 1), "device": provenance.device()}
        part |= {"versions": provenance.versions(), "git": provenance.commit(REPOSITORY.root)}
        write_json(file, part)
        assemble(folder)


if __name__ == "__main__":
    main()
