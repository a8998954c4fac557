"""Slots of this machine, and Dask clusters: their files and their jobs' scripts."""

import os
import re

import pytest

from bidir.config import ConfigError
from bidir.study.batch import run_batch
from bidir.study.grid import read_grid
from bidir.study.workers import STOPPED, execute, job_cluster, local_slots


def test_slots_are_pinned_to_the_devices_the_caller_was_given(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with local_slots(0) as (_, (_, slots)):
        places = [slots.get().place for _ in range(2)]
    assert [gpu for _, gpu in places] == ["2", "3"]
    cores = [core for mine, _ in places for core in mine]
    assert sorted(cores) == sorted(os.sched_getaffinity(0))


def test_more_slots_than_the_machine_has_are_refused():
    with pytest.raises(ConfigError, match="this machine has"), local_slots(10_000):
        pass


def test_no_run_starts_after_the_order_to_stop(tmp_path):
    (tmp_path / "STOP").touch()
    assert execute({}, str(tmp_path / "run"), str(tmp_path / "STOP")) == STOPPED
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either address"),
        ({"address": "tcp://127.0.0.1:1", "cluster": "slurm"}, "either address"),
        ({"cluster": "abacus"}, "cluster = 'abacus'"),
        ({"scheduler": "x"}, "unknown key 'scheduler'"),
    ],
)
def test_a_wrong_cluster_file_is_one_clear_error(tmp_path, folders, write_grid, small, settings, message):
    grid = write_grid(tmp_path / "g.yaml", {"preset": "quick", "fixed": small, "grids": {"a": {}}})
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
