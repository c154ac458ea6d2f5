"""An audit as one page that a reader without the project understands."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import Tensor

from leaklearn.auditing.run import SHOWN, Audit
from leaklearn.auditing.update import UpdateAudit
from leaklearn.files import write_text
from leaklearn.report.names import label
from leaklearn.report.pictures import labelled_rows

TITLES = {
    "defence": "defence",
    "attack": "attack",
    "changes": "what the server changes",
    "leak_rate": "images taken",
    "images": "of",
    "psnr": "quality (dB)",
    "psnr_of_blank": "a blank reaches (dB)",
    "labels": "labels right",
    "refused": "tests that warn a client",
    "seconds": "seconds",
}
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8884; vertical-align: top }
.wide { overflow-x: auto } figure { margin: 1rem 0 } img { max-width: 100%; background: #fff }
.verdict { font-size: 1.2rem }
@media print { body { margin: 0; max-width: none } }
"""


def page(found: Audit) -> str:
    """The whole HTML file of an audit."""
    return _whole(body(found))


def body(found: Audit) -> str:
    """What it says, without head and style, as a notebook shows it."""
    parts = [f"<h1>What leaks</h1><p>{escape(found.setting)}</p>", f'<p class="verdict">{escape(found.verdict)}</p>']
    if found.pictures:
        truth = next(iter(found.pictures.values()))[0]
        named = {fill(label(name), 26): made for name, (_, made) in found.pictures.items()}
        rows = [("yours", truth, ()), *((name, made, ()) for name, made in named.items())]
        told = "First row: images of the first client. Below: what each attack read of them; grey where nothing."
        parts.append(_figure(rows, told))
    parts.append("<h2>Attacks</h2>" + _table(found.attacks))
    if len(found.defences):
        parts.append("<h2>Would a defence help?</h2>" + _table(found.defences))
    parts.append("<h2>What this rests on</h2>" + _list(found.limits))
    return "".join(parts)


def update_page(found: UpdateAudit) -> str:
    """The whole HTML file of an update's audit."""
    parts = [f'<h1>What this update gives away</h1><p class="verdict">{escape(found.verdict)}</p>']
    made, notes = found.images[:SHOWN], ()
    if found.quality is not None:
        shown = found.quality.sort_values("position").head(SHOWN)
        made = found.images[torch.from_numpy(shown["reconstruction"].to_numpy().copy())]
        notes = [f"{value:.1f} dB" for value in shown["psnr"]]
    parts.append(_figure([("read from it", made, notes)], "What gradient inversion made of the update."))
    marks = [f"{name}: {value}" for name, value in found.marks.items()]
    parts.append("<h2>Does it fit together?</h2>" + _list(str(found.check).splitlines()))
    parts.append("<h2>What its numbers tell</h2>" + _list(marks))
    parts.append("<h2>What this rests on</h2>" + _list(found.limits))
    return _whole("".join(parts))


def write(path: str | Path, text: str) -> Path:
    """Write a page, its folder too, and give its path."""
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def _whole(inside: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>What leaks</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>{inside}</body></html>"
    )


def _figure(rows: Sequence[tuple[str, Tensor, Sequence[str]]], told: str) -> str:
    """Rows of images as a picture inside the page, with its caption."""
    fig, buffer = labelled_rows(rows, width=9), io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(fig)
    code = base64.b64encode(buffer.getvalue()).decode()
    picture = f'<img alt="{escape(told)}" src="data:image/png;base64,{code}">'
    return f"<figure>{picture}<figcaption>{escape(told)}</figcaption></figure>"


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table(frame: pd.DataFrame) -> str:
    names = [name for name in TITLES if name in frame]
    head = "".join(f"<th>{TITLES[name]}</th>" for name in names)
    rows = ["".join(f"<td>{escape(_cell(name, row))}</td>" for name in names) for row in frame.to_dict("records")]
    lines = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'


def _cell(name: str, row: Mapping[str, object]) -> str:
    """A value as text; the leak rate with its interval."""
    value = row[name]
    if name == "leak_rate":
        return f"{100 * value:.0f} % [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
    if value != value:
        return "–"
    if name == "attack":
        return label(value)
    if name == "labels":
        return f"{100 * value:.0f} %"
    if name == "refused":
        return ", ".join(test.replace("_", " ") for test in value.split()) or "none"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
