"""Figures, tables, the one matplotlib style, provenance, claims and the HTML report."""

from leaklearn.report.lines import lines, points, use_style
from leaklearn.report.run import Run, must_hold, start
from leaklearn.report.tables import told

__all__ = [
    "Run", "lines", "must_hold", "points", "start", "told", "use_style",
]  # fmt: skip
