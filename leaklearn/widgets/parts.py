"""What all explorers share: sliders of one width, and pictures that need no output widget."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import ipywidgets as widgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

WIDE = {
    "layout": widgets.Layout(width="36em"),
    "style": {"description_width": "11em"},
    "continuous_update": False,
}

# Controls, text and picture together in one window.
IN_SIGHT = widgets.Layout(max_height="28em", object_fit="contain", object_position="left top")


def slider(name: str, first: int, last: int, value: int) -> widgets.IntSlider:
    """A slider over whole numbers."""
    return widgets.IntSlider(value, first, last, description=name, **WIDE)


def choices(name: str, options: Sequence, value: object = None) -> widgets.SelectionSlider:
    """A slider over given values, each as it is or as (text, value); by default at the first."""
    start = {} if value is None else {"value": value}
    return widgets.SelectionSlider(options=list(options), description=name, **start, **WIDE)


def menu(name: str, options: Sequence) -> widgets.Dropdown:
    """A list to choose from, each option as it is or as (text, value)."""
    about = {key: value for key, value in WIDE.items() if key != "continuous_update"}
    return widgets.Dropdown(options=list(options), description=name, **about)


def explorer(controls: Sequence[widgets.Widget], view: Callable[[], tuple[str, Figure]]) -> widgets.VBox:
    """Controls above a line of text and a picture, which `view` makes anew whenever a control moves.

    Parameters
    ----------
    controls
        Sliders and menus. One with a single value to choose is not shown.
    view
        The text, as HTML, and the figure for the controls' values now.

    Returns
    -------
    ipywidgets.VBox
        Its children: the controls that can be moved, the text (`HTML`), the picture (`Image`).
    """
    line, picture, box = widgets.HTML(), widgets.Image(format="png", layout=IN_SIGHT), widgets.VBox()

    def redraw(_: object = None) -> None:
        text, fig = view()
        line.value, picture.value = text, png(fig)
        box.children = [*filter(_movable, controls), line, picture]  # one control may decide what another offers

    for control in controls:
        control.observe(redraw, names="value")
    redraw()
    return box


def _movable(control: widgets.Widget) -> bool:
    return len(control.options) > 1 if hasattr(control, "options") else control.max > control.min


def png(fig: Figure) -> bytes:
    """A figure as a picture; output widgets would wait for ever where no browser answers."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    plt.close(fig)
    return buffer.getvalue()
