"""What is looked at before a run starts: hardware and packages, the number of processes, every file of the data."""

from __future__ import annotations

import os
from importlib.util import find_spec

import numpy as np
import torch

from bidir.config import ConfigError, RunConfig, has_attention
from bidir.data import DataError, Split


def check_machine(config: RunConfig) -> None:
    """``ConfigError`` if the configuration asks for a GPU or a package that is not here."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda', but no GPU is to be seen; set device = 'auto' or 'cpu'")
    if config.tensorboard and not find_spec("tensorboard"):
        raise ConfigError("tensorboard = True, but it is not installed: pip install 'bidir[tensorboard]'")


def check_processes(config: RunConfig, count: int) -> None:
    """``ConfigError`` if ``count`` processes cannot train this run as one would."""
    if config.processes > 1 and "RANK" in os.environ:
        raise ConfigError(f"processes = {config.processes}, but torchrun has started its own; leave it at 1 there")
    if config.batch_size % count:
        raise ConfigError(
            f"batch_size = {config.batch_size} is not divisible by {count} processes, which share it; "
            f"set a multiple such as {config.batch_size + -config.batch_size % count}, or start another number"
        )
    if config.device != "cpu" and 0 < torch.cuda.device_count() < config.processes:
        raise ConfigError(
            f"processes = {config.processes}, but there are {torch.cuda.device_count()} GPUs; set at most as many, or "
            "device = 'cpu'"
        )
    if count > 1 and config.encoder_norm == "trained" and not has_attention(config.encoder):
        raise ConfigError(
            f"encoder_norm = 'trained' with encoder = {config.encoder!r}: its batch norm knows its own process alone; "
            "set frozen, use a mit_* encoder, or one process"
        )


def check_data(train: Split, val: Split, config: RunConfig, progress: bool) -> np.ndarray:
    """Look at every file that the run will open; returns the sizes of the validation images.

    Errors: ``DataError``, also if every crop would be larger than the image it is cut from.
    """
    if train.class_names != val.class_names:
        raise DataError(f"classes of train {train.class_names} and val {val.class_names} differ; set classes")
    shared = sorted({*train.images} & {*val.images})
    if shared:
        raise DataError(
            f"{shared[0]} ({len(shared)} in all) is to be trained on and scored on; are the lists mixed up?"
        )
    longest = train.check(masks=config.supervision == "full", progress=progress).max() * config.scale_max
    if config.crop_size > longest:
        raise DataError(
            f"crop_size = {config.crop_size} is larger than every image, even at scale_max ({longest:.0f} px); "
            f"set crop_size to at most {int(longest)}"
        )
    return val.check(masks=val.masks is not None, progress=progress)
