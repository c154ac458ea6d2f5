"""The README's table: what each notebook shows, the minutes it takes, the paper beside ours.

Numbers come from the results of a preset and are kept in `docs/results.json`, from which the table can be made again
without running anything; a test compares the two. So it is with the table on the paper's data sets (`paper_table`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from leaklearn.files import read_json, write_json, write_text
from leaklearn.paths import REPOSITORY, Paths
from leaklearn.report import paper_table
from leaklearn.report.headlines import headline

BEGIN = "<!-- This table is written by `make readme`. -->"
END = "<!-- End of the table. -->"
HEADER = "| paper's section | notebook | what it shows | minutes¹ | the paper (CIFAR-10) | ours² |"


@dataclass(frozen=True)
class Row:
    """What is told of a notebook and does not depend on its results."""

    section: str
    notebook: str
    shows: str
    paper: str = ""


ROWS = (
    Row("(the whole story)", "00_overview", "one update in, images out, a model trained"),
    Row(
        "Linear layer leakage",
        "02_linear_layer_leakage",
        "trap weights, Robbing the Fed, LOKI: leak rate against layer size, local steps, crowd; beyond the paper: bins "
        "that move, QBI, SPEAR on honest layers",
        "78.93 / 76.61 / 75.15 % at FC size 4 / 2 / 1 (meaning doubtful)",
    ),
    Row(
        "Gradient inversion",
        "01_gradient_inversion",
        "images from honest gradients: quality and price against batch size, six attacks, labels, a self-check",
        "27.88 dB at batch size 4; 61.17 days for 50,000 images on one A100",
    ),
    Row(
        "Training on leaked data",
        "03_training_on_leaked_data",
        "federated, leaked by either attack, centralised: test accuracy",
        "72.76 % FL, 90.34 % GI, 93.16 % LLL",
    ),
    Row(
        "FedAvg with leaked images",
        "04_fedavg",
        "both attacks against local steps and epochs; a model trained on the leak, round by round beside "
        "the federation",
    ),
    Row("Semi-supervised learning", "05_semi_supervised", "unlabelled leaks and a few labels: FixMatch, CoMatch"),
    Row(
        "Starting from federated models",
        "06_federated_initialisation",
        "fine-tuning the federated model on growing leaks",
    ),
    Row(
        "Quality of reconstruction",
        "07_reconstruction_quality",
        "training on poor reconstructions, right and wrong labels; which measure ranks worth; data-equivalent size",
    ),
    Row(
        "Quality trends",
        "08_quality_trends",
        "what drives quality: batch, class, repeated labels, training stage, iterations, smoothness; occupancy, "
        "brightness and fit of the bins",
    ),
    Row("Beyond the paper", "09_label_matching", "the labels that leaked images lack, from the same update"),
    Row("Discussion: non-IID clients", "10_non_iid", "both attacks and the federation where clients differ in classes"),
    Row("Beyond the paper", "11_defences", "which defence stops which attack, at which ε, and what it costs"),
    Row("Every claim", "90_report", "the paper's figure, ours with interval, the verdict", "C1 to C10"),
)


def update(preset: str = "laptop", paths: Paths = REPOSITORY) -> dict[str, dict[str, object]]:
    """Write `docs/results.json` and the README's table from the results of a preset, and return the former.

    Raises
    ------
    ValueError
        If a notebook has no complete run under the preset, or the README lacks the marks around its table.
    """
    file = paths.root / "README.md"
    readme = file.read_text(encoding="utf-8")
    results = read_results(preset, paths)
    new = replaced(readme, table(results))
    new = replaced(new, paper_table.table(paths), paper_table.BEGIN, paper_table.END)
    write_json(paths.root / "docs" / "results.json", results)
    write_text(file, new)
    return results


def read_results(preset: str, paths: Paths = REPOSITORY) -> dict[str, dict[str, object]]:
    """Minutes and headline of each notebook in `ROWS`, by its name; see `update` for errors."""
    found = {}
    for each in ROWS:
        folder = paths.results(preset, each.notebook)
        ran = read_json(folder / "provenance.json")
        if not ran:
            raise ValueError(
                f"{each.notebook} has no complete run in {folder}: run `make reproduce PRESET={preset}` first"
            )
        found[each.notebook] = {
            "minutes": max(0.1, round(ran["seconds"] / 60, 1)),
            "ours": headline(each.notebook, folder),
        }
    return found


def table(results: Mapping[str, Mapping[str, object]]) -> str:
    """The Markdown table of `results`, as `read_results` gives them."""
    lines = [HEADER, "|---" * 6 + "|"]
    for each in ROWS:
        mine = results[each.notebook]
        link = f"[{each.notebook}](notebooks/{each.notebook}.ipynb)"
        cells = (each.section, link, each.shows, f"{mine['minutes']:g}", each.paper, mine["ours"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def replaced(readme: str, new: str, begin: str = BEGIN, end: str = END) -> str:
    """The README with another table between its marks; a ValueError if it lacks them."""
    before, first, rest = readme.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"README.md lacks the line {end if first else begin!r} around its table")
    return f"{before}{begin}\n\n{new}\n\n{end}{after}"
