"""The measurements of `inversion.py`, of one network: two processes, one for each system, that take turns."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import nan
from statistics import mean, median
from typing import NamedTuple

import inversion_work as work
import torch
from peer import DEFAULT_TV

TVS = (DEFAULT_TV, 1e-2, 1e-4, 1e-5)
TOLERANCE = 0.1
"""What may be missing to the PSNR that the peer ends with, in dB: less than a plateau's noise."""

MEANINGFUL = 2.0
"""What a target must be above images of the mean colour, in dB: below, the time to it says nothing."""

HALVINGS = 2
"""Budgets tried between the doubled ones, so that the time found is at most a fifth too long."""

MARKS = 20
"""Points of a course of PSNR."""


class Point(NamedTuple):
    """Where a system stood: iterations, seconds a client, mean PSNR in dB."""

    iteration: int
    seconds: float
    psnr: float


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes
    ----------
    iterations : int
        Of a whole attack, the same for both.
    timed : int
        Iterations of ours in the calls that only take the time; breaching makes as many for each of our clients.
    clients, peers : int
        Clients that ours attacks at once, and how many of them, the first, the peer does one after another.
    repeats : int
        Turns of the timing.
    fast_tv : float
        Weight of total variation in `fast`.
    """

    iterations: int
    timed: int
    clients: int
    peers: int
    repeats: int
    fast_tv: float

    @property
    def marks(self) -> tuple[int, ...]:
        """Iterations of the points of a course."""
        return tuple(sorted({max(1, round(self.iterations * i / MARKS)) for i in range(1, MARKS + 1)}))

    @property
    def budgets(self) -> list[int]:
        """Iterations that `fast` is given, until it gets there."""
        return sorted({max(1, self.iterations // 2**i) for i in range(5)})


class Speed(NamedTuple):
    """Seconds of a client-iteration of ours and of the peer (NaN without), FLOP/s of a matrix product: medians."""

    ours: float
    peer: float
    matmul: float


class Worker:
    """A process that holds one case; call it with a function of `inversion_work` and its arguments."""

    def __init__(self, case: work.Case, batches: work.Batches) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, initializer=work.begin, initargs=(case, batches))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def __call__(self, function: Callable, *arguments: object) -> object:
        return self._pool.submit(function, *arguments).result()


def measure(case: work.Case, batches: work.Batches, size: Size, *, with_peer: bool) -> dict:
    """Rows of inversion.csv, courses of PSNR, and what the shares of the matmul rate are made of."""
    with Worker(case, batches) as ours, Worker(case, batches.first(size.peers)) as other:
        peer = other if with_peer else None
        flops, grey = ours(work.flops), mean(ours(work.psnr_of_grey)[: size.peers])
        speed = take_turns(ours, peer, size)
        courses, ends, ladder = quality(ours, peer, size)
        best = max(ends, key=ends.get, default=size.fast_tv)
        target = ends[best] - TOLERANCE if ends else nan
        changes = {"iterations": size.iterations, "priors": {"tv": best}}
        same = ours(work.ours, "inverting_gradients", changes, size.peers, size.marks, True)
        _say(f"inverting_gradients, TV {best:g}, the same starts: {mean(same.psnr):.2f} dB")
        memory = {"leaklearn": ours(work.memory), "breaching": other(work.memory)}

    course = [Point(i, i * speed.ours, mean(values)) for i, _, values in same.course]
    reached = _reached(ladder, target)
    last = reached or ladder[-1]
    found = [
        ("leaklearn/inverting_gradients", best, size.iterations, speed.ours, mean(same.psnr), _reached(course, target)),
        ("leaklearn/fast", size.fast_tv, last.iteration, None, last.psnr, reached),
    ]
    found += [("breaching", tv, size.iterations, speed.peer, ends[tv], _reached(courses[tv], target)) for tv in ends]
    rows = []
    for system, tv, iterations, seconds, psnr, there in found:
        seconds = last.seconds / last.iteration if seconds is None else seconds
        peak, resident = memory[system.split("/")[0]]
        rows.append(
            {
                "system": system,
                "model": case.model,
                "batch_size": case.batch_size,
                "clients": size.peers if system == "breaching" else size.clients,
                "threads": case.threads,
                "device": case.device,
                "seconds_per_client_iteration": seconds,
                "psnr": psnr,
                "seconds_to_psnr": there.seconds if there else nan,
                "peak_mib": peak,
                "resident_mib": resident,
                "tv": tv,
                "iterations": iterations,
                "share_of_matmul_rate": flops / seconds / speed.matmul,
                "clients_scored": size.peers,
                "psnr_of_grey": grey,
                "dataset": batches.info.name,
                "seed": case.seed,
            }
        )
    if ends and target < grey + MEANINGFUL:
        _say(f"breaching ends at hardly more than plain grey ({grey:.2f} dB): give it more --iterations")
    elif reached and ends:
        slow = _reached(courses[best], target).seconds
        _say(
            f"to {target:.2f} dB: {reached.seconds:.2f} s a client, breaching {slow:.2f}: {slow / reached.seconds:.1f}x"
        )
    named = {"leaklearn/inverting_gradients": course, "leaklearn/fast": ladder}
    named |= {f"breaching, TV {tv:g}": points for tv, points in courses.items()}
    return {"rows": rows, "courses": named, "flops": flops, "matmul_rate": speed.matmul}


def take_turns(ours: Worker, peer: Worker | None, size: Size) -> Speed:
    """The same attack, ours on all clients and breaching's on one, and a matrix product, in turn."""
    found: dict[str, list[float]] = {"ours": [], "peer": [], "matmul": []}
    for turn in range(size.repeats + 1):
        outcome = ours(work.ours, "inverting_gradients", {"iterations": size.timed}, size.clients)
        found["ours"].append(outcome.seconds / size.clients / size.timed)
        if peer is not None:
            # As many iterations as all clients of ours have, so that neither is timed in a short burst.
            iterations = size.timed * size.clients
            outcome = peer(work.peer, turn % size.peers, DEFAULT_TV, iterations)
            found["peer"].append(outcome.seconds / iterations)
        found["matmul"].append(ours(work.matmul_rate))
    speed = Speed(*(median(values[1:]) if values else nan for values in found.values()))  # the first warms up
    _say(
        f"a client-iteration {1e3 * speed.ours:.2f} ms, breaching {1e3 * speed.peer:.2f} ms: "
        f"{speed.peer / speed.ours:.2f}x; matmul {speed.matmul / 1e9:.0f} GFLOP/s"
    )
    return speed


def quality(
    ours: Worker, peer: Worker | None, size: Size
) -> tuple[dict[float, list[Point]], dict[float, float], list[Point]]:
    """breaching's courses and final PSNR by TV weight, and the runs of `fast`, between them, with growing budgets."""
    courses: dict[float, list[Point]] = {}
    ends: dict[float, float] = {}
    ladder: list[Point] = []
    budgets = size.budgets
    for tv in (*TVS, None):
        if tv is not None and peer is not None:
            outcomes = [peer(work.peer, client, tv, size.iterations, size.marks) for client in range(size.peers)]
            steps = zip(*(outcome.course for outcome in outcomes), strict=False)  # shorter where one broke off
            courses[tv] = [Point(s[0][0], mean(p[1] for p in s), mean(p[2][0] for p in s)) for s in steps]
            ends[tv] = mean(outcome.psnr[0] for outcome in outcomes)
            _say(f"breaching, TV {tv:g}: {ends[tv]:.2f} dB in {mean(o.seconds for o in outcomes):.2f} s a client")
        target = max(ends.values(), default=torch.inf) - TOLERANCE
        while len(ladder) < len(budgets) and (not ladder or ladder[-1].psnr < target):
            ladder.append(run_fast(ours, size, budgets[len(ladder)]))
            if tv is not None and peer is not None:
                break  # one between two of the peer's, as many as it takes at the end
    return courses, ends, refine(ours, size, ladder, target)


def run_fast(ours: Worker, size: Size, budget: int) -> Point:
    """`fast` on all clients with this many iterations, scored on those that the peer attacks too."""
    changes = {"iterations": budget, "priors": {"tv_smooth": size.fast_tv}}
    outcome = ours(work.ours, "fast", changes, size.clients)
    point = Point(budget, outcome.seconds / size.clients, mean(outcome.psnr[: size.peers]))
    _say(f"fast, {budget} iterations: {point.psnr:.2f} dB in {point.seconds:.2f} s a client")
    return point


def refine(ours: Worker, size: Size, ladder: list[Point], target: float) -> list[Point]:
    """Halve, twice, the gap between the last budget that was too small and the first that was not (geometrically)."""
    for _ in range(HALVINGS):
        below = [point.iteration for point in ladder if point.psnr < target]
        above = [point.iteration for point in ladder if point.psnr >= target]
        middle = round((max(below) * min(above)) ** 0.5) if below and above else 0
        if not below or not above or middle in (max(below), min(above)):
            break
        ladder = sorted([*ladder, run_fast(ours, size, middle)])
    return ladder


def sweep(case: work.Case, batches: work.Batches, sizes: list[int], part: dict) -> list[dict]:
    """Seconds of a client-iteration and peak memory against the clients in one program, until memory is full."""
    rows: list[dict] = []
    changes = {"iterations": part["settings"]["size"]["timed"]}
    for clients in sizes:
        with Worker(case, batches.first(clients)) as worker:
            try:
                outcomes = [worker(work.ours, "fast", changes, clients, (), False, clients) for _ in range(4)]
            except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError, or a process that was ended
                _say(f"{clients} clients at once do not fit: {str(error).splitlines()[0]}")
                break
            seconds = median(outcome.seconds for outcome in outcomes[1:]) / clients / changes["iterations"]
            rows.append(
                {
                    "model": case.model,
                    "batch_size": case.batch_size,
                    "device": case.device,
                    "clients_at_once": clients,
                    "seconds_per_client_iteration": seconds,
                    "peak_mib": worker(work.memory)[0],
                    "share_of_matmul_rate": part["flops"] / seconds / part["matmul_rate"],
                }
            )
        _say(f"{clients} clients at once: {1e3 * seconds:.3f} ms a client-iteration, {rows[-1]['peak_mib']:.0f} MiB")
    return rows


def _reached(course: list[Point], target: float) -> Point | None:
    """The first point at the target."""
    return next((point for point in course if point.psnr >= target), None)


def _say(text: str) -> None:
    print(f"  {text}", flush=True)
