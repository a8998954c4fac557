"""Slots of this machine, and Dask clusters: their files and their jobs' scripts."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from bidir.config import ConfigError
from bidir.run.folder import BUSY, RunFolder
from bidir.study.batch import run_batch
from bidir.study.grid import Cluster, read_grid
from bidir.study.workers import STOPPED, dask_cluster, execute, job_cluster, local_slots, slot_places


def test_slots_are_pinned_to_the_devices_the_caller_was_given(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with local_slots(0) as (_, (_, slots)):
        places = [slots.get().place for _ in range(2)]
    assert [gpu for _, gpu in places] == ["2", "3"]
    cores = [core for mine, _ in places for core in mine]
    assert {*cores} == os.sched_getaffinity(0)
    assert len(cores) == max(2, len({*cores}))  # none is shared, unless there is but one


def test_more_slots_than_the_machine_has_are_refused():
    with pytest.raises(ConfigError, match="this machine has"):
        slot_places(10_000)


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
    cluster = job_cluster(Cluster(cluster=kind, options=options))
    try:
        assert directive in cluster.job_script()
    finally:
        cluster.close()


@pytest.mark.parametrize("name", ["OWNER", "LOCK"])
def test_a_run_at_work_is_left_to_its_owner(tmp_path, monkeypatch, name):
    monkeypatch.setattr("bidir.study.workers.TURN", 0.1)
    folder = RunFolder(tmp_path / "run")
    with folder.lock(name=name):
        assert folder.state() == "running"
        assert execute({}, str(folder.path), str(tmp_path / "STOP")) == BUSY
        assert not {folder.failed, folder.output, folder.notebook} & {*folder.path.iterdir()}


def test_a_scheduler_without_workers_is_an_error_in_time(tmp_path, write_grid):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=0, protocol="tcp", host="127.0.0.1", dashboard_address=None) as cluster:
        path = write_grid(tmp_path / "c.yaml", {"address": cluster.scheduler_address, "patience": 1})
        with pytest.raises(ConfigError, match=r"c.yaml: no worker came to the scheduler in 1 s"), dask_cluster(path):
            pass


@pytest.mark.slow
def test_asking_for_jobs_leaves_ctrl_c_as_it_was():
    """In a process of its own: dask-jobqueue takes it away when it is first imported."""
    code = """
import signal
from bidir.study.grid import Cluster
from bidir.study.workers import job_cluster
signal.signal(signal.SIGINT, signal.default_int_handler)
job_cluster(Cluster(cluster="slurm", options={"cores": 1, "memory": "1GB", "interface": "lo"})).close()
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl for a certificate")
def test_scheduler_and_dashboard_listen_where_they_are_asked_to_and_with_tls(tmp_path):
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout", key, "-out", cert]
    subprocess.run(make, check=True, capture_output=True)
    files = {f"tls_{role}_{kind}": file for role in ("scheduler", "worker", "client")
             for kind, file in (("cert", cert), ("key", key))}  # fmt: skip
    security = pytest.importorskip("distributed").Security(tls_ca_file=cert, require_encryption=True, **files)
    options = {"cores": 1, "memory": "1GB", "interface": "lo"}
    cluster = job_cluster(Cluster(cluster="slurm", options=options), security)
    try:
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
        sockets = cluster.scheduler.http_server._sockets.values()
        assert {socket.getsockname()[0] for socket in sockets} == {"127.0.0.1"}
        assert "--tls-ca-file" in cluster.job_script()
    finally:
        cluster.close()


def test_wrong_security_is_one_clear_error(tmp_path, write_grid):
    path = write_grid(tmp_path / "c.yaml", {"address": "tls://127.0.0.1:1", "security": {"tls_key": "x"}})
    with pytest.raises(ConfigError, match=r"c.yaml: .*tls_key"), dask_cluster(path):
        pass
