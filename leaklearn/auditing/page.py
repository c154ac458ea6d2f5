"""An audit as one page that a reader without the project understands."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape

import matplotlib.pyplot as plt
import pandas as pd

from leaklearn.auditing.run import Audit
from leaklearn.report.names import label
from leaklearn.report.pictures import labelled_rows

TITLES = {
    "attack": "attack",
    "defence": "defence",
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
.wide { overflow-x: auto } img { max-width: 100%; background: #fff } .verdict { font-size: 1.2rem }
@media print { body { margin: 0; max-width: none } }
"""


def page(found: Audit) -> str:
    """The whole HTML file."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>What leaks</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>{body(found)}</body></html>"
    )


def body(found: Audit) -> str:
    """What it says, without head and style, as a notebook shows it."""
    parts = [f"<h1>What leaks</h1><p>{escape(found.setting)}</p>", f'<p class="verdict">{escape(found.verdict)}</p>']
    parts.append(_pictures(found))
    parts.append("<h2>Attacks</h2>" + _table(found.attacks))
    if len(found.defences):
        parts.append("<h2>Would a defence help?</h2>" + _table(found.defences))
    parts.append(
        "<h2>What this rests on</h2><ul>" + "".join(f"<li>{escape(text)}</li>" for text in found.limits) + "</ul>"
    )
    return "".join(parts)


def _pictures(found: Audit) -> str:
    """The first client's images, and what each attack made of them."""
    if not found.pictures:
        return ""
    truth = next(iter(found.pictures.values()))[0]
    rows = [("yours", truth, ())] + [(label(name), made, ()) for name, (_, made) in found.pictures.items()]
    fig = labelled_rows(rows, width=9)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(fig)
    code = base64.b64encode(buffer.getvalue()).decode()
    told = "First row: images of the first client. Below: what each attack read of them; grey where nothing."
    picture = f'<img alt="{escape(told)}" src="data:image/png;base64,{code}">'
    return f"<figure>{picture}<figcaption>{escape(told)}</figcaption></figure>"


def _table(frame: pd.DataFrame) -> str:
    names = [name for name in TITLES if name in frame]
    head = "".join(f"<th>{TITLES[name]}</th>" for name in names)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(name, row))}</td>" for name in names) + "</tr>"
        for row in frame.to_dict("records")
    )
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


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
        return value.replace("_", " ").replace(" ", ", ") if value else "none"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
