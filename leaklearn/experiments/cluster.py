"""Jobs on many processes or machines: where a job runs changes how long it takes, never what it gives.

`spread` is the one seam: every seed, setting and shard of the experiments goes through it, by way of `Bench.map` or
directly. The jobs run in this process, or on the workers of a Dask scheduler where the environment variable
`LEAKLEARN_CLUSTER` names one. A worker computes with as many threads as this process and makes the same choice between
float32 and bf16, so that the results are equal to the last digit on processors of one kind. Results come back as values
and whoever asked for them writes them; what a lost worker was doing is done again by another.

Functions and data travel by cloudpickle between processes of one run; nothing of it is ever written to disk. A tensor
of `LARGE` bytes or more is sent once for all jobs, and workers pass it on among themselves.

Needs distributed (``pip install 'leaklearn[cluster]'``). Source: Rocklin, Dask, SciPy 2015.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import platform
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from leaklearn.store import FOLDER, fingerprint

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger(__name__)

ADDRESS = "LEAKLEARN_CLUSTER"
"""The environment variable that names the scheduler, such as `tcp://10.0.0.1:8786`."""

LARGE = 2**20
"""Bytes from which on a tensor is sent by itself."""
CONNECTING = 10.0
"""Seconds after which a scheduler that does not answer is given up."""
KEPT = 4
"""Functions that a worker keeps unpacked: jobs of several notebooks may take turns."""

PACKAGES = ("torch", "numpy", "scipy", "pandas", "cloudpickle", "distributed")
"""Packages that must have one version everywhere, beside Python and the sources of this one."""

training = import_module("leaklearn.learning.train")  # the package's own `train` is the function

_held: dict[str, Future] = {}  # the large tensors that the last jobs needed: the next ones most often do too
_numbers = count()
# On a worker only: what it computes, by name, and the large tensors of that.
_unpacked: dict[str, tuple[Callable[..., Any], list[tuple]]] = {}
_tensors: WeakValueDictionary[str, Tensor] = WeakValueDictionary()


@dataclass(frozen=True)
class Workers:
    """A cluster that is ready.

    Attributes
    ----------
    address : str
        Of the scheduler, as `LEAKLEARN_CLUSTER` takes it.
    dashboard : str
        Address of the page that shows what the workers do; Dask draws it where bokeh is installed.
    count : int
        Workers that are there.
    abandon : Callable
        To be called before their processes are killed, so that none is replaced.
    """

    address: str
    dashboard: str
    count: int
    abandon: Callable[[], None] = lambda: None

    def __str__(self) -> str:
        return f"{self.count} worker{'s' * (self.count > 1)} at {self.address}, dashboard {self.dashboard}"


def spread(function: Callable[..., Any], jobs: Iterable[tuple]) -> Iterator[tuple[int, Any]]:
    """Call a function with the arguments of every job; in this process, or on the cluster's workers.

    A function that is itself run by a worker computes its own jobs in its own process.

    Parameters
    ----------
    function
        Of a module that the workers have, or a closure. It must not count on what an earlier job has left, nor leave
        anything that is looked at afterwards: it may run in another process.
    jobs
        Its arguments, a tuple a job.

    Yields
    ------
    number, result
        Of each job as it ends: in their order in this process, in any order on workers.

    Raises
    ------
    Exception
        What a job raises. The other jobs are then given up.
    RuntimeError
        If the scheduler ends, or a worker that came later differs.
    ValueError
        If the cluster cannot be used: see `opened`.
    """
    jobs, client = list(jobs), connected()
    if client is not None:
        yield from _on_workers(client, function, jobs)
        return
    for number, job in enumerate(jobs):
        yield number, function(*job)


def at_once() -> int:
    """How many jobs of `spread` run at a time: 1 in this process."""
    client = connected()
    return 1 if client is None else max(1, len(client.nthreads()))


def connected() -> Client | None:
    """The client of the cluster that `LEAKLEARN_CLUSTER` names; None where there is none, and in its workers."""
    address = os.environ.get(ADDRESS)
    return _client(address) if address and not _unpacked else None


def check_name(where: str) -> int:
    """The workers to start for `local:N`, 0 for the address of a scheduler; a ValueError for anything else."""
    if local := re.fullmatch(r"local:(\d+)", where):
        if int(local[1]) < 1:
            raise ValueError(f"a cluster {where} has no workers; take local:2, or as many as there are cores")
        return int(local[1])
    if not re.fullmatch(r"(tcp|tls)://[^\s:/]+:\d+", where):
        raise ValueError(
            f"{where!r} is no cluster; it is local:N, N workers here, or a Dask scheduler, tcp://HOST:PORT"
        )
    return 0


@contextmanager
def opened(where: str) -> Iterator[Workers]:
    """A cluster that is ready, for as long as the context: workers that are started here, or those of a scheduler.

    Parameters
    ----------
    where
        ``local:4``, four processes of one thread each, to be reached from this machine only; or ``tcp://HOST:PORT``,
        the address of a Dask scheduler whose workers stay when the context ends.

    Raises
    ------
    ValueError
        For another name, where distributed is not installed, the scheduler does not answer or has no workers, or these
        have other versions of Python, this package or what it computes with.
    """
    processes, local = check_name(where), None
    distributed = _distributed()
    if processes:
        local = distributed.LocalCluster(
            n_workers=processes,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,  # as in one process: a worker that Dask pauses or restarts would wait for ever
            silence_logs=logging.CRITICAL,
        )

    ending = [CONNECTING]  # seconds that closing may take

    def abandon() -> None:
        ending[:] = [0.5]
        for nanny in local.workers.values() if local else ():
            nanny.close_gracefully()

    try:
        address = local.scheduler_address if local else where
        client = _connect(address)
        found = Workers(address, client.dashboard_link, len(client.nthreads()), abandon)
        client.close()
        yield found
    finally:
        if local:
            with suppress(TimeoutError):
                local.close(timeout=ending[0])


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise ValueError("a cluster needs Dask's distributed: pip install 'leaklearn[cluster]'") from error
    return distributed


@cache
def _client(address: str) -> Client:
    """This process's client, which lasts as long as the process."""
    return _connect(address)


def _connect(address: str) -> Client:
    """A client of this scheduler, once all its workers have what this process has."""
    distributed = _distributed()
    check_name(address)
    try:
        client = distributed.Client(address, timeout=CONNECTING, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"no Dask scheduler answers at {address} within {CONNECTING:g} s; is it running?") from error
    try:
        threads = client.nthreads()
        if set(threads.values()) != {1}:
            start = f"dask worker {address} --nthreads 1"
            found = f"workers of {max(threads.values())} threads" if threads else "no workers"
            raise ValueError(f"the scheduler {address} has {found}; start some of one thread: {start}")
        found = {"the scheduler": client.run_on_scheduler(_versions)} | client.run(_versions, on_error="return")
    except ImportError as error:
        client.close()
        raise ValueError(f"the scheduler {address} cannot load leaklearn ({error}); install it there") from error
    except BaseException:
        client.close()
        raise
    for who, theirs in found.items():
        if problem := _difference(theirs):
            client.close()
            raise ValueError(f"{who} of the cluster {address} {problem}; install the same everywhere")
    kinds = {theirs["processor"] for theirs in found.values()}
    if len(kinds) > 1:
        log.warning("the processors of the cluster differ (%s): so may the last digits", ", ".join(sorted(kinds)))
    return client


@cache
def _versions() -> dict[str, str]:
    """What must be the same in all processes; and the processor's kind, which decides the last digits."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    package, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        if file.relative_to(package).parts[0] not in ("report", "widgets", "auditing", "runner", "cli.py"):
            digest.update(file.read_bytes())
    found["leaklearn's source"] = digest.hexdigest()[:12]
    return {**found, "processor": torch.backends.cpu.get_cpu_capability()}


def _difference(theirs: object) -> str:
    """In what another process differs from this one, in words; empty where it does not."""
    if not isinstance(theirs, dict):
        return f"cannot load leaklearn ({theirs})"
    mine = _versions()
    names = [name for name in mine if name != "processor" and mine[name] != theirs.get(name)]
    return ", ".join(f"has {name} {theirs.get(name, 'absent')}, not {mine[name]}" for name in names)


def _on_workers(client: Client, function: Callable[..., Any], jobs: list[tuple]) -> Iterator[tuple[int, Any]]:
    if not jobs:
        return
    from distributed import as_completed

    parts: dict[str, Future] = {}

    def send(tensor: Tensor) -> str:
        key = f"{client.id}-{fingerprint([(str(tensor.stride()), tensor)])}"
        if key not in parts:
            parts[key] = _held.get(key) or client.submit(_hold, _pack(tensor), key=key, pure=False)
        return key

    name = f"{client.id}-{next(_numbers)}"
    told = {"threads": torch.get_num_threads(), "bf16": training.cpu_gains_by_bf16(), "versions": _versions()}
    if client.scheduler.address.startswith("tcp://127."):  # its workers are on this machine, and share its store
        told["store"] = os.environ.get(FOLDER)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that a large tensor is large
        whole = client.submit(_hold, _pack((function, jobs), send), key=name, pure=False)
    for key in set(_held) - set(parts):
        del _held[key]
    _held.update(parts)
    futures = {
        client.submit(_compute, name, whole, parts, number, told, key=f"{name}-{number}", pure=False, priority=-number)
        for number in range(len(jobs))
    }
    try:
        for future, packed in as_completed(futures, loop=client.loop, with_results=True):
            futures.discard(future)
            if isinstance(packed, BaseException):
                raise RuntimeError(f"the scheduler {client.scheduler.address} has ended, or dropped a job") from packed
            yield _load(packed)
    finally:  # where a job has failed, or nobody wants the others any more
        if futures and client.status == "running":
            client.cancel(list(futures))


def _compute(name: str, packed: bytes, parts: dict[str, bytes], number: int, told: dict[str, Any]) -> bytes:
    """On a worker: one job."""
    if problem := _difference(told["versions"]):  # of a worker that came after the start
        raise RuntimeError(f"the process that gives the jobs {problem} as this worker; install the same everywhere")
    torch.set_num_threads(told["threads"])
    training.cpu_gains_by_bf16 = lambda: told["bf16"]  # measured once for all, for two measurements may differ
    if told.get("store"):
        os.environ[FOLDER] = told["store"]
    if name not in _unpacked:
        while len(_unpacked) >= KEPT:
            del _unpacked[next(iter(_unpacked))]
        _unpacked[name] = _load(packed, parts)
    function, jobs = _unpacked[name]
    return _pack((number, function(*jobs[number])))


def _hold(content: bytes) -> bytes:
    """On a worker: what its jobs need. Other than scattered data it is made again where its worker is lost."""
    return content


def _pack(value: object, send: Callable[[Tensor], str] | None = None) -> bytes:
    """`value` for another process, where `_load` takes it; a large tensor is its key if there is a way to send it."""
    import cloudpickle

    class Packer(cloudpickle.Pickler):
        def persistent_id(self, each: object) -> str | None:
            large = type(each) is Tensor and each.device.type == "cpu" and each.nbytes >= LARGE
            return send(each) if send and large and not each.requires_grad else None

        def reducer_override(self, each: object) -> Any:
            if type(each) is Tensor and each.untyped_storage().nbytes() > each.nbytes + LARGE:
                return each.detach().clone().__reduce_ex__(self.proto)  # without the rest that it is cut from
            return super().reducer_override(each)

    file = io.BytesIO()
    Packer(file).dump(value)
    return file.getvalue()


def _load(packed: bytes, parts: Mapping[str, bytes] | None = None) -> Any:
    """What `_pack` has packed; `parts` are the tensors that were sent."""

    class Loader(pickle.Unpickler):
        def persistent_load(self, key: str) -> Tensor:
            tensor = _tensors.get(key)
            if tensor is None:
                tensor = _tensors[key] = _load(parts[key])
            return tensor

    return Loader(io.BytesIO(packed)).load()
