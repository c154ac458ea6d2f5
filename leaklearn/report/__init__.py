"""Figures, tables, the one matplotlib style, provenance, claims and the HTML report."""

from leaklearn.report.lines import lines, points
from leaklearn.report.run import Run, must_hold, start
from leaklearn.report.style import band, error_bars, reference_line, use_style
from leaklearn.report.tables import told

__all__ = [
    "Run", "band", "error_bars", "lines", "must_hold", "points", "reference_line", "start", "told", "use_style",
]  # fmt: skip
