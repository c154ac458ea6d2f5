"""Figures, tables, the one matplotlib style, provenance, claims and the HTML report."""

from leaklearn.report.run import Run, start
from leaklearn.report.style import band, error_bars, reference_line, use_style

__all__ = ["Run", "band", "error_bars", "reference_line", "start", "use_style"]
