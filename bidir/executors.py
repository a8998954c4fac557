"""Where the runs of a batch are executed: on slots of this machine, or on a Dask cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
import yaml

from bidir.config import ConfigError, resolve
from bidir.files import write_text
from bidir.runs import BUSY

PROJECT = Path(__file__).parents[1]  # where notebooks/ is; a worker may have been started anywhere


def execute(values: dict[str, Any], folder: str, stop: str, threads: int = 0, places: SimpleQueue | None = None) -> str:
    """One run, by papermill, in a process of its own; returns why it failed, or "".

    ``places`` hands out (cores, GPU) to pin the run to; without, it takes ``threads`` threads wherever it is. The
    process ends with the one that started it, or when the file ``stop`` appears: it resumes from its checkpoint.
    """
    cores, gpu = places.get() if places else ((), None)
    environment = dict(os.environ)
    if cores or threads:
        # PyTorch sends 1x1 convolutions of a single thread down a slow path: two threads that wait without
        # spinning take a sixth less time for a forward and backward pass, also on one core
        environment |= {"OMP_NUM_THREADS": str(max(2, len(cores) or threads)), "OMP_WAIT_POLICY": "PASSIVE"}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    texts = {name: yaml.safe_dump(value, default_flow_style=True, width=10**6) for name, value in values.items()}
    parameters = [f"--parameter={name}={text.splitlines()[0]}" for name, text in texts.items()]  # YAML reads no 1e-06
    log = Path(folder) / "log.txt"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            said_before = output.tell()
            command = [sys.executable, "-m", "bidir.cli", "train", f"--end-with-parent={os.getpid()}", *parameters]
            child = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment, cwd=PROJECT, start_new_session=True
            )
            if cores:
                os.sched_setaffinity(child.pid, cores)
            while child.poll() is None:
                if Path(stop).exists():
                    child.terminate()
                    child.wait()
                    return "stopped"
                time.sleep(0.3)
        if (Path(folder) / "DONE").is_file() and (Path(folder) / "notebook.ipynb").is_file():
            (Path(folder) / "FAILED").unlink(missing_ok=True)
            return ""
        reason = _reason(child.returncode, log.read_bytes()[said_before:].decode(errors="replace"))
        if BUSY not in reason:  # the process that has the run goes on with it
            write_text(Path(folder) / "FAILED", reason + "\n")
        return reason
    except OSError as error:  # a full disk, say: the batch's own report still tells
        return str(error)
    finally:
        if places:
            places.put((cores, gpu))


def _reason(code: int, said: str) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name} (out of memory?)"
    lines = [line.strip() for line in said.splitlines() if line.strip()]  # splits at carriage returns too
    return lines[-1] if lines else f"ended with status {code} and said nothing"


@contextmanager
def local_slots(slots: int) -> Iterator[tuple[Executor, dict[str, Any]]]:
    """An executor for this machine: as many runs at a time as slots, each pinned to its own cores and GPU."""
    cores, count = sorted(os.sched_getaffinity(0)), torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = (visible.split(",") if visible else [str(i) for i in range(count)])[:count]
    slots = slots or count or len(cores)
    if slots > max(len(cores), count):
        raise ConfigError(f"slots = {slots}: this machine has {len(cores)} cores and {count} GPUs")
    places: SimpleQueue = SimpleQueue()
    for slot in range(slots):
        places.put((cores[slot::slots], gpus[slot % count] if count else None))
    with ThreadPoolExecutor(slots) as executor:
        yield executor, {"places": places}


@contextmanager
def dask_executor(path: str | Path) -> Iterator[tuple[Executor, dict[str, Any]]]:
    """An executor on a Dask cluster, from a YAML file; workers need this project and the same file system.

    Either ``address`` of a scheduler, or ``cluster: slurm | pbs`` with ``jobs`` and the ``options`` of dask-jobqueue's
    cluster class. Each worker takes one run per thread, so give it one thread; ``threads`` is what a run may use.
    """
    if not find_spec("distributed"):
        raise ConfigError("a cluster needs Dask, which is not installed: pip install 'bidir[cluster]'")
    from distributed import Client

    path = resolve(path)
    settings = read_yaml(path, {"address", "cluster", "jobs", "options", "threads"})
    if ("address" in settings) == ("cluster" in settings):
        raise ConfigError(f"{path.name}: give either address (a scheduler) or cluster (slurm | pbs)")
    cluster = None if "address" in settings else job_cluster(settings)
    try:
        client = Client(settings.get("address", cluster), timeout=20, set_as_default=False)
    except OSError as error:
        raise ConfigError(f"{path.name}: no Dask scheduler at {settings.get('address')!r} ({error})") from error
    try:
        with client:
            yield client.get_executor(pure=False), {"threads": settings.get("threads", 0)}
    finally:
        if cluster is not None:
            cluster.close()


def job_cluster(settings: dict[str, Any]) -> Any:
    """A dask-jobqueue cluster of ``jobs`` jobs. Errors: ``ConfigError`` for an unknown kind."""
    import dask_jobqueue

    kinds = {"slurm": dask_jobqueue.SLURMCluster, "pbs": dask_jobqueue.PBSCluster}
    if settings["cluster"] not in kinds:
        raise ConfigError(f"cluster = {settings['cluster']!r}: choose one of {', '.join(kinds)}")
    cluster = kinds[settings["cluster"]](**settings.get("options", {}))
    cluster.scale(jobs=settings.get("jobs", 1))
    return cluster


def read_yaml(path: Path, keys: set[str]) -> dict[str, Any]:
    """A YAML file that is a dictionary of ``keys``. Errors: ``ConfigError`` that names the file."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: not YAML ({error})") from error
    require_keys(content, keys, path.name)
    return content


def require_keys(content: Any, keys: set[str], where: str) -> None:
    """``ConfigError`` if ``content`` of a YAML file is no dictionary, or has a key that is none of ``keys``."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: needs to be a dictionary with {', '.join(sorted(keys))}")
    unknown = set(content) - keys
    if unknown:
        raise ConfigError(f"{where}: unknown key {sorted(unknown)[0]!r}; there are {', '.join(sorted(keys))}")
