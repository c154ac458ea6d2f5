"""The report page: one file, nothing fetched, everything in it that a run left, failures too."""

import html
import json
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from tiny_project import add_notebook, make

from leaklearn.files import write_json
from leaklearn.report import start
from leaklearn.report.claims import judge
from leaklearn.report.figures import paper_chart, verdict_chart
from leaklearn.report.html import render, write
from leaklearn.report.tables import shown

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Collects tags, and checks that they are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def project(tmp_path):
    paths = make(tmp_path)
    for name in ("00_shown", "01_absent", "02_failed"):
        add_notebook(paths, name)
    values = {"preset": "laptop", "rate": 0.25, "steps": 3, "flag": False, "seeds": [0]}
    run = start("00_shown", values, paths=paths)
    fig, ax = plt.subplots()
    ax.plot([1, 2])
    run.figure(fig, "curve", caption="A curve & its <caption>.")
    rows = [{"dataset": "mnist5k", "seed": s, "source": "lll", "accuracy": 0.9 + 0.01 * s} for s in range(3)]
    run.table(pd.DataFrame(rows), "results", by=["dataset", "source"], caption="The results.")
    run.headline("**90 %** leak")
    run.metrics({"gap": 0.5})
    run.finish()
    checked = nbformat.v4.new_code_cell("1", metadata={"tags": ["nbval-check-output"]})
    checked.outputs = [nbformat.v4.new_output("stream", text="holds: 3 of 3\n")]
    folder = paths.results("laptop", "00_shown")
    nbformat.write(nbformat.v4.new_notebook(cells=[checked]), folder / "notebook.ipynb")
    broken = nbformat.v4.new_code_cell("1 / 0")
    broken.outputs = [nbformat.v4.new_output("error", ename="ZeroDivisionError", evalue="division\nby zero")]
    paths.results("laptop", "02_failed").mkdir()
    copy = paths.results("laptop", "02_failed") / "notebook.failed.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[broken]), copy)
    return paths


def test_the_page_is_whole_and_fetches_nothing(project):
    file = write("laptop", project)
    text = file.read_text()
    page = Page(text)
    assert page.open == []
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert sources
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert not re.search(r"url\(|@import", text)
    assert "default-src 'none'" in text
    assert [path.name for path in file.parent.glob("*report*")] == ["report.html"]


def test_links_of_the_contents_lead_somewhere(project):
    page = Page(render("laptop", project))
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    inner = [link[1:] for link in links if link.startswith("#")]
    assert {"claims", "00_shown", "01_absent", "02_failed", "provenance", "use"} <= set(inner)
    assert set(inner) <= targets
    assert ("html", {"lang": "en"}) in page.tags


def test_files_that_are_linked_are_there(project):
    file = write("laptop", project)
    links = [attributes["href"] for tag, attributes in Page(file.read_text()).tags if tag == "a"]
    outer = [link for link in links if not link.startswith(("#", "https://"))]
    assert set(outer) == {"00_shown/fig_curve.pdf", "00_shown/notebook.ipynb", "00_shown/results.csv"}
    assert all((file.parent / link).is_file() for link in outer)
    (project.results("laptop", "00_shown") / "fig_curve.pdf").unlink()
    assert "fig_curve.pdf" not in render("laptop", project)


def test_findings_open_the_page(project):
    assert 'id="findings"' not in render("laptop", project)
    told = {"leak_rate": 0.781, "peeled_rate": 1.0, "accuracy_leak": 0.976, "accuracy_clean": 0.979}
    folder = project.results("laptop", "00_shown")
    write_json(folder / "metrics.json", told)
    assert "metrics.json is damaged: it is not what the run has written: run the notebook again" in render(
        "laptop", project
    )
    made = json.loads((folder / "provenance.json").read_text())
    write_json(folder / "provenance.json", {name: value for name, value in made.items() if name != "files"})
    text = render("laptop", project)
    assert text.index('id="findings"') < text.index('id="claims"')
    sentence = "A malicious layer reads 78 % of all clients' images in one round"
    assert html.unescape(text).count(sentence) == 2  # once on top, once in its own section
    assert '<a href="#00_shown">Notebook 00</a>' in text


def test_what_a_run_left_is_shown(project):
    text = render("laptop", project)
    for expected in (
        "Title of 00_shown",
        "Its <em>question</em>.",
        "A curve &amp; its &lt;caption&gt;.",
        "The results.",
        "holds: 3 of 3",
        "[0.879, 0.940]",  # the seeds of a setting are folded into a mean with its interval
        "<strong>90 %</strong> leak",
        "Responsible use",
        "It measures how much a federated-learning set-up gives away",
    ):
        assert expected in text
    images = [attributes for tag, attributes in Page(text).tags if tag == "img"]
    assert [image["alt"].partition(" It is")[0] for image in images] == [
        "Figure curve, to the question: Title of 00_shown?"
    ]


def test_a_failure_and_an_absence_are_told(project):
    text = render("laptop", project)
    assert "ZeroDivisionError: division by zero" in text
    assert "01_absent · not run with this preset" in text


def test_a_figure_that_was_removed_is_left_out(project):
    (project.results("laptop", "00_shown") / "fig_curve.png").unlink()
    page = Page(render("laptop", project))
    assert not [attributes for tag, attributes in page.tags if tag == "img"]
    assert page.open == []


def test_a_page_without_any_result(tmp_path):
    paths = make(tmp_path)
    add_notebook(paths, "00_first")
    text = write("smoke", paths).read_text()
    assert Page(text).open == []
    assert text.count("not run</span>") >= 17


def test_tables_are_folded_and_cut():
    frame = pd.DataFrame({"factor": [4, 4, 2, 2], "clients": 60, "seed": [0, 1, 0, 1]})
    frame["leak_rate"] = [0.7, 0.8, 0.6, 0.6]
    table = shown(frame, ["factor", "clients"])
    assert table.header == ["factor", "leak rate"]
    assert table.same == "clients 60, seeds 2"
    assert [row[0] for row in table.rows] == ["4", "2"]
    assert table.rows[0][1].startswith("0.750 [")
    assert table.rows[1][1] == "0.600"
    assert shown(pd.DataFrame({"a": range(100)}), ["a"], longest=10).left_out == 90
    assert shown(pd.DataFrame({"a": [float("nan")]}), None).rows == [["–"]]


def test_charts_take_axes_and_bear_no_results():
    claims = judge({})
    fig, axes = plt.subplots(2)
    assert verdict_chart(claims, axes[0]) is axes[0]
    assert paper_chart(claims, axes[1]) is axes[1]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == list(claims["claim"])
    plt.close(fig)


def test_an_older_run_is_dated_where_the_last_one_failed(project):
    copy = project.results("laptop", "02_failed") / "notebook.failed.ipynb"
    copy.rename(project.results("laptop", "00_shown") / copy.name)
    begun = json.loads((project.results("laptop", "00_shown") / "provenance.json").read_text())["started"]
    assert f"from the run of {begun[:10]} {begun[11:16]} UTC before it" in render("laptop", project)
