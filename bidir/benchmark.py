"""What each part of the method costs in a training step: time and memory, each variant in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from typing import Any

import pandas as pd
import torch

from bidir.config import RunConfig
from bidir.data import open_split
from bidir.data.loader import StepSampler, TrainingCrops, make_loader
from bidir.model.network import DualBranchNetwork
from bidir.runs import hardware
from bidir.training import loop, make_accelerator, peak_memory_mib

PARTS: dict[str, dict[str, Any]] = {
    "Branch-C alone": {"supervision": "none"},
    "+ Branch-S, on masks": {"supervision": "full", "object_aware_decoding": False},
    "c2s, PAR": {"supervision": "c2s", "propagation": "par", "object_aware_decoding": False},
    "c2s, PAR, one scale": {
        "supervision": "c2s", "propagation": "par", "object_aware_decoding": False, "seed_scales": (1.0,),
    },
    "c2s, BSP": {"supervision": "c2s", "propagation": "bsp", "object_aware_decoding": False},
    "both, BSP": {"supervision": "both", "propagation": "bsp", "object_aware_decoding": False},
    "both, BSP, object-aware": {"supervision": "both", "propagation": "bsp", "object_aware_decoding": True},
}  # fmt: skip


def measure(config: RunConfig, steps: int = 8, warm_up: int = 3) -> dict[str, float]:
    """Median seconds of a training step with every term on, and the peak memory of this process in MiB."""
    now = {"c2s_start": 0, "s2c_start": 0, "propagation_start": 0, "eval_every": 0, "log_every": 1}
    config = config.replace(**now, iterations=warm_up + steps, checkpoint_every=10**6)
    split, accelerator = open_split(config, "train"), make_accelerator(config)
    network = DualBranchNetwork(config, len(split.class_names))
    network = network.to(accelerator.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameter_groups(config), lr=config.learning_rate)
    crops = TrainingCrops(split, config, masks=config.supervision == "full")
    loader = make_loader(crops, StepSampler(len(split), config), config.num_workers)
    ends: list[float] = []
    nothing = {"validate": lambda _: {}, "save": lambda _: None, "progress": False}
    log = lambda _: ends.append(time.perf_counter())  # noqa: E731
    loop(config, accelerator, network, network, optimizer, loader, 0, log, **nothing)
    seconds = [after - before for before, after in zip(ends[warm_up - 1 :], ends[warm_up:], strict=False)]
    return {
        "seconds_per_step": round(median(seconds), 4), "peak_memory_mib": peak_memory_mib(accelerator.device),
        "steps": steps,
    }  # fmt: skip


def cost(config: RunConfig) -> pd.DataFrame:
    """``measure`` for every part in ``PARTS``: columns part, seconds_per_step, peak_memory_mib, steps, what."""
    rows, spawn = [], multiprocessing.get_context("spawn")
    device = torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")
    what = (
        f"{config.batch_size} crops of {config.crop_size} px, {config.encoder}, {hardware(device)}, "
        f"{torch.get_num_threads()} threads"
    )
    for part, axes in PARTS.items():
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            rows.append({"part": part, **pool.submit(measure, config.replace(**axes)).result(), "what": what})
    return pd.DataFrame(rows)
