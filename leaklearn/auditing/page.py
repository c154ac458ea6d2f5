"""An audit as one page that a data-protection officer reads without help; table and figures are those of the report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure as Drawing

from leaklearn.auditing import figures, words
from leaklearn.auditing.found import Audit
from leaklearn.auditing.run import SHOWN
from leaklearn.auditing.update import UpdateAudit
from leaklearn.files import write_text
from leaklearn.report.html import Figure, embedded, now, style, template
from leaklearn.report.lines import STYLE
from leaklearn.report.names import label
from leaklearn.report.pictures import labelled_rows
from leaklearn.report.tables import Table

DPI = 110
EXACT = 60.0
"""PSNR in dB from which on a page calls a version exact."""


@dataclass(frozen=True)
class Part:
    """A section of the page: texts, a list, figures, a table with its caption, and words explained."""

    id: str
    title: str
    texts: Sequence[str] = ()
    items: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    table: Table | None = None
    caption: str = ""
    terms: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """A number that opens the page: what it is of, its value, a note, and how it looks (bad, good or none)."""

    text: str
    value: str
    note: str
    tone: str = ""


@plt.style.context(STYLE)
def page(found: Audit) -> str:
    """The whole HTML file of an audit."""
    return _rendered(
        "What could be taken from your clients", found.setting, found.verdict, _cards(found), _parts(found)
    )


@plt.style.context(STYLE)
def body(found: Audit) -> str:
    """What it says, without head and style, as a notebook shows it."""
    return _rendered("", found.setting, found.verdict, _cards(found), _parts(found), bare=True)


@plt.style.context(STYLE)
def update_page(found: UpdateAudit) -> str:
    """The whole HTML file of an update's audit."""
    made, notes = found.images[:SHOWN], ()
    if found.quality is not None:
        shown = found.quality.sort_values("position").head(SHOWN)
        made = found.images[torch.from_numpy(shown["reconstruction"].to_numpy().copy())]
        notes = [f"{value:.1f} dB" for value in shown["psnr"]]
    told = (
        "What gradient inversion made of the update; it may show nothing of the true images, and looks like something."
    )
    marks = Table(["What", "In this update"], [list(each) for each in found.marks.items()], [False, False])
    parts = [
        Part("read", "What was read from it", figures=[_figure(labelled_rows([("", made, notes)], width=7.5), told)]),
        Part("marks", "Is a defence in it?", table=marks, caption="What the update's numbers tell of a defence."),
        Part("fit", "Does it fit together?", items=str(found.check).splitlines()),
        Part("limits", "What this rests on, and what was not tried", items=found.limits),
        Part("words", "Words", terms=words.TERMS),
    ]
    return _rendered("What this update gives away", "One update of one client", found.verdict, [], parts)


def write(path: str | Path, text: str) -> Path:
    """Write a page, its folder too, and give its path."""
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def _rendered(
    title: str, setting: str, verdict: str, cards: Sequence[Card], parts: Sequence[Part], *, bare: bool = False
) -> str:
    try:
        number = version("leaklearn")
    except PackageNotFoundError:  # run from its folder
        number = ""
    about = {"title": title, "setting": setting, "verdict": verdict, "cards": cards, "sections": parts, "bare": bare}
    return template("audit.html.j2").render(**about, style=style(), written=now(), version=number).strip() + "\n"


def _cards(found: Audit) -> list[Card]:
    honest = found.attacks["changes"] == "nothing"
    cards = []
    for text, rows in (
        ("A server that changes the model takes", found.attacks[~honest]),
        ("A server that only reads takes", found.attacks[honest]),
    ):
        if len(rows):
            best = rows.loc[rows["leak_rate"].idxmax()]
            cards.append(_card(text, best, label(best["attack"]), "bad" if best["leak_rate"] > 0 else ""))
    if len(found.defences):
        least = found.defences.loc[found.defences["leak_rate"].idxmin()]
        helps = least["leak_rate"] < found.worst["leak_rate"]
        text = "With the defence that helps most, of those tried" if helps else "No defence that was tried helps:"
        cards.append(_card(text, least, least["defence"] if helps else "under the best of them"))
    return cards


def _card(text: str, row: pd.Series, what: str, tone: str = "") -> Card:
    value, _, share = _taken(row).partition(" (")
    return Card(text, f"{value} images", f"({share}. {what[0].upper()}{what[1:]}", tone)


def _parts(found: Audit) -> list[Part]:
    parts = []
    if found.pictures:
        told = "First row: images of the first client. Below: what each attack read of them; grey where nothing."
        parts.append(Part("images", "What was read", figures=[_figure(figures.read_images(found), told)]))
    about = (
        "Each attack plays the server. It is given the model, what the clients send, and some public images of the "
        "same kind; the clients' own images serve only to check what it read."
    )
    drawn = [_figure(figures.attacks_chart(found), "Images taken by each attack, with the range of the true share.")]
    caption = "Every attack that was tried. Words such as likeness are explained at the end."
    parts.append(Part("attacks", "What was tried", [about], (), drawn, _attacks(found.attacks), caption))
    if len(found.defences):
        about = "The clients defend themselves, the attacker knows how, and the attack that takes most is told."
        drawn = [_figure(figures.defences_chart(found), "Images that are still taken under each defence.")]
        caption = "Every defence that was tried. What it costs in accuracy was not measured here."
        parts.append(Part("defences", "What helps", [about], (), drawn, _defences(found.defences), caption))
    parts.append(Part("next", "What to do next", items=list(words.next_steps(found))))
    parts.append(Part("limits", "What this rests on, and what was not tried", items=found.limits))
    parts.append(Part("words", "Words", terms=words.TERMS))
    return parts


def _attacks(frame: pd.DataFrame) -> Table:
    names = ["Attack", "What the server does", "Images taken", "Likeness", "Labels right", "A client's tests"]
    rows = [
        [label(row["attack"]), words.does(row["attack"]), _taken(row), _likeness(row), _labels(row), _refused(row)]
        for row in frame.to_dict("records")
    ]
    return _with_limits(names, rows, frame)


def _defences(frame: pd.DataFrame) -> Table:
    names = ["Defence", "Strongest attack then", "Images taken", "Likeness", "Labels right"]
    rows = [
        [
            row["defence"],
            label(row["attack"]) if row["leak_rate"] else "none took any",
            _taken(row),
            _likeness(row),
            _labels(row),
        ]
        for row in frame.to_dict("records")
    ]
    return _with_limits(names, rows, frame)


def _with_limits(names: list[str], rows: list[list[str]], frame: pd.DataFrame) -> Table:
    rows = [[*row, limit] for row, limit in zip(rows, frame["limit"], strict=True)]
    return Table([*names, "What it leaves open"], rows, [False] * (len(names) + 1))


def _taken(row: pd.Series | dict) -> str:
    count = round(row["leak_rate"] * row["images"])
    rate, low, high = words.in_percent(row)
    told = f"{count} of {row['images']} ({rate} %: {low} to {high} %)"
    return told.replace(" %", "\N{NO-BREAK SPACE}%").replace(" to ", "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}")


def _likeness(row: dict) -> str:
    if row["psnr"] != row["psnr"]:
        return "–"
    blank = row.get("psnr_of_blank", float("nan"))
    if row["psnr"] >= EXACT:
        return "exact"
    return f"{row['psnr']:.0f} dB" + (f", a blank {blank:.0f} dB" if blank == blank else "")


def _labels(row: dict) -> str:
    return "–" if row["labels"] != row["labels"] else f"{100 * row['labels']:.0f} %"


def _refused(row: dict) -> str:
    if row["refused"] == words.NOT_TESTED:
        return row["refused"]
    named = ", ".join(test.replace("_", " ") for test in row["refused"].split())
    return f"warn: {named}" if named else "none warns"


def _figure(fig: Drawing, told: str) -> Figure:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight")
    plt.close(fig)
    return embedded("picture.png", buffer.getvalue(), told, f"{told} The table holds its numbers.")
