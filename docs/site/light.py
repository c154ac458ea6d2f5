"""Light copies of what runs wrote, small enough for git: the site is built from them without running anything.

    python docs/site/light.py    # from outputs/paper and outputs/laptop to docs/executed

Of each notebook the executed copy of the preset paper is taken, where there is none that of laptop; where neither is
there, the copy of an earlier run stays. Pictures become PNG with a palette, in the report WebP.
Left out are the state of widgets, progress bars, all but the first warnings of a cell, and the folders of the machine
that ran it.
"""

import base64
import io
import re
from pathlib import Path

import nbformat
import numpy as np
from PIL import Image

from leaklearn.files import Paths, write_text
from leaklearn.project import PROJECT
from leaklearn.report import results

PRESETS = ("paper", "laptop")
"""Whose runs are shown, the first one first."""
LARGEST_PICTURE = 200_000
"""Bytes of one picture at most."""
LARGEST = 20 * 2**20
"""Bytes of `docs/executed` at most."""
FAITHFUL = 45.0
"""dB: a picture keeps all its colours where 256 of them would be further from it than this."""
REPORT_SCALE, REPORT_QUALITY = 0.75, 60
"""The report's pictures, WebP: less than they are drawn with for paper, and still more pixels than a screen shows."""
LONGEST_WARNING = 8
"""Lines of warnings that are kept of a cell."""
WIDGET = "application/vnd.jupyter.widget-view+json"
EXPLORER = "*An explorer with sliders stands here when the notebook runs, in JupyterLab or on Binder.*"


def opened(png: bytes, scale: float = 1.0) -> Image.Image:
    """A picture on white, with this share of its pixels in each direction."""
    with Image.open(io.BytesIO(png)) as file:
        picture = Image.alpha_composite(Image.new("RGBA", file.size, "white"), file.convert("RGBA")).convert("RGB")
    size = [max(1, round(length * scale)) for length in picture.size]
    return picture.resize(size, Image.Resampling.LANCZOS) if scale < 1 else picture


def shrink(png: bytes) -> bytes:
    """The same picture as a PNG of at most `LARGEST_PICTURE` bytes: with 256 colours where they do, or narrower."""
    scale = 1.0
    while True:
        small = opened(png, scale)
        palette = small.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        error = np.mean((np.asarray(small, float) - np.asarray(palette.convert("RGB"), float)) ** 2)
        best = palette if error < 255**2 / 10 ** (FAITHFUL / 10) else small
        written = io.BytesIO()
        best.save(written, "PNG", optimize=True)
        if written.tell() <= LARGEST_PICTURE:
            return written.getvalue()
        scale *= 0.85


def light_notebook(notebook: nbformat.NotebookNode, ran: dict) -> nbformat.NotebookNode:
    """An executed notebook without what only its own kernel or machine can use.

    Parameters
    ----------
    notebook
        As papermill wrote it.
    ran
        Its `provenance.json`: preset, start, seconds, commit and version are kept in the copy's metadata.
    """
    root = str(Path(notebook.metadata.get("papermill", {}).get("input_path", "")).parent.parent)
    cells = []
    for cell in notebook.cells:
        metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        kept = {"id": cell.get("id", f"cell-{len(cells)}"), "metadata": metadata, "source": cell.source}
        if cell.cell_type == "markdown":
            cells.append(nbformat.v4.new_markdown_cell(**kept))
            continue
        outputs = [light for output in cell.outputs if (light := _light_output(output, root)) is not None]
        cells.append(nbformat.v4.new_code_cell(execution_count=cell.execution_count, outputs=outputs, **kept))
    about = {"preset": ran["parameters"]["preset"], "started": ran["started"], "seconds": ran["seconds"]}
    about |= {"commit": ran["git"]["commit"], "version": ran["versions"]["leaklearn"]}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "leaklearn": about}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def _light_output(output: nbformat.NotebookNode, root: str) -> nbformat.NotebookNode | None:
    """One output, with one way to show it; None for a progress bar."""
    if output.output_type == "stream":
        text = output.text.replace(f"{root}/", "") if root not in ("", ".", "/") else output.text
        lines = text.splitlines(keepends=True)
        if output.name == "stderr" and len(lines) > LONGEST_WARNING:
            text = "".join(lines[:LONGEST_WARNING]) + f"... and {len(lines) - LONGEST_WARNING} lines more\n"
        return nbformat.v4.new_output("stream", name=output.name, text=text)
    if output.output_type == "error":
        raise ValueError(f"a cell failed ({output.ename}: {output.evalue}): only complete runs are kept")
    data = dict(output.data)
    if WIDGET in data:
        told = data.get("text/plain", "")
        return nbformat.v4.new_output("display_data", {"text/markdown": EXPLORER}) if "VBox(" in told else None
    if "image/png" in data:
        data = {"image/png": base64.b64encode(shrink(base64.b64decode(data["image/png"]))).decode("ascii")}
    elif "text/html" in data:
        data.pop("text/plain", None)
    if output.output_type == "execute_result":
        return nbformat.v4.new_output("execute_result", data, execution_count=output.execution_count)
    return nbformat.v4.new_output(output.output_type, data)


def light_report(html: str) -> str:
    """A report with smaller pictures."""

    def smaller(found: re.Match) -> str:
        written = io.BytesIO()
        opened(base64.b64decode(found[1]), REPORT_SCALE).save(written, "WEBP", quality=REPORT_QUALITY)
        return f"data:image/webp;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"

    return re.sub(r"data:image/(?:png|webp);base64,([A-Za-z0-9+/=]+)", smaller, html)


def preset_of(copy: Path) -> str:
    """Which preset a light copy is of; empty where there is no copy."""
    return nbformat.read(copy, as_version=4).metadata["leaklearn"]["preset"] if copy.is_file() else ""


def renew(paths: Paths, folder: Path) -> list[Path]:
    """Write the light copies of all runs that are there, and return their files.

    Raises
    ------
    ValueError
        If all of them are more than `LARGEST` bytes, or a run failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in paths.notebook_names():
        for preset in PRESETS:
            executed, copy = paths.results(preset, name) / "notebook.ipynb", folder / f"{name}.ipynb"
            if preset_of(copy) == preset or not preset_of(copy) or preset == PRESETS[0]:
                if executed.is_file():
                    notebook = nbformat.read(executed, as_version=4)
                    light = light_notebook(notebook, results.provenance(executed.parent))
                    written.append(write_text(copy, nbformat.writes(light) + "\n"))
                    break
            else:
                break  # a run of a smaller preset does not take the place of this one
    for preset in PRESETS[1:]:  # the paper preset's is rendered from the tables that git has: see pages.py
        report = paths.outputs / preset / "report.html"
        if report.is_file():
            text = light_report(report.read_text(encoding="utf-8"))
            written.append(write_text(folder / f"report_{preset}.html", text))
    size = sum(file.stat().st_size for file in folder.iterdir())
    if size > LARGEST:
        raise ValueError(f"{folder} has {size / 2**20:.1f} MiB, at most {LARGEST / 2**20:.0f} belong in git")
    return written


if __name__ == "__main__":
    here = PROJECT.root / "docs" / "executed"
    files = renew(PROJECT, here)
    total = sum(file.stat().st_size for file in here.iterdir())
    print(f"{len(files)} files renewed, {total / 2**20:.1f} MiB in {here.relative_to(PROJECT.root)}")
