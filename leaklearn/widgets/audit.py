"""Explorer of notebook 12: what the audit of one model finds under several protocols and batch sizes."""

from __future__ import annotations

import ipywidgets as widgets
from matplotlib.figure import Figure

from leaklearn.auditing.figures import attacks_chart, read_images
from leaklearn.auditing.sweep import PROTOCOLS, Sweep
from leaklearn.widgets.parts import choices, explorer, menu


def explore_audit(found: Sweep) -> widgets.VBox:
    """Pick a protocol and a picture and slide the batch size: the verdict, what was read, or the shares with intervals.

    Parameters
    ----------
    found
        What `leaklearn.auditing.sweep` measured; nothing is computed anew.

    Returns
    -------
    ipywidgets.VBox
        Two dropdowns, a slider over the batch sizes, a line of text and a picture.

    Raises
    ------
    ValueError
        Where nothing was measured.
    """
    if not found.audits:
        raise ValueError("no audit to explore: give at least one protocol and one batch size")
    names, sizes = (list(dict.fromkeys(each)) for each in zip(*found.audits, strict=True))
    protocol = menu("protocol", [(PROTOCOLS[name], name) for name in names])
    shown = menu("shown", [("what was read", read_images), ("shares with intervals", attacks_chart)])
    size = choices("batch size", sizes)

    def view() -> tuple[str, Figure]:
        one = found.audits[protocol.value, size.value]
        return f"{PROTOCOLS[protocol.value]}, batches of {size.value}: {one.verdict}", shown.value(one)

    return explorer([protocol, shown, size], view)
