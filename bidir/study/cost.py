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
from bidir.data.open import dataset_manifest, open_split
from bidir.run.machine import machine, make_accelerator, peak_memory_mib
from bidir.run.preflight import check_config, check_files, check_processes
from bidir.run.training import build, train_step, training_batches

MIT = {"encoder": "mit_b0", "encoder_weights": "random", "encoder_norm": "trained"}  # the one with attention
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
    "mit_b0: c2s, PAR": {**MIT, "supervision": "c2s", "propagation": "par", "object_aware_decoding": False},
    "mit_b0: c2s, AFA": {
        **MIT, "supervision": "c2s", "propagation": "afa", "lambda_aff": 0.1, "object_aware_decoding": False,
    },
}  # fmt: skip


def measure(config: RunConfig, steps: int = 8, warm_up: int = 3) -> dict[str, float]:
    """Seconds of a training step with every term on (median, least, most), and this process's peak memory in MiB."""
    now = {"c2s_start": 0, "s2c_start": 0, "propagation_start": 0}
    config = config.replace(**now, iterations=warm_up + steps)
    split, accelerator = open_split(config, "train"), make_accelerator(config)
    network, model, optimizer = build(config, len(split.class_names), accelerator)
    seconds = []
    before = time.perf_counter()
    for step, batch in enumerate(training_batches(config, split, accelerator)):
        row = train_step(network, model, optimizer, batch, config, step, accelerator)
        float(row["loss"])  # waits for the device
        after = time.perf_counter()
        seconds.append(after - before)
        before = after
    seconds = seconds[warm_up:]
    return {
        "seconds_per_step": round(median(seconds), 4), "seconds_least": round(min(seconds), 4),
        "seconds_most": round(max(seconds), 4), "peak_memory_mib": peak_memory_mib(accelerator.device),
        "steps": steps,
    }  # fmt: skip


def forecast(config: RunConfig) -> str:
    """What a run would do, and the time and memory it would take, from a step measured here with every term on."""
    check_config(config)
    train, val = open_split(config, "train"), open_split(config, "val")
    check_files(train, val, config, progress=True)
    check_processes(config, config.processes)
    share = config.batch_size // config.processes
    one = measure(config.replace(batch_size=share, processes=1), steps=3, warm_up=1)
    hours = one["seconds_per_step"] * config.iterations / 3600
    at_once = min(share, config.images_per_pass or share)
    started = f"c2s from {config.c2s_start}, s2c from {config.s2c_start}, {config.propagation} from"
    return "\n".join([
        f"run      {config.run_id(dataset_manifest(train, val))}, {config.encoder}",
        f"data     {len(train)} training and {len(val)} validation images, {len(train.class_names)} classes",
        f"steps    {config.iterations}, {config.iterations * config.batch_size / len(train):.1f} epochs; {started} "
        f"{config.propagation_start}",
        f"batch    {config.batch_size} crops of {config.crop_size} px, {share} for each of {config.processes} processes"
        f", {at_once} at once",
        f"time     {hours:.1f} h: {one['seconds_per_step']:.2f} s per step measured here with one process's share and "
        "every term on; validations and what processes tell each other come to it",
        f"memory   {one['peak_memory_mib']} MiB per process",
    ])  # fmt: skip


def cost(config: RunConfig) -> pd.DataFrame:
    """``measure`` for every part in ``PARTS``: columns part, those of ``measure``, what."""
    rows, spawn = [], multiprocessing.get_context("spawn")
    device = torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")
    on = machine(device)
    what = (
        f"{config.batch_size} crops of {config.crop_size} px, {config.encoder} if nothing else is said, "
        f"{on['hardware']}, {on['threads']} threads"
    )
    for part, axes in PARTS.items():
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            rows.append({"part": part, **pool.submit(measure, config.replace(**axes)).result(), "what": what})
    return pd.DataFrame(rows)
