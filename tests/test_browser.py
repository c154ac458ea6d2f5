"""JupyterLab as people use it, in headless Chromium: Run All, every slider and menu of every explorer, Restart.

Screenshots before and after each move, and the seconds that moves took, are kept in `outputs/browser/`. By default one
notebook is tried; `make test-browser` tries all that have explorers.
"""

import os

import nbformat
import pandas as pd
import pytest
from lab_page import CHROMIUM, Page, lab

from leaklearn.files import REPOSITORY, write_text

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: `make test-browser` installs it")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (Debian: apt install chromium)")

EXPLORERS = {
    file.stem
    for file in REPOSITORY.notebooks.glob("*.ipynb")
    if "from leaklearn.widgets import" in file.read_text(encoding="utf-8")
}
TRIED = sorted(EXPLORERS) if os.environ.get("LEAKLEARN_BROWSER") == "all" else ["00_overview"]
SHOTS = REPOSITORY.outputs / "browser"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with lab(tmp_path_factory.mktemp("lab"), REPOSITORY.notebooks) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def ran(browser, address, notebook):
    """The notebook in a page of its own, after Run All; a page that hangs on a loaded machine is opened once more."""
    try:
        page = Page(browser, address, notebook)
        page.run_all()
    except playwright.TimeoutError:
        page = Page(browser, address, notebook)
        page.run_all()
    return page


@pytest.mark.parametrize("notebook", TRIED)
def test_run_all_then_every_control_changes_its_picture(browser, address, notebook):
    page = ran(browser, address, notebook)
    SHOTS.mkdir(parents=True, exist_ok=True)
    assert page.controls()
    moves: list[dict] = []
    while len(moves) < len(page.controls()):
        seconds = page.move(page.controls()[len(moves)], SHOTS / f"{notebook}_{len(moves)}")
        moves.append({"notebook": notebook, "control": len(moves), "seconds": round(seconds, 2)})
    write_text(SHOTS / f"{notebook}.csv", pd.DataFrame(moves).to_csv(index=False))
    if notebook == TRIED[0]:
        page.restart_and_run_all()
        page.move(page.controls()[0])
    assert not page.problems
    page.page.close()


def test_a_broken_callback_is_seen(browser, tmp_path):
    """The check itself: an explorer whose picture fails once it is moved must be caught."""
    cells = [
        "import matplotlib.pyplot as plt\nfrom leaklearn.widgets import parts",
        "number = parts.slider('number', 0, 9, 0)",
        "parts.explorer([number], lambda: (f'{number.value}', plt.figure(figsize=(1, 1))))",
        "parts.png = None",
    ]
    (tmp_path / "made").mkdir()
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, tmp_path / "made" / "00_broken.ipynb")
    with lab(tmp_path, tmp_path / "made") as address:
        page = ran(browser, address, "00_broken")
        with pytest.raises(AssertionError, match="changed neither picture nor text"):
            page.move(page.controls()[0], seconds=4)
        page.page.close()
