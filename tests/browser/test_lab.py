"""The notebooks in JupyterLab: they run twice, a wrong parameter never runs, a stopped run goes on."""

import json
import os
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
CELLS = "window.jupyterapp.shell.currentWidget.content.widgets"
FIRST, REST, TRAIN = "# Parameters: what matters first", "# Parameters: the rest", "fit(config)"
SHORT = 'preset: str = "quick"\niterations: int = 24'


def shot(book, name):
    """Keep a picture of the notebook as it stands, in the folder BROWSER_SHOTS, if that is set."""
    if folder := os.environ.get("BROWSER_SHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        book.picture(Path(folder) / f"{name}.png")


def test_lab_is_rooted_at_the_project_and_opens_the_starting_page(open_page, project):
    page = open_page("/")
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.context?.isReady", timeout=60_000, polling=200)
    assert page.evaluate("window.jupyterapp.shell.currentWidget.context.path") == "notebooks/00_start.ipynb"
    report = page.evaluate("window.jupyterapp.serviceManager.contents.get('results/report.html', {content: false})")
    assert report["size"] == (project / "results" / "report.html").stat().st_size
    assert page.locator(".jp-Dialog").count() == 0
    assert "Jupyter news" not in page.inner_text("body")


@pytest.mark.parametrize("name", ["00_start", "20_run_ablations", "21_watch_runs", "32_directions", "40_report"])
def test_a_notebook_runs_twice(open_notebook, name):
    book = open_notebook(name)
    if name.startswith("2"):  # batches: data that are made in a second, nothing trained
        book.add("# Parameters", 'parameters = {**parameters, "scenes_train": 48, "scenes_val": 16}')
    if name == "20_run_ablations":
        book.add("# Parameters", "dry_run = True")
    for _ in range(2):
        book.run_all()
        assert book.errors() == []
        outputs = [output for cell in book.outputs() for output in cell]
        pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
        assert outputs
        assert len(pictures) == len({*pictures})  # each figure stands there once
    shot(book, name)


@pytest.fixture
def training(open_notebook):
    """``10_train`` with the quick preset and a few iterations."""
    book = open_notebook("10_train")
    book.replace(FIRST, 'preset: str = "study"', SHORT)
    number = book.cell(FIRST)
    book.set_cell(number, book.source(number).replace("\niterations: int = None", "\n"))
    return book


def test_a_run_trained_once_and_looked_at_twice(training):
    for _ in range(2):
        training.run_all()
        assert training.errors() == []
        assert "Branch-S" in training.text(len(training.outputs()) - 1)
    shot(training, "10_train")


def test_a_wrong_parameter_never_runs(training, project):
    runs = project / "results" / "runs"
    before = set(runs.glob("*"))
    training.replace(FIRST, "seed: int = None", "seed: int = None\nlambda_s2 = 0.3")
    typo = training.source(training.cell(FIRST))
    for _ in range(2):
        training.run_all()
        error, *later = training.errors()
        assert all(each.startswith("NameError") for each in later)  # cells that came too late to be called off
        assert "lambda_s2" in error
        assert "lambda_s2c" in error  # what was meant
    assert set(runs.glob("*")) == before
    training.replace(FIRST, "lambda_s2 = 0.3", "lambda_s2c = 0.3")
    training.run_all()
    error = training.errors()[0]
    assert "lambda_s2c = 0.3: a cell below sets it to None" in error
    training.replace(FIRST, "lambda_s2c = 0.3", "")
    training.replace(REST, "lambda_s2c: float = None", "lambda_s2c: float = 0.3")
    training.replace("import os", "use_style()", "use_style()\nx = 3")  # a reader's own name
    for _ in range(2):
        training.run_all()
        assert training.errors() == []
    (run,) = set(runs.glob("*")) - before
    assert '"lambda_s2c": 0.3' in (run / "run.json").read_text()
    training.restart()
    training.run_all()
    assert training.errors() == []
    training.set_cell(training.cell(FIRST), typo)
    training.restart()
    training.run_all()
    assert "lambda_s2" in " ".join(training.errors())


def test_a_stopped_run_goes_on(training, project):
    training.replace(FIRST, "iterations: int = 24", "iterations: int = 60")
    cell = training.cell(TRAIN)
    training.run_all(wait=False)
    shown = f"() => /[123][0-9]\\/60/.test({CELLS}[{cell}].outputArea.node.innerText)"
    training.wait_until(shown, 120)
    training.command("notebook:interrupt-kernel")
    training.wait_for(cell, "stopped at iteration")
    *_, said = training.text(cell).strip().splitlines()
    stopped = int(re.fullmatch(r"stopped at iteration (\d+); run again to go on", said)[1])
    assert 0 < stopped < 60
    shot(training, "10_train_stopped")
    training.run_all()
    assert training.errors() == []
    (run,) = [folder for folder in (project / "results" / "runs").glob("*") if _facts(folder)["resumed_at"]]
    assert stopped - 10 < _facts(run)["resumed_at"] <= stopped  # from its last checkpoint, one every 10 iterations
    assert (run / "DONE").is_file()


def _facts(folder):
    return {"resumed_at": 0, **json.loads((folder / "run.json").read_text())}
