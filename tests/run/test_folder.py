"""A run's folder: the state it tells, the rows it keeps, and the lock on it."""

import json

import pytest

from bidir.run.folder import RunFolder
from bidir.run.training import fit


def test_a_cut_row_is_dropped(tmp_path):
    folder = RunFolder(tmp_path)
    assert (folder.rows(), folder.last_step()) == ([], 0)
    folder.metrics.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert folder.rows() == [{"step": 1}, {"step": 2}]
    assert folder.last_step() == 2


def test_a_run_killed_before_its_first_checkpoint_logs_each_row_once(quick, tmp_path, folder_of):
    config = quick.replace(runs_dir=str(tmp_path), supervision="none", iterations=3, eval_every=0)
    folder = folder_of(config)
    folder.path.mkdir(parents=True)
    folder.metrics.write_text('{"step": 1, "kind": "train"}\n{"step": 2, "ki')
    fit(config, progress=False)
    assert [row["step"] for row in folder.rows()] == [1, 2, 3]


def test_two_processes_cannot_work_on_one_run(quick, tmp_path):
    folder = RunFolder.of(quick.replace(runs_dir=str(tmp_path)), "manifest")
    with folder.lock():
        assert folder.state() == "running"
        with pytest.raises(BlockingIOError, match="another process works on this run"), folder.lock(patience=0.1):
            pass
    assert folder.state() == "waiting"


def test_the_state_is_what_the_files_say(tmp_path):
    """DONE is the last word, whatever else is there; without it FAILED, then the checkpoint."""
    folder = RunFolder(tmp_path / "run")
    assert folder.state() == "waiting"
    folder.path.mkdir()
    for path, state in ((folder.checkpoint, "interrupted"), (folder.failed, "failed"), (folder.done, "done")):
        path.write_text("why\n")
        assert folder.state() == state
        assert folder.reason() == ("why" if state == "failed" else "")
    assert not folder.notebook.exists()


def test_a_resume_with_other_code_says_so(quick, tmp_path, monkeypatch):
    folder, commits = RunFolder(tmp_path / "run"), iter("abb")
    code = lambda: {"git_commit": next(commits), "git_dirty": False}  # noqa: E731
    monkeypatch.setattr("bidir.run.folder.code_provenance", code)
    for step, earlier in ((0, None), (1, ["a"]), (2, ["a"])):
        folder.start(quick, "manifest", ("a",), {"hardware": "here"}, step)
        folder.log({"step": step + 1, "kind": "train"})
        folder.log({"step": step + 2, "kind": "train"})
        assert folder.facts().get("earlier_commits") == earlier
    assert [row["step"] for row in folder.rows()] == [1, 2, 3, 4]
    assert json.loads((folder.path / "run.json").read_text())["config"]["crop_size"] == quick.crop_size
