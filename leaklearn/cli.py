"""The `leaklearn` command: run the notebooks, or see which data sets are here.

Exit codes: 0 all went well, 1 a notebook failed or a file could not be written, 2 the request was wrong, 75 a slice is
over and there is more to do, 130 and 143 interrupted and terminated.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import NoReturn

from leaklearn.files import Paths
from leaklearn.project import PROJECT

DESCRIPTION = """\
How leaky is a federated-learning set-up, and what is a leak worth?
Companion to 'Leak and Learn' (CVPR 2024)."""

EXAMPLES = """\
examples:
  leaklearn reproduce                                 all notebooks, sized for a laptop (minutes)
  leaklearn reproduce --preset smoke --only 02 90     two of them at their own defaults
  leaklearn reproduce --only 03 --set "seeds=[0, 1]" dataset=cifar10
  leaklearn reproduce --list                          notebooks, their parameters and the presets
  nohup leaklearn reproduce --preset paper --nice 19 --jobs 1 &      hours, on what others leave of the machine;
                                                      rerun it to resume after a kill
  leaklearn reproduce --cluster local:4               on four processes, or on a Dask scheduler: same results
  leaklearn status --preset paper                     what is done, what runs, what is left and for how long
  leaklearn audit --model net.py:Net --data photos    what could be taken of your images (a folder for each class)
  leaklearn init demo                                 without a checkout: notebooks and presets in the folder demo
  leaklearn audit update before.safetensors after.safetensors --model net.py:Net --shape 3 32 32 --lr 0.01
                                                      what one update of your own training loop gives away
  leaklearn data                                      data sets: here or not, where, how to get them

Results: outputs/<preset>/<notebook>/ and outputs/<preset>/report.html. Data sets other than mnist5k and photos are
looked for in the folder that the environment variable LEAKLEARN_DATA names.
"""


GO_ON = 75  # the system's EX_TEMPFAIL: try again


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None, paths: Paths = PROJECT) -> int:
    """Run the command with `arguments` (by default those of the process) and return its exit code."""
    options = build_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return options.run(options, paths)
    except ValueError as error:
        return _fail(2, " ".join(str(error).split()))
    except OSError as error:
        return _fail(1, f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except KeyboardInterrupt:
        return _end(_fail(130, "interrupted; the results of notebooks that had finished are kept"))
    except Terminated:
        return _end(_fail(143, "terminated; the results of notebooks that had finished are kept"))


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="leaklearn", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=raw)
    parser.set_defaults(run=lambda options, paths: _help(parser))
    commands = parser.add_subparsers(metavar="command")

    command = commands.add_parser(
        "reproduce", help="run the notebooks and write the report", epilog=EXAMPLES, formatter_class=raw
    )
    presets = "smoke, laptop, paper, or a folder of params/ (default: laptop)"
    command.add_argument("--preset", default="laptop", help=presets)
    command.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="NAME", help="run these notebooks only; 02 is enough"
    )
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="change a parameter in every chosen notebook that has it",
    )
    command.add_argument(
        "--jobs", type=int, metavar="N", help="notebooks at once (default: one a core, 4 at most; one alone on a GPU)"
    )
    command.add_argument(
        "--slice",
        type=float,
        metavar="SECONDS",
        help="stop after so many seconds with exit code 75; rerun to resume",
    )
    command.add_argument("--again", action="store_true", help="run what is finished too, and train everything anew")
    command.add_argument(
        "--nice", type=int, default=0, metavar="N", help="leave the cores to others, the more the larger N, up to 19"
    )
    cluster = "compute seeds, settings and shards on local:N workers here, or on a Dask scheduler, tcp://HOST:PORT"
    command.add_argument("--cluster", metavar="WHERE", help=cluster)
    command.add_argument("--list", action="store_true", help="list notebooks, parameters and presets; run nothing")
    command.set_defaults(run=_reproduce)

    command = commands.add_parser("init", help="write notebooks and presets into a new folder, to run and change there")
    command.add_argument("folder", type=Path, metavar="FOLDER", help="a new or an empty folder")
    command.set_defaults(run=_init)

    command = commands.add_parser("status", help="what of a preset is done, what runs, what is left and for how long")
    command.add_argument("--preset", default="laptop", help=presets)
    command.set_defaults(run=_status)

    command = commands.add_parser("audit", help="what could be taken from clients that train your model on your images")
    _audit_arguments(command)

    command = commands.add_parser("data", help="list the data sets: here or not, where, how to get them")
    command.set_defaults(run=_data)

    command = commands.add_parser(
        "readme", help="write README's findings and docs/results.md from the results of a preset"
    )
    command.add_argument("--preset", default="laptop", help="whose results (default: laptop)")
    command.set_defaults(run=_readme)
    return parser


def _audit_arguments(command: Parser) -> None:
    """Of `leaklearn audit` and `leaklearn audit update`; here, for their own module imports PyTorch."""
    update = command.add_subparsers(metavar="update").add_parser(
        "update", help="what one update gives away: the weights before and after a client's training"
    )
    for each in (command, update):
        model = "a class or function that makes the model, without arguments"
        each.add_argument("--model", metavar="FILE:NAME", help=model, required=each is update)
        each.add_argument("--batch-size", type=int, default=32, help="images of one step of a client (default: 32)")
        steps = "more than one: FedAvg (default: 1)"
        each.add_argument("--local-steps", type=int, default=1, help=steps)
        modes = ["train", "eval"]
        each.add_argument("--batch-norm", choices=modes, default="train", help="mode of the clients' (default: train)")
        each.add_argument("--mean", type=float, nargs="+", help="of each channel, taken off pixels in [0, 1] first")
        each.add_argument("--std", type=float, nargs="+", help="of each channel, which they are then divided by")
        seconds, out = (120.0, "audit.html") if each is command else (60.0, "update.html")
        each.add_argument(
            "--seconds", type=float, default=seconds, help=f"of gradient inversion (default: {seconds:g})"
        )
        each.add_argument("--out", type=Path, default=Path(out), help=f"the page (default: {out})")

    command.add_argument("--data", type=Path, metavar="FOLDER", help="images, a folder for each class")
    command.add_argument("--weights", type=Path, metavar="FILE", help="state as safetensors (default: as it is made)")
    size = "height and width that images are resized to (default: 32)"
    command.add_argument("--size", type=int, default=32, help=size)
    command.add_argument("--lr", type=float, default=0.01, help="local learning rate of FedAvg (default: 0.01)")
    command.add_argument("--secure", action="store_true", help="the server sees sums over the clients only")
    command.add_argument("--clients", type=int, default=8, help="attacked at most (default: 8)")
    command.set_defaults(run=_audit, parser=command)

    update.add_argument("before", help="the model's state that the client was sent, as safetensors")
    update.add_argument("after", help="its state after the client's training; with --gradient the gradient by name")
    update.add_argument("--shape", type=int, nargs=3, required=True, metavar=("C", "H", "W"), help="of an image")
    update.add_argument("--lr", type=float, help="learning rate that the client trained with")
    update.add_argument("--gradient", action="store_true", help="AFTER holds the gradient of the mean loss (FedSGD)")
    update.add_argument("--data", type=Path, metavar="FOLDER", help="the true images, to score what is read")
    update.add_argument("--noise", type=float, metavar="Z", help="noise multiplier that clients are said to use")
    update.add_argument("--clip", type=float, default=1.0, metavar="C", help="and their clipping norm (default: 1)")
    update.set_defaults(run=_audit_update)


def _help(parser: argparse.ArgumentParser) -> int:
    parser.print_help()
    return 0


def _init(options: argparse.Namespace, paths: Paths) -> int:
    from leaklearn.runner.init import init

    count = sum(file.suffix == ".ipynb" for file in init(options.folder))
    _say(f"{count} notebooks and their presets. Run them: cd {options.folder} && leaklearn reproduce --preset smoke")
    return 0


def _check_project(paths: Paths) -> None:
    if not paths.notebooks.is_dir():
        raise ValueError(f"{paths.root} has no notebooks: `leaklearn init FOLDER` writes them; then run this in FOLDER")


def _reproduce(options: argparse.Namespace, paths: Paths) -> int:
    from leaklearn.runner import plan

    _check_project(paths)
    jobs = plan.plan(options.preset, options.only, options.set, paths)  # before the slow imports
    from leaklearn.experiments.cluster import opened
    from leaklearn.runner import progress
    from leaklearn.runner.reproduce import TIME_IS_UP, reproduce

    if options.list:
        _say(progress.listing(jobs, options.preset, paths))
        return 0
    if options.nice:
        os.nice(options.nice)
    work = progress.expected_work(jobs, options.preset, paths)
    shown = progress.Progress(work=work, took=progress.last_took(jobs, options.preset, paths))
    with opened(options.cluster) if options.cluster else nullcontext() as workers, shown:
        if workers:
            _say(str(workers))
        outcomes, report = reproduce(
            options.preset,
            options.only,
            options.set,
            paths=paths,
            at_once=options.jobs,
            slice_seconds=options.slice,
            again=options.again,
            workers=workers,
            on_start=shown.start,
            on_cell=shown.cell,
            on_outcome=shown.outcome,
        )
    _say(progress.closing_table(outcomes))
    waiting = [outcome.notebook for outcome in outcomes if outcome.error == TIME_IS_UP]
    failed = [f"{each.notebook} ({each.error})" for each in outcomes if each.error and each.notebook not in waiting]
    if failed:
        _fail(1, f"{len(failed)} of {len(outcomes)} notebooks failed: {'; '.join(failed)}")
    _say(f"Report: {report}")
    if waiting and not failed:
        return _fail(
            GO_ON, f"the slice is over, {len(waiting)} of {len(outcomes)} notebooks go on with the same command"
        )
    return 1 if failed else 0


def _status(options: argparse.Namespace, paths: Paths) -> int:
    from leaklearn.runner import progress, status

    _check_project(paths)
    rows, left = status.status(options.preset, paths)
    _say(f"{progress.aligned(rows)}\n\n{options.preset}: {left}")
    return 0


def _audit(options: argparse.Namespace, paths: Paths) -> int:
    missing = [name for name in ("model", "data") if getattr(options, name) is None]
    if missing:
        options.parser.error(f"the following arguments are required: {', '.join(f'--{name}' for name in missing)}")
    from leaklearn.auditing.command import run

    _say(f"{run(options)}\n\nPage: {options.out}")
    return 0


def _audit_update(options: argparse.Namespace, paths: Paths) -> int:
    from leaklearn.auditing.command import run_update

    _say(f"{run_update(options)}\n\nPage: {options.out}")
    return 0


def _data(options: argparse.Namespace, paths: Paths) -> int:
    from leaklearn import data
    from leaklearn.runner import progress

    found = data.describe()
    given = os.environ.get("LEAKLEARN_DATA", "").strip()
    nowhere = f"LEAKLEARN_DATA is {given!r}, which is not a folder" if given else "LEAKLEARN_DATA is not set"
    rows = [
        {
            "data set": each.name,
            "images": each.images,
            "shape": "x".join(map(str, each.shape)),
            "classes": each.classes,
            "here": "yes" if each.present else "in part" if each.lacks else "no",
            "where": each.where or nowhere,
        }
        for each in found
    ]
    how = [
        {"name": f"  {each.name}", "how": f"{each.lacks} is missing: {each.how}" if each.lacks else each.how}
        for each in found
        if not each.present
    ]
    _say(progress.aligned(rows) + "\n\nyes: the files are there; each load checks whether they are whole.")
    if how:
        _say("\nHow to get the others:\n" + progress.aligned(how, header=False))
    return 0


def _readme(options: argparse.Namespace, paths: Paths) -> int:
    from leaklearn.report import readme

    results = readme.update(options.preset, paths)
    minutes = sum(found["minutes"] for found in results.values())
    _say(f"README.md, docs/results.md and docs/results.json: {len(results)} notebooks, {minutes:.0f} minutes")
    return 0


class Terminated(BaseException):
    """SIGTERM has come."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Turn SIGTERM into an exception, so that kernels end too."""
    raise Terminated


def _end(code: int) -> int:
    """Give the exit code back; or end at once where threads still wait for kernels that are dead."""
    if threading.active_count() > 1:
        os._exit(code)
    return code


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _fail(code: int, message: str) -> int:
    sys.stderr.write(f"leaklearn: {message}\n")
    sys.stderr.flush()
    return code
