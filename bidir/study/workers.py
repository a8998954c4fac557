"""Where the runs of a batch are executed, each by ``execute``: on slots of this machine, or on a Dask cluster."""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from bidir.atomic import write_text
from bidir.config import ConfigError, resolve
from bidir.run.folder import BUSY, RunFolder
from bidir.study.grid import read_yaml
from bidir.study.notebooks import NotebookError, run_notebook

STOPPED = "stopped"


def execute(values: dict[str, Any], path: str, stop: str, threads: int = 0) -> str:
    """One run by papermill, in the process that calls; returns why it failed, or "".
    ``values``: all parameters of ``10_train``; ``path``: the run's folder. The run ends when the file ``stop`` appears
    or its parent process is gone; it resumes from its checkpoint. A finished one without its notebook gets that."""
    if threads:
        _use_threads(threads)
    folder, parent = RunFolder(Path(path)), os.getppid()
    ended = lambda: Path(stop).exists() or os.getppid() != parent  # noqa: E731
    if ended():
        return STOPPED
    reason = ""
    try:
        folder.output.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.output, "a") as output:
            run_notebook("10_train", values, folder.notebook, output, ended)
    except NotebookError as error:
        reason = STOPPED if ended() else str(error)
    except OSError as error:  # a full disk, say: the batch's own report still tells
        reason = str(error)
    if reason and reason != STOPPED and BUSY not in reason and not folder.done.is_file():
        with suppress(OSError):
            write_text(folder.failed, reason + "\n")
    return reason


class Slot:
    """A part of this machine, its cores and GPU, with a worker process kept from run to run, a session of its own."""

    def __init__(self, cores: list[int], gpu: str | None) -> None:
        self.place = (cores, gpu)
        self.pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, mp_context=spawn, initializer=_settle, initargs=self.place)

    def run(self, *job: Any) -> str:
        """``execute`` in the worker. Errors: ``BrokenExecutor`` if it dies; the next run has a new one."""
        try:
            return self.pool.submit(execute, *job).result()
        except BrokenExecutor:
            self.pool.shutdown()
            self.pool = self._new_pool()
            raise


def _settle(cores: list[int], gpu: str | None) -> None:
    """Make this process a worker: deaf to the terminal's Ctrl-C, on its cores and GPU, its kernels too."""
    os.setsid()
    os.sched_setaffinity(0, cores)
    _use_threads(len(cores))
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def _use_threads(count: int) -> None:
    """PyTorch sends 1x1 convolutions of a single thread down a slow path: two threads that wait without spinning take
    a sixth less time for a forward and backward pass, also on one core."""
    os.environ |= {"OMP_NUM_THREADS": str(max(2, count)), "OMP_WAIT_POLICY": "PASSIVE"}


def _in_free_slot(slots: SimpleQueue, *job: Any) -> str:
    slot = slots.get()
    try:
        return slot.run(*job)
    finally:
        slots.put(slot)


@contextmanager
def local_slots(count: int) -> Iterator[tuple[Executor, list[Any]]]:
    """An executor for this machine and what to submit before a job: as many runs at a time as slots, each on its own
    cores and GPU. 0 slots: one for each GPU, else for each core."""
    cores, gpus = sorted(os.sched_getaffinity(0)), torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = (visible.split(",") if visible else [str(i) for i in range(gpus)])[:gpus]
    count = count or gpus or len(cores)
    if count > max(len(cores), gpus):
        raise ConfigError(f"slots = {count}: this machine has {len(cores)} cores and {gpus} GPUs")
    slots: SimpleQueue = SimpleQueue()
    every = [Slot(cores[i::count] or cores, names[i % gpus] if gpus else None) for i in range(count)]
    for slot in every:
        slots.put(slot)
    try:
        with ThreadPoolExecutor(count) as executor:
            yield executor, [_in_free_slot, slots]
    finally:
        for slot in every:
            slot.pool.shutdown()


@contextmanager
def dask_cluster(path: str | Path) -> Iterator[tuple[Executor, list[Any]]]:
    """The same on a Dask cluster, from a YAML file; workers need this project and the same file system.
    Either ``address`` of a scheduler, or ``cluster: slurm | pbs`` with ``jobs`` and the ``options`` of dask-jobqueue's
    cluster class. Each worker takes one run per thread, so give it one thread; ``threads`` is what a run may use."""
    if not find_spec("distributed"):
        raise ConfigError("a cluster needs Dask, which is not installed: pip install 'bidir[cluster]'")
    from distributed import Client

    path = resolve(path)
    settings = read_yaml(path, {"address", "cluster", "jobs", "options", "threads"})
    if ("address" in settings) == ("cluster" in settings):
        raise ConfigError(f"{path.name}: give either address (a scheduler) or cluster (slurm | pbs)")
    with closing(job_cluster(settings)) if "cluster" in settings else nullcontext(settings["address"]) as scheduler:
        try:
            client = Client(scheduler, timeout=20, set_as_default=False)
        except OSError as error:
            raise ConfigError(f"{path.name}: no Dask scheduler at {settings.get('address')!r} ({error})") from error
        with client:
            yield client.get_executor(pure=False), [partial(execute, threads=settings.get("threads", 0))]


def job_cluster(settings: dict[str, Any]) -> Any:
    """A dask-jobqueue cluster of ``jobs`` jobs. Errors: ``ConfigError`` for an unknown kind."""
    import dask_jobqueue

    kinds = {"slurm": dask_jobqueue.SLURMCluster, "pbs": dask_jobqueue.PBSCluster}
    if settings["cluster"] not in kinds:
        raise ConfigError(f"cluster = {settings['cluster']!r}: choose one of {', '.join(kinds)}")
    cluster = kinds[settings["cluster"]](**settings.get("options", {}))
    cluster.scale(jobs=settings.get("jobs", 1))
    return cluster
