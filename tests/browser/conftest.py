"""JupyterLab as ``make lab`` starts it, on a copy of the project, in a real browser."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parents[2]
CELLS = "window.jupyterapp.shell.currentWidget.content.widgets"
IDLE = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status == 'idle'"


class Notebook:
    """An open notebook, used as a person uses it."""

    def __init__(self, page) -> None:
        self.page = page
        self.wait_until(IDLE)

    def wait_until(self, condition: str, seconds: float = 60, value: object = None) -> None:
        """Wait until a JavaScript expression, or a function of ``value``, holds."""
        self.page.wait_for_function(condition, arg=value, timeout=1000 * seconds, polling=200)

    def command(self, name: str, wait: bool = True) -> None:
        """Execute one of JupyterLab's commands; ``wait``: until it has settled."""
        call = f"window.jupyterapp.commands.execute('{name}').catch(() => null)"
        self.page.evaluate(f"async () => {{ {'await ' * wait}{call} }}")

    def run_all(self, wait: bool = True) -> None:
        """Run all cells; ``wait``: until the last has run or one has failed."""
        self.command("notebook:run-all-cells", wait)
        if wait:
            self.wait_until(IDLE)

    def outputs(self) -> list[list[dict]]:
        """Per cell its outputs, as nbformat has them; none for a text cell."""
        return self.page.evaluate(f"() => {CELLS}.map(cell => cell.model.outputs?.toJSON() ?? [])")

    def errors(self) -> list[str]:
        """The name and message of each error among the outputs."""
        found = [output for cell in self.outputs() for output in cell if output["output_type"] == "error"]
        return [f"{error['ename']}: {error['evalue']}" for error in found]

    def cell(self, begin: str) -> int:
        """The number of the one cell whose text begins so."""
        sources = self.page.evaluate(f"() => {CELLS}.map(cell => cell.model.sharedModel.getSource())")
        (number,) = [i for i, source in enumerate(sources) if source.startswith(begin)]
        return number

    def text(self, number: int) -> str:
        """What stands on the page below a cell."""
        return self.page.evaluate(f"() => {CELLS}[{number}].outputArea.node.innerText")

    def source(self, number: int) -> str:
        return self.page.evaluate(f"() => {CELLS}[{number}].model.sharedModel.getSource()")

    def set_cell(self, number: int, text: str) -> None:
        self.page.evaluate(f"text => {CELLS}[{number}].model.sharedModel.setSource(text)", text)

    def replace(self, begin: str, old: str, new: str) -> None:
        """Exchange a text, which must be there, in the cell that begins so."""
        number = self.cell(begin)
        text = self.source(number)
        assert old in text
        self.set_cell(number, text.replace(old, new))

    def add(self, begin: str, text: str) -> None:
        """Put lines at the end of the cell that begins so."""
        number = self.cell(begin)
        self.set_cell(number, f"{self.source(number)}\n{text}")

    def restart(self) -> None:
        """Restart the kernel, saying yes to the question."""
        self.command("kernelmenu:restart", wait=False)
        self.page.click(".jp-Dialog .jp-mod-accept")
        self.page.wait_for_selector(".jp-Dialog", state="detached")
        self.wait_until(IDLE)

    def wait_for(self, number: int, text: str, seconds: float = 60) -> None:
        """Wait until ``text`` stands below a cell."""
        condition = f"text => {CELLS}[{number}].outputArea.node.innerText.includes(text)"
        self.wait_until(condition, seconds, text)

    def picture(self, path: Path) -> None:
        """The whole notebook as one PNG."""
        wide = self.page.viewport_size["width"]
        bottom = f"() => {CELLS}.reduce((sum, cell) => sum + cell.node.getBoundingClientRect().height, 250)"
        for _ in range(2):  # what is drawn first in a high window may be higher still
            self.page.set_viewport_size({"width": wide, "height": int(self.page.evaluate(bottom))})
            self.page.wait_for_timeout(500)
        self.page.evaluate(f"() => {CELLS}[0].node.scrollIntoView()")
        self.page.wait_for_timeout(300)
        self.page.screenshot(path=path)
        self.page.set_viewport_size({"width": wide, "height": 900})


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """A copy of the project: the files that git has or would take."""
    copy = tmp_path_factory.mktemp("browser") / "bidir"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="session")
def lab(project, tmp_path_factory):
    """The address of JupyterLab, started by the recipe of ``make lab`` without a window of its own or a password."""
    recipe = [
        "make",
        "--no-print-directory",
        "-n",
        "-o",
        ".venv/installed",
        "lab",
        f"BIN={Path(sys.executable).parent}",
    ]
    said = subprocess.run(recipe, cwd=project, capture_output=True, text=True, check=True).stdout
    start = shlex.split(said.replace("\\\n", " ").strip().splitlines()[-1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    flags = ["--no-browser", "--ip=127.0.0.1", f"--port={address.rpartition(':')[2]}", "--IdentityProvider.token=",
             "--LabApp.expose_app_in_browser=True"]  # fmt: skip
    home = tmp_path_factory.mktemp("home")
    tracker = home / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True)
    tracker.write_text(json.dumps({"windowingMode": "none"}))  # cells out of sight are there too
    places = {"JUPYTERLAB_SETTINGS_DIR": home / "settings", "JUPYTERLAB_WORKSPACES_DIR": home / "workspaces",
              "JUPYTER_CONFIG_DIR": home / "config", "JUPYTER_RUNTIME_DIR": home / "runtime",
              "IPYTHONDIR": home / "ipython", "PYTHONPATH": project}  # fmt: skip
    environment = {**os.environ, **{name: str(path) for name, path in places.items()}}
    with (home / "log").open("w") as log:
        server = subprocess.Popen([*start, *flags], cwd=project, env=environment, stdout=log, stderr=log)
        try:
            for _ in range(120):
                assert server.poll() is None, (home / "log").read_text()
                try:
                    urlopen(f"{address}/api", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.5)
            yield address
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="session")
def chromium():
    """The system's Chromium, driven by playwright; skips where one of them is lacking."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is lacking: pip install -e '.[dev]'")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not path:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, lab):
    """Opens an address of JupyterLab in a page of its own, which is closed at the end."""
    pages = []

    def opened(path: str):
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        pages.append(page)
        page.goto(f"{lab}{path}")
        return page

    yield opened
    for page in pages:
        page.close()


@pytest.fixture
def open_notebook(open_page, project):
    """Opens a notebook as it comes, whatever an earlier test left in it; its kernel ends with the test."""
    books = []

    def opened(name: str) -> Notebook:
        shutil.copyfile(ROOT / "notebooks" / f"{name}.ipynb", project / "notebooks" / f"{name}.ipynb")
        books.append(Notebook(open_page(f"/lab/tree/notebooks/{name}.ipynb?reset")))
        return books[-1]

    yield opened
    for book in books:
        book.command("kernelmenu:shutdown")
