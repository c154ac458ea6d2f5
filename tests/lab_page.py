"""A JupyterLab server of its own on copies of the notebooks, and a page of Chromium to use it as people do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat

TOKEN = "browser-test"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page, whether in sight or not
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
}


@contextmanager
def lab(folder: Path, notebooks: Path, *, theme: str = "JupyterLab Light") -> Iterator[str]:
    """Run `jupyter lab` on stripped copies of the notebooks in `folder`; gives the address, without a slash."""
    work = folder / "notebooks"
    work.mkdir(parents=True)
    for file in sorted(notebooks.glob("[0-9]*.ipynb")):
        strip(file, work / file.name)
    for name, values in (SETTINGS | {"apputils-extension/themes": {"theme": theme}}).items():
        target = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(values), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "JUPYTER_CONFIG_DIR": "config",
    }
    environment = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1"} | {key: str(folder / own[key]) for key in own}
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
    options += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={work}"]
    with (folder / "lab.log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(f"{address}/api/status?token={TOKEN}", server, folder / "lab.log")
            yield address
        finally:
            server.terminate()
            server.wait(timeout=30)


def wait_for(address: str, server: subprocess.Popen, log: Path, seconds: float = 60) -> None:
    """Wait until the server answers; a RuntimeError with its log's end if it does not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise RuntimeError(f"jupyter lab does not answer: {log.read_text()[-500:]}")


def strip(source: Path, target: Path) -> None:
    """A copy as one sees it before anything has run."""
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, target)


class Page:
    """One notebook open in the browser.

    Attributes
    ----------
    problems : list of str
        Errors of the page and its console.
    """

    PROMPTS = "() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent.trim())"
    PICTURE = """async slider => {
        const image = slider.closest('.widget-vbox').querySelector('img.widget-image');
        const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
        return bytes.length + ':' + bytes.reduce((sum, byte) => (sum * 31 + byte) % 4294967291, 7);
    }"""
    LINE = "slider => slider.closest('.widget-vbox').querySelector('.widget-html-content').innerText"

    def __init__(self, browser, address: str, notebook: str) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 1000})
        self.problems: list[str] = []
        self.page.on("console", lambda message: message.type == "error" and self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(f"{address}/lab/tree/{notebook}.ipynb?reset&token={TOKEN}")
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        self.page.wait_for_function(
            "/Python/.test(document.querySelector('.jp-KernelName')?.textContent)", timeout=60_000
        )
        self.page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=60_000)

    def choose(self, menu: str, item: str) -> None:
        """Click an entry of the menu bar."""
        self.page.locator(".lm-MenuBar-item", has_text=menu).first.click()
        self.page.locator(".lm-Menu-item", has_text=item).first.click()

    def accept_dialog(self) -> None:
        """Press the default button of a dialog, if there is one: a kernel that is slow to start makes the page ask."""
        button = self.page.locator(".jp-Dialog .jp-mod-accept")
        if button.count():
            button.last.click()
            self.page.wait_for_selector(".jp-Dialog", state="detached")

    def run_all(self, seconds: float = 600) -> None:
        """Run > Run All Cells, and wait for the last one; an AssertionError if a cell failed.

        A page that has just opened takes the click and does nothing: it is given again until the first cell runs.
        """
        for _ in range(10):
            self.accept_dialog()
            self.choose("Run", "Run All Cells")
            end = time.monotonic() + 5
            while time.monotonic() < end:
                if any(text != "[ ]:" for text in self.page.evaluate(self.PROMPTS)):
                    self.wait_for_cells(seconds)
                    return
                time.sleep(0.2)
        raise AssertionError("Run All Cells runs no cell")

    def restart_and_run_all(self, seconds: float = 600) -> None:
        """Kernel > Restart Kernel and Run All Cells, and wait for the last one."""
        self.choose("Kernel", "Restart Kernel and Run All Cells")
        self.page.wait_for_selector(".jp-Dialog")
        self.accept_dialog()
        self.page.wait_for_function(f"({self.PROMPTS})().some(text => !/\\d/.test(text))", timeout=30_000)
        self.wait_for_cells(seconds)

    def wait_for_cells(self, seconds: float) -> None:
        done = f"({self.PROMPTS})().every(text => /^\\[\\d+\\]/.test(text))"
        failed = "document.querySelectorAll('.jp-OutputArea-output[data-mime-type=\"application/vnd.jupyter.error\"]')"
        self.page.wait_for_function(f"{failed}.length > 0 || {done}", timeout=1000 * seconds, polling=500)
        errors = self.page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']")
        assert not errors.count(), errors.first.inner_text()
        self.wait_until_idle()

    def controls(self) -> list:
        """Every slider and menu of every explorer; a move of one may show or hide others after it."""
        return self.page.locator(".widget-vbox .noUi-handle, .widget-vbox select").all()

    def move(self, control, screenshot: Path | None = None, seconds: float = 10) -> float:
        """Move a slider or menu to its end, or if it is there to its start, until text or picture change.

        Returns the seconds that it took; an AssertionError if neither changes.
        """
        control.scroll_into_view_if_needed()
        self.page.wait_for_timeout(500)
        picture, line = control.evaluate(self.PICTURE), control.evaluate(self.LINE)
        if screenshot:
            self.page.screenshot(path=screenshot.with_name(f"{screenshot.name}_before.png"))
        for key in ("End", "Home"):
            control.focus()
            begin = time.monotonic()
            if control.evaluate("control => control.tagName") == "SELECT":
                count = control.evaluate("control => control.options.length")
                control.select_option(index={"End": count - 1, "Home": 0}[key])
            else:
                control.press(key)
            while time.monotonic() < begin + seconds / 2:
                if control.evaluate(self.PICTURE) != picture or control.evaluate(self.LINE) != line:
                    taken = time.monotonic() - begin
                    if screenshot:
                        self.page.wait_for_timeout(500)
                        self.page.screenshot(path=screenshot.with_name(f"{screenshot.name}_after.png"))
                    return taken
                time.sleep(0.02)
        raise AssertionError(f"moving a control changed neither picture nor text ({line!r})")
