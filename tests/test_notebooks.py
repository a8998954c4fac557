"""The notebooks as a user runs them: papermill, end to end on a small generated dataset."""

import base64
import json
import re

import nbformat
import pandas as pd
import pytest
from papermill.exceptions import PapermillExecutionError

from bidir.config import ConfigError
from bidir.execution import run_notebook, run_training, write_html


@pytest.fixture(scope="module")
def runs(quick, workspace):
    """The full method and the one-directional baseline, each through 10_train."""
    folders = {"data_root": quick.data_root, "runs_dir": str(workspace / "papermill"), "device": "cpu"}
    baseline = {"supervision": "c2s", "propagation": "par", "object_aware_decoding": False}
    return {
        "full method": run_training(folders, "quick"),
        "one direction": run_training({**folders, **baseline, "iterations": 24}, "quick"),
    }


def test_pseudo_labels_beat_raw_cams(runs):
    results = json.loads((runs["full method"] / "run.json").read_text())["results"]
    assert results["ms/seed"] > results["ms/cam"] + 0.02
    assert results["ms/y_c"] > results["ms/cam"] + 0.02


def test_the_executed_notebook_is_kept_and_shows_its_figures(runs):
    book = nbformat.read(runs["full method"] / "notebook.ipynb", 4)
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    pictures = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 3
    assert all(len(base64.b64decode(picture)) > 10_000 for picture in pictures)
    assert not [o for o in outputs if o.output_type == "error"]
    assert not list(runs["full method"].glob("*.failed.ipynb"))


def test_a_finished_run_is_not_executed_again(runs, quick):
    notebook = runs["full method"] / "notebook.ipynb"
    before = notebook.stat().st_mtime_ns
    folders = {"data_root": quick.data_root, "runs_dir": str(notebook.parents[1]), "device": "cpu"}
    assert run_training(folders, "quick") == runs["full method"]
    assert notebook.stat().st_mtime_ns == before


def test_wrong_parameters_stop_before_papermill(workspace):
    with pytest.raises(ConfigError, match="learning_rate = '1e-4'"):
        run_training({"learning_rate": "1e-4"}, "quick")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"learnign_rate": 0.1}, "did you mean 'learning_rate'"), ({"object_aware_decoding": "true"}, "needs a bool")],
)
def test_wrong_parameters_given_to_papermill_itself_stop_the_notebook(tmp_path, parameters, message):
    with pytest.raises(PapermillExecutionError, match=re.escape(message)):
        run_notebook("10_train", {**parameters, "runs_dir": str(tmp_path / "runs")}, tmp_path / "out.ipynb")
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "out.ipynb").exists()


def test_report_is_self_contained(runs, tmp_path):
    parameters = {"runs": {name: str(path) for name, path in runs.items()}, "out_dir": str(tmp_path), "images": [0, 5]}
    run_notebook("40_report", parameters, tmp_path / "report.ipynb")
    write_html(tmp_path / "report.ipynb", tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']?(?:https?:)?//", html)
    assert len(re.findall(r"<img [^>]*src=.data:image/png;base64", html)) == 3
    assert "full method" in html
    scores = pd.read_csv(tmp_path / "scores.csv")
    for name, path in runs.items():
        own = pd.read_csv(path / "per_class.csv")
        pd.testing.assert_frame_equal(scores[scores["run"] == name][own.columns].reset_index(drop=True), own)
    told = json.loads((tmp_path / "runs.json").read_text())
    assert [fact["run_id"] for fact in told] == [path.name for path in runs.values()]
    assert str(tmp_path.parent) not in json.dumps(told)  # no path of this machine
    plotted = pd.read_csv(tmp_path / "figures" / "scores.csv")
    assert set(plotted["map"]) == {"cam", "seed", "y_c", "y_s", "branch_c", "branch_s"}
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert written >= {f"{name}.{kind}" for name in ("scores", "maps", "curves") for kind in ("png", "pdf", "svg")}
