"""The site: every link leads somewhere, nothing is fetched from outside, every public name is told, and it stays small.

It is built once, as GitHub's workflow builds it, for a repository called owner/name.
"""

import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup
from lab_page import CHROMIUM

import leaklearn as ll
from leaklearn.files import REPOSITORY

for package in ("sphinx", "furo", "myst_nb", "latex2mathml"):
    pytest.importorskip(package, reason="the site's packages are missing: `make site` installs them")
maker = pytest.importorskip("pages")

LARGEST = 40 * 2**20
"""Bytes of all pages."""
FETCHING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
"""What a browser fetches without a click, and the attribute that says from where."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return maker.build(tmp_path_factory.mktemp("built"), "owner/name")


@pytest.fixture(scope="module")
def pages(site):
    return {file: BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser") for file in site.rglob("*.html")}


def local(file, target):
    """The file of the site that a relative address names, and the place in it."""
    address = urlsplit(target)
    path = (file.parent / unquote(address.path)).resolve() if address.path else file
    return (path / "index.html" if path.is_dir() else path), unquote(address.fragment)


def test_every_link_leads_somewhere(site, pages):
    places = {file: {tag["id"] for tag in page.find_all(id=True)} for file, page in pages.items()}
    broken, followed = [], 0
    for file, page in pages.items():
        for link in page.find_all("a", href=True):
            if re.match(r"[a-z]+:", link["href"]) or link["href"] == "#":
                continue
            followed += 1
            there, place = local(file, link["href"])
            if not there.is_file() or (place and place not in places.get(there, {place})):
                broken.append(f"{file.relative_to(site)}: {link['href']}")
    assert followed > 1000
    assert not broken


def test_nothing_is_fetched_from_outside(site, pages):
    outside, lacking = [], []
    for file, page in pages.items():
        for tag, attribute in FETCHING.items():
            for each in page.find_all(tag):
                target = each.get(attribute, "")
                if re.match(r"(https?:)?//", target):
                    outside.append(f"{file.relative_to(site)}: {target}")
                elif target and not target.startswith("data:") and not local(file, target)[0].is_file():
                    lacking.append(f"{file.relative_to(site)}: {target}")
        for text in [each.get_text() for each in page.find_all("style")]:
            outside += re.findall(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^)'\"]+)", text)
    for style in site.rglob("*.css"):
        outside += re.findall(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^)'\"]+)", style.read_text(encoding="utf-8"))
    assert not outside
    assert not lacking


def test_the_site_is_small(site):
    assert sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) <= LARGEST


def test_every_public_name_is_told(site, pages):
    first = pages[site / "api" / "leaklearn.html"]
    rows = [row for row in first.select("table.names tr") if row.find("a")]
    assert [row.find("a").get_text().removeprefix("ll.") for row in rows] == ll.__all__
    assert all(row.find_all("td")[1].get_text(strip=True) for row in rows)
    for page, modules in maker.PAGES.items():
        there = {tag["id"] for tag in pages[site / "api" / f"{page}.html"].find_all(id=True)}
        told = {place.rpartition(".")[2] for place in there}
        for module in modules:
            lacking = [name for name in maker.public_names(module) if name not in told]
            assert not lacking, f"{lacking} of {module} are not in the reference"


def test_every_notebook_has_a_page_that_says_what_it_is(site, pages):
    for name in REPOSITORY.notebook_names():
        page = pages[site / "notebooks" / f"{name}.html"]
        told = page.select_one(".ran").get_text()
        assert re.match(r"Executed with the preset (paper|laptop) on \d+ \w+ 20\d\d in |Not run yet", told)
        links = [link["href"] for link in page.select(".ran a.button")]
        assert links[0].endswith(f"/owner/name/blob/gh-pages/colab/{name}.ipynb")
        assert links[1].startswith("https://mybinder.org/v2/gh/owner/name/main?")
        opened = nbformat.read(site / "colab" / f"{name}.ipynb", as_version=4)
        nbformat.validate(opened)
        assert "git+https://github.com/owner/name" in opened.cells[0].source


def test_without_a_repository_there_are_no_buttons():
    notebook = nbformat.v4.new_notebook()
    assert "Not run yet" in maker.told_of(notebook, "00_first", "", changed=False, on_paper=False)
    assert "button" not in maker.told_of(notebook, "00_first", "", changed=False, on_paper=False)
    about = {"preset": "laptop", "started": "2026-11-30T17:55:45+00:00", "seconds": 300.0}
    notebook.metadata["leaklearn"] = about | {"commit": "52f9fc1a3cb7", "version": "0.1.0"}
    told = maker.told_of(notebook, "00_first", "", changed=True, on_paper=True)
    assert "on 30 November 2026 in 5 minutes: leaklearn 0.1.0, commit 52f9fc1. The notebook has changed since." in told
    assert "outputs/paper/report.html#00_first" in told


def test_what_a_run_puts_in_is_no_change():
    cells = [nbformat.v4.new_code_cell("a = 1"), nbformat.v4.new_code_cell("a = 2")]
    cells[1].metadata["tags"] = ["injected-parameters"]
    assert maker.sources(nbformat.v4.new_notebook(cells=cells)) == ["a = 1"]


def test_links_to_what_the_site_lacks():
    text = "[a](audit.md#x) [b](../params/paper) ![c](pairs.png) [d](https://a.b) [e](../benchmarks/flower.py)"
    there = {Path("docs/audit.md"), Path("docs/pairs.png")}.__contains__
    kept = "[a](audit.md#x) {} ![c](pairs.png) [d](https://a.b) {}"
    assert maker.settled(text, Path("docs"), there, "") == kept.format("b", "e")
    places = (
        "https://github.com/owner/name/tree/main/params/paper",
        "https://github.com/owner/name/blob/main/benchmarks",
    )
    told = kept.format(f"[b]({places[0]})", f"[e]({places[1]}/flower.py)")
    assert maker.settled(text, Path("docs"), there, "owner/name") == told


def test_links_of_a_report(tmp_path):
    (tmp_path / "00_first").mkdir()
    (tmp_path / "00_first" / "kept.csv").touch()
    page = '<header><a href="00_first/notebook.ipynb">run</a> <a href="00_first/kept.csv">k</a>'
    page += ' <a href="00_first/x.csv">x</a>'
    page += ' <small>(<a href="00_first/fig.pdf">PDF</a>)</small> <a href="#claims">c</a>'
    shown = maker.linked(page, tmp_path, ["00_first"])
    assert (
        '<a href="../../notebooks/00_first.html">run</a> <a href="00_first/kept.csv">k</a> x <a href="#claims">'
        in shown
    )
    assert "index.html" in shown


def test_docstrings_become_what_they_mean():
    lines = [
        "Clip to |u|, as `a | b` says.",
        "",
        "    ll.audit(model)",
        "    more",
        "",
        "Then on.",
        ":param x: a",
        "",
        "    b",
    ]
    maker.as_written(lines)
    assert lines[:4] == [r"Clip to \|u\|, as `a | b` says.", "", "::", ""]
    assert lines[4:8] == ["    ll.audit(model)", "    more", "", "Then on."]
    assert lines[8:] == [":param x: a", "", "    b"]
    assert maker.escaped("in -`a`..`b`, :math:`x` or ``c|d``") == r"in -`a`..\ `b`, :math:`x` or ``c|d``"


@pytest.fixture(scope="module")
def address(site):
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *given: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (Debian: apt install chromium)")
@pytest.mark.parametrize("width", [1012, 390])
def test_pages_in_a_browser(address, width):
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is missing: `make test-browser` brings it"
    )
    shown = ["index.html", "api/leaklearn.evaluation.html", "notebooks/02_linear_layer_leakage.html", "reports.html"]
    shown += ["outputs/paper/report.html", "docs/howto.html", "docs/benchmarks.html"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for name in shown:
            page = browser.new_page(viewport={"width": width, "height": 900})
            problems = watched(page, address)
            page.goto(f"{address}/{name}", wait_until="networkidle")
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert not problems, f"{name}: {problems}"
            assert wide <= 0, f"{name} is {wide} pixels wider than a window of {width}"
            page.close()
        browser.close()


def watched(page, address):
    """A list to which a page adds what it complains of, and each address outside that it asks for."""
    problems = []
    page.on("console", lambda said: problems.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
    inside = (address, "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(inside) else problems.append(request.url))
    return problems
