"""Batches for real: processes that fail, are killed and interrupted, and a Dask cluster over TCP."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from torch.distributed.elastic.utils.distributed import get_free_port

from bidir.config import DataError
from bidir.study.batch import run_batch
from bidir.study.grid import plan, read_grid


def test_nothing_starts_if_one_run_could_not(tmp_path, folders, write_grid, small):
    grids = {"a": {"cases": [{}, {"val_list": "train"}]}}
    jobs = read_grid(write_grid(tmp_path / "g.yaml", {"preset": "quick", "fixed": small, "grids": grids}), **folders)
    with pytest.raises(DataError, match="to be trained on and scored on"):
        run_batch(jobs)
    assert not Path(folders["runs_dir"]).exists()


def command(grid, folders, *more):
    parameters = [f"-p{name}={value}" for name, value in folders.items()]
    return [sys.executable, "-m", "bidir.cli", "sweep", str(grid), *parameters, *more]


def wait_for(condition, seconds=400):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.1)


def kernel_of(folder, batch):
    """The kernel, below the process ``batch``, that has the lock of a run."""
    below = psutil.Process(batch).children(recursive=True)
    kernels = [process for process in below if "ipykernel_launcher" in " ".join(process.cmdline())]
    lock = str((folder.path / "LOCK").resolve())
    return next((kernel for kernel in kernels if lock in {file.path for file in kernel.open_files()}), None)


@pytest.fixture(scope="module")
def batch(tmp_path_factory, workspace, write_grid, small):
    """A batch of three: interrupted by Ctrl-C, then run on with one run that cannot but fail and one kernel killed."""
    folder = tmp_path_factory.mktemp("batch")
    folders = {"data_root": str(workspace / "data"), "runs_dir": str(folder / "runs")}
    blown_up = {"learning_rate": 1.0, "head_lr_factor": 1000.0, "weight_decay": 1.0, "grad_clip": 0.0}
    cases = [{"supervision": "c2s"}, {"supervision": "none"}, blown_up]
    content = {"preset": "quick", "fixed": small, "grids": {"a": {"cases": cases}}}
    grid = write_grid(folder / "grid.yaml", content)
    jobs = read_grid(grid, **folders)
    taught, classified, wild = (job.folder for job in jobs)

    early = subprocess.Popen(command(grid, folders, "--slots", "1"), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (taught.path / "log.txt").is_file())  # its process starts, and holds no lock yet
    early.send_signal(signal.SIGINT)
    said_early = early.communicate(timeout=60)[1]
    stopped_early = plan(jobs)["state"].tolist()
    first = subprocess.Popen(command(grid, folders, "--slots", "1"), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: taught.last_step() >= 12)
    during = taught.state()
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=60)[1]
    stopped = plan(jobs)["state"].tolist()
    ended = subprocess.Popen(command(grid, folders, "--slots", "1"), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: taught.last_step() >= 22)
    ended.terminate()  # as a queueing system ends a job
    said_on_term = ended.communicate(timeout=60)[1]

    second = subprocess.Popen(command(grid, folders), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: classified.last_step() >= 12)
    kernel_of(classified, second.pid).kill()
    report, terminal = second.communicate(timeout=300)
    return {"grid": grid, "folders": folders, "jobs": jobs, "taught": taught, "classified": classified, "wild": wild,
            "during": during, "said": (said_early, said, said_on_term), "stopped_early": stopped_early,
            "codes": (first.returncode, second.returncode),
            "stopped": stopped, "report": report, "terminal": terminal}  # fmt: skip


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_the_next_call_goes_on(batch):
    assert batch["during"] == "running"
    assert all("run the same command again" in said for said in batch["said"])
    assert batch["codes"][0] == 1
    assert batch["stopped_early"] == ["waiting"] * 3
    assert batch["stopped"] == ["interrupted", "waiting", "waiting"]
    facts = batch["taught"].facts()
    assert batch["taught"].state() == "done"
    assert facts["resumed_at"] == 20
    assert [row["step"] for row in batch["taught"].rows() if row["kind"] == "train"] == list(range(1, 41))
    assert (batch["taught"].path / "notebook.ipynb").is_file()
    assert not list(batch["taught"].path.parent.glob("STOP*"))


@pytest.mark.slow
def test_a_failure_is_told_and_ends_no_other_run(batch):
    assert batch["codes"][1] == 1
    assert batch["wild"].state() == "failed"
    assert "not finite" in batch["wild"].failed.read_text()
    assert batch["classified"].state() == "failed"
    assert "kernel died" in batch["classified"].failed.read_text()
    assert "1 done" in batch["report"]
    assert "2 failed" in batch["report"]
    assert f"failed: {batch['wild'].run_id}" in batch["report"]


@pytest.mark.slow
def test_a_terminal_shows_one_bar_and_no_warning(batch):
    bars = [part for part in re.split("[\r\n]", batch["terminal"]) if "%|" in part]
    assert bars
    assert all(re.match(r"[0-3]/3 runs:", part) for part in bars), bars
    assert "WARNING" not in batch["terminal"]
    assert re.search(r"^\[\d/3\] a, supervision=none, seed 0: failed: ", batch["report"], re.MULTILINE)


@pytest.mark.slow
def test_finished_runs_are_not_repeated_and_failed_ones_only_if_asked(batch):
    done = {path: path.stat().st_mtime_ns for path in batch["taught"].path.iterdir() if path.name != "LOCK"}
    reason = batch["wild"].failed.stat().st_mtime_ns
    assert run_batch(batch["jobs"])["state"].tolist() == ["done", "failed", "failed"]
    assert batch["wild"].failed.stat().st_mtime_ns == reason
    assert run_batch(batch["jobs"], retry_failed=True)["state"].tolist() == ["done", "done", "failed"]
    assert batch["wild"].failed.stat().st_mtime_ns > reason
    assert batch["classified"].facts()["resumed_at"] > 0
    assert done == {path: path.stat().st_mtime_ns for path in done}


@pytest.mark.slow
def test_a_notebook_that_is_gone_is_drawn_anew_without_training(batch):
    """The run stays done: its numbers are whole, the notebook is a view of them."""
    folder = batch["taught"]
    kept = {path: path.stat().st_mtime_ns for path in folder.path.iterdir() if path.name not in ("LOCK", "log.txt")}
    kept.pop(folder.notebook)
    assert {folder.checkpoint, folder.metrics, folder.done, folder.provenance} <= set(kept)
    folder.notebook.unlink()
    folder.failed.write_text("what an earlier attempt said\n")
    assert folder.look() == ("done", "")
    (job,) = (job for job in batch["jobs"] if job.folder.path == folder.path)
    assert run_batch([job])["state"].tolist() == ["done"]
    assert folder.notebook.is_file()
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    folder.failed.unlink()


FULL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # no file grows beyond a megabyte
from bidir.cli import main
sys.argv = ["bidir", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
def test_a_disk_that_takes_no_checkpoint_fails_the_run_with_its_reason(tmp_path, folders, write_grid, small):
    content = {"preset": "quick", "fixed": small, "grids": {"a": {"cases": [{"supervision": "none"}]}}}
    grid = write_grid(tmp_path / "grid.yaml", content)
    (job,) = read_grid(grid, **folders)
    small_disk = [sys.executable, "-c", FULL_DISK, *command(grid, folders)[3:]]
    result = subprocess.run(small_disk, capture_output=True, text=True, check=False, timeout=200)
    assert result.returncode == 1
    assert "File too large" in job.folder.failed.read_text()
    assert not job.folder.checkpoint.exists()
    assert not list(job.folder.path.glob("*.part"))


@pytest.mark.slow
def test_dask_over_tcp_survives_a_killed_worker(tmp_path, folders, write_grid, small):
    """A scheduler and two workers as processes of their own; the one in the middle of a run is killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    address, processes = f"tcp://127.0.0.1:{get_free_port()}", []

    def start(*arguments):
        processes.append(subprocess.Popen([sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]],
                                          cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL,
                                          stderr=subprocess.DEVNULL))  # fmt: skip
        return processes[-1]

    content = {
        "preset": "quick",
        "fixed": small,
        "grids": {"a": {"axes": {"supervision": ["c2s", "none", "s2c"]}}},
    }
    grid = write_grid(tmp_path / "grid.yaml", content)
    cluster = write_grid(tmp_path / "cluster.yaml", {"address": address, "threads": 1})
    jobs = read_grid(grid, **folders)
    try:
        start("dask_scheduler", "--host", "127.0.0.1", "--port", address.rsplit(":", 1)[1], "--no-dashboard")
        workers = [start("dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard") for _ in range(2)]
        batch = subprocess.Popen(command(grid, folders, "--cluster", str(cluster)), stdout=subprocess.PIPE,
                                 stderr=subprocess.DEVNULL, text=True)  # fmt: skip
        wait_for(lambda: any(12 <= job.folder.last_step() < 40 for job in jobs))
        hit = next(job for job in jobs if 12 <= job.folder.last_step() < 40)
        busy = next(worker for worker in workers if kernel_of(hit.folder, worker.pid))
        busy.send_signal(signal.SIGKILL)
        report = batch.communicate(timeout=400)[0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert batch.returncode == 0, report
    assert plan(jobs)["state"].tolist() == ["done"] * 3
    assert hit.folder.facts()["resumed_at"] >= 10
    for job in jobs:
        steps = [row["step"] for row in job.folder.rows() if row["kind"] == "train"]
        assert steps == list(range(1, 41))  # nothing lost, nothing done twice


@pytest.mark.slow
def test_two_sweeps_of_one_grid_share_its_runs(tmp_path, folders, write_grid, small):
    """Each run is executed once, by one of them; neither tells of a failure."""
    cases = [{"supervision": "none"}, {"supervision": "c2s"}]
    grid = write_grid(tmp_path / "g.yaml", {"preset": "quick", "fixed": small, "grids": {"a": {"cases": cases}}})
    jobs = read_grid(grid, **folders)
    sweeps = [subprocess.Popen(command(grid, folders, "--slots", "1"), stdout=subprocess.PIPE, text=True)
              for _ in range(2)]  # fmt: skip
    reports = [sweep.communicate(timeout=500)[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], reports
    assert all("2 done" in report and "failed" not in report for report in reports)
    assert plan(jobs)["state"].tolist() == ["done"] * 2
    for job in jobs:
        assert job.folder.facts()["resumed_at"] == 0
        assert [row["step"] for row in job.folder.rows() if row["kind"] == "train"] == list(range(1, 41))
        assert not list(job.folder.path.glob("*failed*"))
