"""The same attack, the same start, the same iterations: does ours end where breaching's Inverting Gradients ends?

    python benchmarks/inversion_parity.py

Both attack the same 8 batches from the same starts with the same total variation. Rounding drives single batches
apart, so that means over the batches are compared. Written to outputs/bench/inversion_parity.csv, a row a batch.
"""

import argparse
import io
from dataclasses import asdict

import inversion_work as work
import pandas as pd
import torch
from inversion_measure import Worker
from peer import INSTALL, installed

from leaklearn.files import REPOSITORY, write_json, write_text
from leaklearn.report import provenance

# Network, images a batch, iterations: what takes a few minutes on two cores.
CASES = (("convnet16", 1, 300), ("convnet16", 4, 300), ("resnet18", 1, 80), ("resnet18", 4, 40))


def main() -> None:
    """Attack with both, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=sorted({model for model, _, _ in CASES}))
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--tv", type=float, default=1e-2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if not installed():
        raise SystemExit(f"breaching is not installed: {INSTALL}")
    folder = REPOSITORY.outputs / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for model, size, iterations in [case for case in CASES if case[0] in options.models]:
        case = work.Case(model, size, options.device, options.threads, seed=0)
        batches = work.draw(options.batches, size, 0)
        changes = {"iterations": iterations, "priors": {"tv": options.tv}}
        with Worker(case, batches) as worker:
            ours = worker(work.ours, "inverting_gradients", changes, options.batches, (), True).psnr
            peer = [worker(work.peer, k, options.tv, iterations).psnr[0] for k in range(options.batches)]
        about = {**asdict(case), "iterations": iterations, "tv": options.tv}
        rows += [
            {**about, "batch": k, "leaklearn": a, "breaching": b}
            for k, (a, b) in enumerate(zip(ours, peer, strict=True))
        ]
        a, b = (sum(values) / len(values) for values in (ours, peer))
        print(f"{model}, batch size {size}, {iterations} iterations: {a:.2f} dB, breaching {b:.2f} dB: {a - b:+.2f}")
    table = io.StringIO()
    pd.DataFrame(rows).to_csv(table, index=False)
    write_text(folder / "inversion_parity.csv", table.getvalue())
    about = {"versions": provenance.versions(), "device": provenance.device()}
    write_json(folder / "inversion_parity.json", about | {"git": provenance.commit(REPOSITORY.root)})


if __name__ == "__main__":
    main()
