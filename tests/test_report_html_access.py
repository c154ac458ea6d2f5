"""The report page for all readers: by keyboard, by ear, in the dark, on a phone, on paper, and without a network."""

import re
from itertools import pairwise, product

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from tiny_project import add_notebook, make

from leaklearn.files import REPOSITORY
from leaklearn.report import html as report
from leaklearn.report import start
from leaklearn.report.paper import STATEMENTS

CSS = (REPOSITORY.root / "leaklearn" / "report" / "report.css").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of two runs: one with figures, a short and a long table and many numbers, one with nothing."""
    paths = make(tmp_path_factory.mktemp("project"))
    for name in ("00_full", "01_bare"):
        add_notebook(paths, name)
        run = start(name, {"preset": "laptop", "rate": 0.5, "steps": 3, "flag": False, "seeds": [0, 1]}, paths=paths)
        if name == "00_full":
            for figure, size in (("leak_rate", (12, 3)), ("pictures", (3, 5))):
                fig, _ = plt.subplots(figsize=size)
                run.figure(fig, figure, caption=f"What {figure} shows.")
            brief = pd.DataFrame({"case": ["a", "b"], "gain": [-0.5, 0.25]})
            run.table(brief, "brief", by=["case"], caption="Two cases.")
            run.table(
                pd.DataFrame({"step": range(30), "loss": [1.5] * 15 + [0.5] * 15}),
                "course",
                by=["step"],
                caption="All steps.",
            )
            run.metrics({f"number_{index}": float(index) for index in range(20)})
        run.finish()
    return BeautifulSoup(report.render("laptop", paths), "html.parser")


def test_headings_nest_and_the_page_is_named(page):
    levels = [int(heading.name[1]) for heading in page.find_all(re.compile("^h[1-6]$"))]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.html["lang"] == "en"
    assert "laptop" in page.title.text


def test_the_first_stop_of_the_keyboard_skips_the_contents(page):
    first = page.body.find(["a", "summary", "button"])
    assert first["href"] == "#main"
    assert page.find(id="main")["tabindex"] == "-1"
    assert ":focus-visible { outline: 3px" in CSS


def test_tables_have_captions_and_heads(page):
    tables = page.find_all("table")
    assert len(tables) >= 7
    for table in tables:
        assert table.caption.text.strip()
        assert all(head.get("scope") for head in table.find_all("th"))
        assert table.thead.find("th")
        assert all(row.find("th") for row in table.select("tbody tr"))


def test_each_claim_is_a_group_of_rows_with_a_head(page):
    groups = page.select("table.claims tbody")
    assert [group.select_one(".id").text for group in groups] == [each.id for each in STATEMENTS]
    columns = [head.text for head in page.select_one("table.claims thead").find_all("th")]
    for group in groups:
        assert group.tr.th["scope"] == "rowgroup"
        for row in group.find_all("tr")[1:]:  # on a phone, where there is no head, each cell bears its column's name
            assert [cell["data-label"] for cell in row.find_all(["th", "td"])] == columns


def test_what_scrolls_is_reached_by_keyboard_and_has_a_name_of_its_own(page):
    names = []
    for table in page.find_all("table"):
        box = table.parent
        assert "scroll" in box["class"]
        assert box["tabindex"] == "0"
        names.append(box.get("aria-label") or page.find(id=box["aria-labelledby"]).text)
    assert len(set(names)) == len(names)
    ids = [tag["id"] for tag in page.find_all(id=True)]
    assert len(set(ids)) == len(ids)
    wide = page.select_one("figure.panels .scroll")
    assert (wide["tabindex"], wide["aria-label"]) == ("0", "Figure leak rate of 00_full")


def test_a_figure_says_what_it_is_and_does_not_repeat_its_caption(page):
    images = page.find_all("img")
    assert len({image["alt"] for image in images}) == len(images) == 2
    for image, name in zip(images, ("leak rate", "pictures"), strict=True):
        caption = image.find_parent("figure").figcaption.text
        assert f"Figure {name}, to the question: Title of 00_full?" in image["alt"]
        assert "its caption" in image["alt"]
        assert "tables of this section" in image["alt"]
        assert caption not in image["alt"]


def test_figures_have_the_size_they_were_drawn_for(page):
    wide, tall = page.find_all("img")
    assert int(wide["width"]) == pytest.approx(12 * 96, rel=0.05)
    assert int(tall["height"]) == pytest.approx(5 * 96, rel=0.05)
    assert tall.find_parent("figure")["class"] == ["tall"]


def test_long_lists_are_folded_and_short_ones_are_not(page):
    folded = [" ".join(each.text.split()) for each in page.select("#\\30 0_full details > summary")]
    assert folded == [
        "Table course, 30 rows (00_full/course.csv)",
        "20 single numbers (00_full/metrics.json)",
        "Parameters of this run (00_full/provenance.json)",
    ]
    assert page.find(id="00_full/brief.csv").find_parent("details") is None
    parameters = page.find("th", string="seeds").find_parent("tr")
    assert parameters.td.text == "0, 1"


def test_runs_of_one_environment_share_its_line(page):
    assert len(page.select(".environments li")) == 1
    heads = [head.text for head in page.select("#provenance th[scope=col]")]
    assert heads == ["Notebook", "Started", "Seconds", "Peak MiB", "Commit"]


def test_runs_of_two_environments_are_told_apart():
    device = {"gpu": None, "cpu": "one", "threads": 1, "platform": "linux"}
    ran = {"device": device, "versions": {"python": "3.11", "torch": "2"}}
    assert report.environment_of(ran) == "one, 1 thread, linux; python 3.11, torch 2"
    other = {**ran, "device": {**device, "gpu": "H100", "threads": 16}}
    assert report.environment_of(other) == "H100, 16 threads, linux; python 3.11, torch 2"


def test_equations_need_neither_network_nor_script(page):
    formulas = page.find_all("math")
    assert len(formulas) >= 7
    assert all(formula["alttext"] and formula["display"] == "block" for formula in formulas)
    assert all(formula.find(["mfrac", "msup"]) for formula in formulas)


@pytest.mark.parametrize("name", REPOSITORY.notebook_names())
def test_what_the_page_takes_from_a_notebook_holds_no_tex(name):
    """Nothing on the page would set it."""
    cells = nbformat.read(REPOSITORY.notebook(name), as_version=4).cells
    first = next(cell.source for cell in cells if cell.cell_type == "markdown")
    assert not re.search(r"\$|\\\(|\\\[|\\begin", first)


def _luminance(colour):
    if len(colour) == 4:
        colour = "#" + "".join(2 * digit for digit in colour[1:])
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_in_both_themes(theme):
    """WCAG 2.2, 1.4.3: at least 4.5 to 1."""
    block = re.findall(r":root \{([^}]*--page[^}]*)\}", CSS)[theme]
    colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]+)", block))
    for ink, ground in product(colours.keys() - {"page", "panel", "line"}, ("page", "panel")):
        low, high = sorted(_luminance(colours[each]) for each in (ink, ground))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


def test_paper_is_white_and_keeps_figures_whole():
    assert CSS.count("prefers-color-scheme: dark") == CSS.count("@media screen and (prefers-color-scheme: dark)") == 1
    printed = CSS[CSS.index("@media print") :]
    for rule in ("nav, .skip { display: none; }", ".scroll { overflow: visible; }", "color-scheme: light;"):
        assert rule in printed
    whole = re.search(r"([^{}]*)\{ break-inside: avoid; \}", printed).group(1)
    assert {"figure", "tr"} <= {part.strip() for part in whole.split(",")}
    assert re.search(r"figure img \{[^}]*background: #fff", CSS)  # figures are drawn on white


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-1.25 [-1.39, -1.12]", "−1.25 [−1.39, −1.12]"),
        ("convnet-4, CIFAR-10", "convnet-4, CIFAR-10"),
        ("1e-05", "1e-05"),
    ],
)
def test_minus_signs_are_set_and_hyphens_stay(text, expected):
    assert report.signed(text) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gap below 4 points: True", (True, "gap below 4 points")),
        ("passes: True, and finds it: True", (True, "passes, and finds it")),
        ("passes: False, and finds it: True", (False, "passes: False, and finds it: True")),
        ("leak rate 0.86", (False, "leak rate 0.86")),
    ],
)
def test_a_check_is_ticked_only_where_all_of_it_holds(line, expected):
    assert report.held(line) == expected
