"""The machine that a run is computed on: its device, precision, processes and trackers, and how much it took."""

import ctypes
import os
import platform
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

from bidir.config import ConfigError, RunConfig
from bidir.method import distributed
from bidir.run.preflight import check_machine

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def make_accelerator(config: RunConfig, folder: Path | None = None) -> Accelerator:
    """The device, precision, processes and trackers of the run. Errors: ``ConfigError`` if there is no GPU to use."""
    check_machine(config)
    settle_memory()
    varying = DistributedDataParallelKwargs(find_unused_parameters=True)  # which branch runs depends on the step
    handlers = [varying, InitProcessGroupKwargs(timeout=distributed.PATIENCE)]
    try:
        accelerator = Accelerator(
            cpu=config.device == "cpu", mixed_precision=config.mixed_precision, kwargs_handlers=handlers,
            log_with=list(config.trackers) or None, project_dir=folder,
        )  # fmt: skip
    except ValueError as error:  # accelerate keeps device and precision for the life of a process
        asked = f"device = {config.device!r} with mixed_precision = {config.mixed_precision!r} cannot be had here"
        fix = "if an earlier run of this process used others, restart the kernel"
        raise ConfigError(f"{asked}; {fix} ({error})") from error
    if config.trackers:
        accelerator.init_trackers("bidir")
    return accelerator


def machine(device: torch.device) -> dict[str, Any]:
    """What a run is computed on: one line that names the processor, and the threads it may use."""
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
        told = dict(map(str.strip, line.split(":", 1)) for line in text.splitlines() if ":" in line)
        kind = [f"{key} {told[key]}" for key in ("cpu family", "model", "stepping") if key in told]
        name = f"CPU {', '.join([told.get('model name') or platform.machine(), *kind])}, {os.cpu_count()} cores"
    return {"hardware": name, "threads": torch.get_num_threads()}


def peak_memory_mib(device: torch.device) -> int:
    """Largest memory of this process so far: of the GPU if there is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def settle_memory() -> None:
    """Let this process keep large blocks of memory that come and go with every step (glibc would give them back each
    time: a third of the time on a CPU), and fewer compiled convolutions (of oneDNN's 1,024: half a GiB)."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "400")  # read when the first convolution is made
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_THRESHOLD, 1 << 30)
        library.mallopt(TRIM_THRESHOLD, (1 << 31) - 1)
