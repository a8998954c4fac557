"""The walkthroughs as a student runs them, with the network off: twice in a row, answered wrongly, and rightly."""

import os
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

from bidir.study.notebooks import OwnKernel

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "notebooks").glob("9[0-9]_*.ipynb"))
SOLUTIONS = yaml.safe_load(Path(__file__).with_name("solutions.yaml").read_text())
OFFLINE = """# what a kernel starts with: connections leave this machine for nowhere
import socket

connect = socket.socket.connect


def local(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"there is no network: {address}")
    return connect(self, address)


socket.socket.connect = socket.socket.connect_ex = local
"""
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of the kernel


def exercise(cell):
    """The number of the exercise that a cell is for, or ""."""
    return next((tag for tag in cell.metadata.get("tags", []) if tag.startswith("exercise-")), "")


@pytest.fixture(scope="session")
def places(workspace):
    """What a lesson's parameters cell is replaced by: all lessons share the data and the run below one folder."""
    folders = {"data_root": str(workspace / "lessons" / "data"), "runs_dir": str(workspace / "lessons" / "runs")}

    def assigned(source):
        lines = [f"{name} = {value!r}" for name, value in folders.items() if name in source]
        return "\n".join([source, *lines])

    return assigned


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Python started from here on, kernels among it, finds no network."""
    (tmp_path / "sitecustomize.py").write_text(OFFLINE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def execute(places, offline):
    """Runs a lesson's cells, ``times`` over in one kernel; returns what each cell printed, and how many pictures."""

    def executed(path, answers=None, times=1):
        book = nbformat.read(path, 4)
        for cell in book.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = places(cell.source)
            if answers and exercise(cell):
                cell.source = answers[exercise(cell)]
        book.cells = [deepcopy(cell) for _ in range(times) for cell in book.cells]
        for number, cell in enumerate(book.cells):
            cell.id = f"cell-{number}"
        NotebookClient(book, timeout=600, kernel_manager_class=OwnKernel,
                       resources={"metadata": {"path": path.parent}}).execute()  # fmt: skip
        outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
        said = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
        pages = [output.data for output in outputs if "data" in output]
        return said, sum("image/png" in page or "data:image/png" in page.get("text/html", "") for page in pages)

    return executed


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_every_exercise_has_a_right_and_a_wrong_answer(path):
    asked = [exercise(cell) for cell in nbformat.read(path, 4).cells if exercise(cell)]
    assert asked == sorted(SOLUTIONS[path.stem])
    assert all({*answers} == {"right", "wrong"} for answers in SOLUTIONS[path.stem].values())


@pytest.mark.slow
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_runs_unanswered_and_twice_in_a_row(path, execute):
    said, pictures = execute(path, times=2)
    exercises = len(SOLUTIONS[path.stem])
    assert said.count(": no answer yet.") == 2 * exercises
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert pictures >= 2 * (len(code) - exercises) // 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["right", "wrong"])
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_judges_its_answers(path, kind, execute):
    solutions = SOLUTIONS[path.stem]
    said, _ = execute(path, {name: answers[kind] for name, answers in solutions.items()})
    counts = [said.count(words) for words in (": right.", ": not yet, ", " Hint: ")]
    assert counts == ([len(solutions), 0, 0] if kind == "right" else [0, len(solutions), len(solutions)])
