"""All that is looked at before a run starts: settings against the encoder, hardware, packages, every file."""

import os

import torch
from accelerate.tracking import get_available_trackers

from bidir.config import ConfigError, RunConfig
from bidir.data.make.check import check_files as check_files
from bidir.method.encoders import entry


def check_config(config: RunConfig) -> None:
    """``ConfigError`` if the configuration asks of its encoder what it does not have."""
    encoder = entry(config.encoder)
    for name, used in (("propagation", config.propagation == "afa"), ("lambda_aff", config.lambda_aff > 0)):
        if used and not encoder.attention:
            lacks = f"needs attention, which encoder = {config.encoder!r} does not have; use a mit_* encoder"
            raise ConfigError(f"{name} = {getattr(config, name)!r} {lacks}, or par | bsp with lambda_aff 0")
    side = config.crop_size * min(config.teacher_scales)
    if side < encoder.smallest:
        small = f"crop_size = {config.crop_size} is {side:.0f} px at the smallest of teacher_scales"
        raise ConfigError(f"{small}; {config.encoder} needs {encoder.smallest}")


def check_machine(config: RunConfig) -> None:
    """``ConfigError`` if the configuration asks for a GPU or a package that is not here."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda', but no GPU is to be seen; set device = 'auto' or 'cpu'")
    if lacking := {*config.trackers} - {str(tracker) for tracker in get_available_trackers()}:
        raise ConfigError(f"trackers: {sorted(lacking)[0]!r} is none of accelerate's, or its package is not installed")


def check_processes(config: RunConfig, count: int) -> None:
    """``ConfigError`` if ``count`` processes cannot train this run as one would."""
    if config.processes > 1 and "RANK" in os.environ:
        raise ConfigError(f"processes = {config.processes}, but torchrun has started its own; leave it at 1 there")
    if config.batch_size % count:
        fits, share = config.batch_size + -config.batch_size % count, f"{count} processes, which share it"
        raise ConfigError(f"batch_size = {config.batch_size} is not divisible by {share}; set {fits}")
    gpus = torch.cuda.device_count()
    if config.device != "cpu" and 0 < gpus < config.processes:
        raise ConfigError(f"processes = {config.processes}, but there are {gpus} GPUs; set that, or device = 'cpu'")
    if count > 1 and config.encoder_norm == "trained" and not entry(config.encoder).attention:
        alone = f"encoder = {config.encoder!r}, whose batch norm knows its own process alone"
        raise ConfigError(f"encoder_norm = 'trained' with {alone}; set frozen, take a mit_* encoder, or one process")
