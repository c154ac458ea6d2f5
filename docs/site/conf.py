"""Sphinx's settings for the site; pages.py puts the sources together and starts it."""

from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from pages import NOT_HERE, as_written

project = "leaklearn"
author = "The leaklearn authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = []

# Pages are Markdown as GitHub shows it; notebooks are shown as they were run.
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # else every page would ask a server for scripts of widgets
nb_merge_streams = True
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]

# The reference: what a docstring has between backticks is code, and a link where it names an object.
default_role = "py:obj"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_mock_imports = NOT_HERE
add_module_names = False
maximum_signature_line_length = 90
napoleon_use_ivar = True
napoleon_use_rtype = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "leaklearn"
html_static_path = [str(Path(__file__).with_name("static"))]
html_css_files = ["leaklearn.css"]
html_favicon = str(Path(__file__).with_name("static") / "favicon.svg")
html_copy_source = False
html_show_search_summary = False  # it would fetch every page that is found, which a page opened as a file may not
html_show_sphinx = False
html_show_copyright = False
html_last_updated_fmt = "%d %B %Y"
pygments_style = "friendly"
pygments_dark_style = "monokai"


html_math_renderer = "mathml"


def formula(self, node):
    """A formula as browsers draw it themselves: a script that does it would come from a server."""
    block = isinstance(node, nodes.math_block)
    drawn = convert(node.astext(), display="block" if block else "inline")
    self.body.append(f'<div class="math">{drawn}</div>' if block else drawn)
    raise nodes.SkipNode


def setup(app):
    """Formulas, and docstrings as they are written here."""
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.connect("autodoc-process-docstring", lambda app, what, name, obj, options, lines: as_written(lines))
