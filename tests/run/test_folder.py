"""A run's folder: the state it tells, the rows it keeps, and the lock on it."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

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
    """DONE is the last word where all numbers are there; without it FAILED, then the checkpoint."""
    folder = RunFolder(tmp_path / "run")
    assert folder.state() == "waiting"
    folder.path.mkdir()
    for path, state in ((folder.checkpoint, "interrupted"), (folder.failed, "failed")):
        path.write_text("why\n")
        assert folder.state() == state
        assert folder.look()[1] == ("why" if state == "failed" else "")
    folder.done.touch()
    assert folder.state() == "failed"
    assert str(folder.provenance) in folder.look()[1]  # nothing of what DONE stands for is there


def test_a_resume_with_other_code_says_so(quick, tmp_path, monkeypatch):
    folder, commits = RunFolder(tmp_path / "run"), iter("abb")
    code = lambda: {"git_commit": next(commits), "git_dirty": False}  # noqa: E731
    monkeypatch.setattr("bidir.run.folder.code_provenance", code)
    for step, earlier in ((0, None), (1, ["a"]), (2, ["a"])):
        before = [row for row in folder.rows() if row["step"] <= step]
        folder.start(quick, "manifest", ("a",), {"hardware": "here"}, step, before)
        folder.log({"step": step + 1, "kind": "train"})
        folder.log({"step": step + 2, "kind": "train"})
        assert folder.facts().get("earlier_commits") == earlier
    assert [row["step"] for row in folder.rows()] == [1, 2, 3, 4]
    assert json.loads((folder.path / "run.json").read_text())["config"]["crop_size"] == quick.crop_size


AS_NOBODY = """
import os, sys
from pathlib import Path
from bidir.run.folder import RunFolder

if os.geteuid() == 0:
    os.setuid(65534)
for path in map(Path, sys.argv[1:]):
    print(RunFolder(path).state())
"""


def test_looking_on_needs_no_right_to_write(tmp_path):
    """As another user where the tests are root's, who may write anywhere."""
    with TemporaryDirectory() as root:
        folders = [RunFolder(Path(root) / name) for name in ("interrupted", "failed", "running")]
        for folder in folders:
            with folder.lock():
                folder.checkpoint.touch()
        folders[1].failed.write_text("no memory")
        for path in (*(file for folder in folders for file in folder.path.iterdir()), *Path(root).iterdir()):
            path.chmod(0o555)
        Path(root).chmod(0o555)
        try:
            with open(folders[2].path / "LOCK") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                ran = subprocess.run([sys.executable, "-c", AS_NOBODY, *(str(folder.path) for folder in folders)],
                                     capture_output=True, text=True, check=True)  # fmt: skip
        finally:
            for path in (Path(root), *Path(root).iterdir()):
                path.chmod(0o755)
    assert ran.stdout.split() == ["interrupted", "failed", "running"]


def test_drafts_of_a_killed_attempt_are_removed_at_the_next_start(quick, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / "checkpoint.pt.123.part").write_bytes(bytes(1000))
    folder.start(quick, "manifest", ("a",), {"hardware": "here"}, 0, [])
    assert not list(folder.path.glob("*.part"))


def test_done_holds_the_digests_of_all_numbers(short):
    folder = RunFolder(short[1])
    told = subprocess.run(["sha256sum", "-c", "DONE"], cwd=folder.path, capture_output=True, text=True, check=True)
    assert told.stdout.split("\n")[:-1] == [f"{path.name}: OK" for path in folder.numbers]
