"""Batches for real: a grid file, processes that fail, are killed and interrupted, and a Dask cluster over TCP."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from bidir.cli import app
from bidir.config import ConfigError
from bidir.data import DataError
from bidir.executors import job_cluster, local_slots
from bidir.runs import RunFolder, last_step, read_rows
from bidir.sweep import check, plan, read_grid, run_batch

SMALL = {"iterations": 40, "scenes_train": 16, "scenes_val": 4, "eval_every": 0, "device": "cpu"}


def write_grid(path, content):
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def folders(tmp_path, workspace):
    return {"data_root": str(workspace / "data"), "runs_dir": str(tmp_path / "runs")}


def test_cells_are_all_combinations_of_axes_and_cases(tmp_path, folders):
    grids = {
        "product": {"axes": {"supervision": ["c2s", "both"], "propagation": ["par", "bsp"]}, "seeds": [3, 4]},
        "cases": {"cases": [{"lambda_c2s": 0.1}, {"sigma_c": 0.3}], "fixed": {"iterations": 30}},
    }
    content = {"preset": "quick", "fixed": SMALL, "seeds": [7], "grids": grids}
    jobs = read_grid(write_grid(tmp_path / "grid.yaml", content), **folders)
    cells = [(j.config.supervision, j.config.propagation, j.config.seed) for j in jobs if j.grid == "product"]
    assert sorted(cells) == sorted((s, p, n) for s in ("c2s", "both") for p in ("par", "bsp") for n in (3, 4))
    cases = [(j.config.lambda_c2s, j.config.sigma_c, j.config.seed, j.config.iterations) for j in jobs[len(cells) :]]
    assert cases == [(0.1, 0.5, 7, 30), (0.7, 0.3, 7, 30)]
    table = plan(jobs)
    assert table["state"].unique().tolist() == ["waiting"]
    assert table["case"][0] == "supervision=c2s, propagation=par"
    assert len(set(table["run_id"])) == len(jobs)


def test_dry_run_and_status_start_nothing(tmp_path, folders):
    grid = write_grid(tmp_path / "grid.yaml", {"preset": "quick", "fixed": SMALL, "seeds": [0, 1], "grids": {"a": {}}})
    given = [f"-p{name}={value}" for name, value in folders.items()]
    for flag in ("--dry-run", "--status"):
        result = CliRunner().invoke(app, ["sweep", str(grid), flag, *given])
        assert result.exit_code == 0, result.output
        assert "2 waiting" in result.output
    assert not Path(folders["runs_dir"]).exists()
    wrong = CliRunner().invoke(app, ["sweep", str(grid), "--dry-run", *given, "-p", "crop_size=4000"])
    assert "crop_size = 4000 is larger than every image" in str(wrong.exception)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "needs grids"),
        ({"grid": {}}, "unknown key 'grid'"),
        ({"grids": {"a": {"axis": {}}}}, "grid 'a': unknown key 'axis'"),
        ({"grids": {"a": {"axes": {"seed": 3}}}}, "needs to be a list"),
        ({"grids": {"a": {"seeds": []}}}, "needs to be a list that is not empty"),
        ({"grids": {"a": {"axes": {"supervison": ["c2s"]}}}}, "did you mean 'supervision'"),
        ({"grids": {"a": {"axes": {"sigma_c": ["1e-4"]}}}}, "without quotes"),
        ({"preset": "huge", "grids": {"a": {}}}, "preset = 'huge'"),
        ({"fixed": None, "grids": {"a": {}}}, "needs to be a dictionary"),
        ({"grids": ["a"]}, "needs grids"),
        ({"grids": {"a": {"cases": {"lambda_c2s": 0.1}}}}, "needs to be a list"),
        ({"grids": {"a": {"cases": []}}}, "needs to be a list that is not empty"),
        ({"grids": {"a": {"axes": {"seed": [0, 1]}}}}, "seed is set by the list seeds"),
    ],
)
def test_a_wrong_grid_is_one_clear_error(tmp_path, content, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_grid(write_grid(tmp_path / "grid.yaml", content))


def test_a_run_cannot_stand_for_two_seeds_or_cells(tmp_path, folders):
    """Twice the same run would pass for two independent ones and narrow every interval."""
    for grid in ({"seeds": [0, 0]}, {"cases": [{}, {"lambda_c2s": 0.7}]}):  # 0.7 is the default
        path = write_grid(tmp_path / "g.yaml", {"preset": "quick", "fixed": SMALL, "grids": {"a": grid}})
        with pytest.raises(ConfigError, match="it would count twice"):
            read_grid(path, **folders)
    path = write_grid(tmp_path / "g.yaml", {"fixed": SMALL, "grids": {"a": {"axes": {"supervision": ["c2s"]}}}})
    with pytest.raises(ConfigError, match="supervision varies there"):
        read_grid(path, **folders, supervision="none")
    path.write_text("grids: {a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        read_grid(path)


def test_slots_are_pinned_to_the_devices_the_caller_was_given(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with local_slots(0) as (_, options):
        places = [options["places"].get() for _ in range(2)]
    assert [gpu for _, gpu in places] == ["2", "3"]
    cores = [core for mine, _ in places for core in mine]
    assert sorted(cores) == sorted(os.sched_getaffinity(0))


def test_nothing_starts_if_one_run_could_not(tmp_path, folders):
    grids = {"a": {"axes": {"crop_size": [96, 4000]}}}
    jobs = read_grid(write_grid(tmp_path / "g.yaml", {"preset": "quick", "fixed": SMALL, "grids": grids}), **folders)
    with pytest.raises(DataError, match="crop_size = 4000"):
        run_batch(jobs)
    assert not Path(folders["runs_dir"]).exists()
    with pytest.raises(ConfigError, match="this machine has"), local_slots(10_000):
        pass
    lacking = {"encoder": "mit_b0", "encoder_weights": str(tmp_path / "none.pth")}
    grids = {"a": {"cases": [lacking]}}
    jobs = read_grid(write_grid(tmp_path / "g.yaml", {"preset": "quick", "fixed": SMALL, "grids": grids}), **folders)
    with pytest.raises(ValueError, match=r"none\.pth"):
        check(jobs)


def command(grid, folders, *more):
    parameters = [f"-p{name}={value}" for name, value in folders.items()]
    return [sys.executable, "-m", "bidir.cli", "sweep", str(grid), *parameters, *more]


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.1)


def kernels(of):
    """Kernel processes below a process."""
    return [p for p in psutil.Process(of).children(recursive=True) if "ipykernel_launcher" in " ".join(p.cmdline())]


@pytest.fixture(scope="module")
def batch(tmp_path_factory, workspace):
    """A batch of three: interrupted by Ctrl-C, then run on with one run that cannot but fail and one kernel killed."""
    folder = tmp_path_factory.mktemp("batch")
    folders = {"data_root": str(workspace / "data"), "runs_dir": str(folder / "runs")}
    cases = [{"supervision": "c2s"}, {"supervision": "none"}, {"learning_rate": 1e30, "grad_clip": 0.0}]
    content = {"preset": "quick", "fixed": SMALL, "grids": {"a": {"cases": cases}}}
    grid = write_grid(folder / "grid.yaml", content)
    jobs = read_grid(grid, **folders)
    taught, classified, wild = (job.folder for job in jobs)

    early = subprocess.Popen(command(grid, folders, "--slots", "1"), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (taught.path / "log.txt").is_file())  # its process starts, and holds no lock yet
    early.send_signal(signal.SIGINT)
    said_early = early.communicate(timeout=60)[1]
    stopped_early = plan(jobs)["state"].tolist()
    first = subprocess.Popen(command(grid, folders, "--slots", "1"), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: last_step(taught.metrics) >= 12)
    during = taught.state()
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=60)[1]
    stopped = plan(jobs)["state"].tolist()
    ended = subprocess.Popen(command(grid, folders, "--slots", "1"), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: last_step(taught.metrics) >= 22)
    ended.terminate()  # as a queueing system ends a job
    said_on_term = ended.communicate(timeout=60)[1]

    second = subprocess.Popen(command(grid, folders), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    wait_for(lambda: last_step(classified.metrics) >= 12)
    parent = next(p for p in psutil.Process(second.pid).children() if "--parameter=supervision=none" in p.cmdline())
    kernels(parent.pid)[0].kill()
    report = second.communicate(timeout=300)[0]
    return {"grid": grid, "folders": folders, "jobs": jobs, "taught": taught, "classified": classified, "wild": wild,
            "during": during, "said": (said_early, said, said_on_term), "stopped_early": stopped_early,
            "codes": (first.returncode, second.returncode),
            "stopped": stopped, "report": report}  # fmt: skip


def test_ctrl_c_stops_cleanly_and_the_next_call_goes_on(batch):
    assert batch["during"] == "running"
    assert all("run the same command again" in said for said in batch["said"])
    assert batch["codes"][0] == 1
    assert batch["stopped_early"] == ["waiting"] * 3
    assert batch["stopped"] == ["interrupted", "waiting", "waiting"]
    facts = batch["taught"].facts()
    assert batch["taught"].state() == "done"
    assert facts["resumed_at"] == 20
    assert [row["step"] for row in read_rows(batch["taught"].metrics) if row["kind"] == "train"] == list(range(1, 41))
    assert (batch["taught"].path / "notebook.ipynb").is_file()
    assert not list(batch["taught"].path.parent.glob("STOP*"))


def test_a_failure_is_told_and_ends_no_other_run(batch):
    assert batch["codes"][1] == 1
    assert batch["wild"].state() == "failed"
    assert "not finite" in batch["wild"].failed.read_text()
    assert batch["classified"].state() == "failed"
    assert "kernel died" in batch["classified"].failed.read_text()
    assert "1 done" in batch["report"]
    assert "2 failed" in batch["report"]
    assert f"failed: {batch['wild'].run_id}" in batch["report"]


def test_finished_runs_are_not_repeated_and_failed_ones_only_if_asked(batch):
    done = {path: path.stat().st_mtime_ns for path in batch["taught"].path.iterdir() if path.name != "LOCK"}
    reason = batch["wild"].failed.stat().st_mtime_ns
    assert run_batch(batch["jobs"])["state"].tolist() == ["done", "failed", "failed"]
    assert batch["wild"].failed.stat().st_mtime_ns == reason
    assert run_batch(batch["jobs"], retry_failed=True)["state"].tolist() == ["done", "done", "failed"]
    assert batch["wild"].failed.stat().st_mtime_ns > reason
    assert batch["classified"].facts()["resumed_at"] > 0
    assert done == {path: path.stat().st_mtime_ns for path in done}


FULL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # no file grows beyond a megabyte
from bidir.cli import main
sys.argv = ["bidir", *sys.argv[1:]]
main()
"""


def test_a_disk_that_takes_no_checkpoint_fails_the_run_with_its_reason(tmp_path, folders):
    content = {"preset": "quick", "fixed": SMALL, "grids": {"a": {"cases": [{"supervision": "none"}]}}}
    grid = write_grid(tmp_path / "grid.yaml", content)
    (job,) = read_grid(grid, **folders)
    small_disk = [sys.executable, "-c", FULL_DISK, *command(grid, folders)[3:]]
    result = subprocess.run(small_disk, capture_output=True, text=True, check=False, timeout=200)
    assert result.returncode == 1
    assert "File too large" in job.folder.failed.read_text()
    assert not job.folder.checkpoint.exists()
    assert not list(job.folder.path.glob("*.part"))


def test_two_processes_cannot_work_on_one_run(quick, tmp_path):
    folder = RunFolder(quick.replace(runs_dir=str(tmp_path)), "manifest")
    with folder.lock():
        assert folder.state() == "running"
        with pytest.raises(BlockingIOError, match="another process works on this run"), folder.lock(patience=0.1):
            pass
    assert folder.state() == "waiting"


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.slow
def test_dask_over_tcp_survives_a_killed_worker(tmp_path, folders):
    """A scheduler and two workers as processes of their own; the one in the middle of a run is killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    address, processes = f"tcp://127.0.0.1:{free_port()}", []

    def start(*arguments):
        processes.append(subprocess.Popen([sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]],
                                          cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL,
                                          stderr=subprocess.DEVNULL))  # fmt: skip
        return processes[-1]

    content = {
        "preset": "quick",
        "fixed": SMALL,
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
        wait_for(lambda: any(12 <= last_step(job.folder.metrics) < 40 for job in jobs))
        hit = next(job for job in jobs if 12 <= last_step(job.folder.metrics) < 40)
        seed, kind = f"--parameter=seed={hit.config.seed}", f"--parameter=supervision={hit.config.supervision}"
        busy = next(w for w in workers if any({seed, kind} <= {*p.cmdline()} for p in psutil.Process(w.pid).children()))
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
        steps = [row["step"] for row in read_rows(job.folder.metrics) if row["kind"] == "train"]
        assert steps == list(range(1, 41))  # nothing lost, nothing done twice


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either address"),
        ({"address": "tcp://127.0.0.1:1", "cluster": "slurm"}, "either address"),
        ({"cluster": "abacus"}, "cluster = 'abacus'"),
        ({"scheduler": "x"}, "unknown key 'scheduler'"),
    ],
)
def test_a_wrong_cluster_file_is_one_clear_error(tmp_path, folders, settings, message):
    grid = write_grid(tmp_path / "g.yaml", {"preset": "quick", "fixed": SMALL, "grids": {"a": {}}})
    cluster = write_grid(tmp_path / "cluster.yaml", settings)
    with pytest.raises(ConfigError, match=re.escape(message)):
        run_batch(read_grid(grid, **folders), cluster=cluster)


@pytest.mark.parametrize(
    ("kind", "directive"), [("slurm", "#SBATCH -t 04:00:00"), ("pbs", "#PBS -l walltime=04:00:00")]
)
def test_job_script_of_a_queueing_system(kind, directive):
    """dask-jobqueue's own script, made from our settings; nothing is submitted."""
    options = {"cores": 1, "memory": "16GB", "walltime": "04:00:00", "scheduler_options": {"dashboard_address": None}}
    cluster = job_cluster({"cluster": kind, "jobs": 0, "options": options})
    try:
        assert directive in cluster.job_script()
    finally:
        cluster.close()
