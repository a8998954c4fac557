"""Where the runs of a batch are executed, each by ``execute``: on slots of this machine, or on a Dask cluster."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from bidir.atomic import write_text
from bidir.config import ConfigError
from bidir.run.folder import BUSY, RunFolder
from bidir.study.grid import Cluster, read_cluster
from bidir.study.notebooks import NotebookError, run_notebook

STOPPED = "stopped"
TURN = 2.0  # seconds to wait for a run that another process is at, before the others have their turn


def execute(values: dict[str, Any], path: str, stop: str, threads: int = 0) -> str:
    """One run by papermill, in the process that calls; returns why it failed, or "", or ``BUSY``: it is another's.
    ``values``: all parameters of ``10_train``; ``path``: the run's folder. The run ends when the file ``stop`` appears
    or its parent process is gone; it resumes from its checkpoint. A finished one without its notebook gets that."""
    if threads:
        _use_threads(threads)
    folder, parent = RunFolder(Path(path)), os.getppid()
    ended = lambda: Path(stop).exists() or os.getppid() != parent  # noqa: E731
    if ended():
        return STOPPED
    try:
        with folder.lock(TURN, "OWNER"):
            with folder.lock(TURN):
                pass  # nobody trains it without a batch
            try:
                if not (folder.finished() and folder.notebook.is_file()):  # by another, meanwhile
                    with open(folder.output, "a") as output:
                        run_notebook("10_train", values, folder.notebook, output, ended)
                return ""
            except (NotebookError, OSError) as error:  # OSError: a full disk, say
                reason = STOPPED if ended() else BUSY if BUSY in str(error) else str(error)
            if reason not in (STOPPED, BUSY) and not folder.finished():
                write_text(folder.failed, reason + "\n")
            return reason
    except BlockingIOError:
        return BUSY
    except OSError as error:  # the batch's own report still tells
        return str(error)


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


def slot_places(count: int) -> list[tuple[list[int], str | None]]:
    """Cores and GPU of each of ``count`` slots. Errors: ``ConfigError`` for more than this machine has."""
    cores, gpus = sorted(os.sched_getaffinity(0)), torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = (visible.split(",") if visible else [str(i) for i in range(gpus)])[:gpus]
    count = count or gpus or len(cores)
    if count > max(len(cores), gpus):
        raise ConfigError(f"slots = {count}: this machine has {len(cores)} cores and {gpus} GPUs")
    return [(cores[i::count] or cores, names[i % gpus] if gpus else None) for i in range(count)]


@contextmanager
def local_slots(count: int) -> Iterator[tuple[Executor, list[Any]]]:
    """An executor for this machine and what to submit before a job: as many runs at a time as slots, each on its own
    cores and GPU. 0 slots: one for each GPU, else for each core."""
    places = slot_places(count)
    slots: SimpleQueue = SimpleQueue()
    every = [Slot(*place) for place in places]
    for slot in every:
        slots.put(slot)
    try:
        with ThreadPoolExecutor(len(every)) as executor:
            yield executor, [_in_free_slot, slots]
    finally:
        for slot in every:
            slot.pool.shutdown()


@contextmanager
def dask_cluster(path: str | Path) -> Iterator[tuple[Executor, list[Any]]]:
    """The same on a Dask cluster, from a YAML file; workers need this project and the same file system.
    As ``Cluster`` says; each worker takes one run per thread, so give it one thread.
    Errors: ``ConfigError``, also if no worker comes."""
    if not find_spec("distributed"):
        raise ConfigError("a cluster needs Dask, which is not installed: pip install 'bidir[cluster]'")
    from distributed import Client, Security

    settings = read_cluster(path)
    try:
        security = Security(**settings.security) if settings.security else None
        jobs = closing(job_cluster(settings, security)) if settings.cluster else nullcontext(settings.address)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {settings.security or settings.options}: {error}") from error
    patience = settings.patience or (86_400 if settings.cluster else 300)
    with jobs as scheduler:
        if settings.cluster:
            scheduler.scale(jobs=settings.jobs)
        try:
            client = Client(scheduler, timeout=20, set_as_default=False, security=security)
        except (OSError, TypeError, ValueError) as error:  # TypeError: an address of TLS without certificates
            raise ConfigError(f"{path}: no Dask scheduler at {settings.address!r} ({error})") from error
        with client:
            try:
                client.wait_for_workers(1, patience)
            except TimeoutError as error:
                none = f"no worker came to the scheduler in {patience} s"
                raise ConfigError(f"{path}: {none}; start dask worker, or set a longer patience") from error
            yield client.get_executor(pure=False), [partial(execute, threads=settings.threads)]


def job_cluster(settings: Cluster, security: Any = None) -> Any:
    """A dask-jobqueue cluster, without jobs so far; its dashboard listens where its scheduler does."""
    handler = signal.getsignal(signal.SIGINT)
    import dask_jobqueue

    signal.signal(signal.SIGINT, handler)  # importing it takes Ctrl-C away
    kinds = {"slurm": dask_jobqueue.SLURMCluster, "pbs": dask_jobqueue.PBSCluster}
    options = {"security": security, **settings.options}
    options["scheduler_options"] = {"dashboard_address": None, **options.get("scheduler_options", {})}
    return kinds[settings.cluster](**options)
