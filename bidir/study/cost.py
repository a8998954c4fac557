"""What each part of the method costs: time and memory of a step and of an evaluated image, beside full supervision."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from timeit import Timer
from typing import Any

import numpy as np
import pandas as pd
import torch

from bidir.config import RunConfig
from bidir.data.open import dataset_manifest, open_split
from bidir.method.network import DualBranchNetwork, evaluating
from bidir.method.propagation import refinement
from bidir.method.tensors import Batch
from bidir.run.evaluation import MAPS, count_maps, evaluate, predict_maps
from bidir.run.machine import machine, make_accelerator, peak_memory_mib, settle_memory
from bidir.run.preflight import check_config, check_files, check_processes
from bidir.run.step import build, train_step
from bidir.run.training import training_batches

PLAIN, THREE = {"object_aware_decoding": False}, {"teacher_scales": (1.0, 0.5, 1.5), "teacher_flip": True}
BASE = "Branch-S on masks"
METHODS: dict[str, dict[str, Any]] = {
    BASE: {"supervision": "full", **PLAIN}, "Branch-C alone": {"supervision": "none"},
    "c2s, PAR": {"supervision": "c2s", "propagation": "par", **PLAIN}, "c2s, BSP": {"supervision": "c2s", **PLAIN},
    "both, BSP": {"supervision": "both", **PLAIN}, "full method": {}, "full method, three scales and flips": THREE,
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "EfficientNet-Lite0, 4 crops of 224 px": dict(crop_size=224, batch_size=4),
    "MiT-B1, 2 crops of 320 px": dict(encoder="mit_b1", encoder_weights="random", crop_size=320, batch_size=2),
}
ON_GPU = {"MiT-B1, 4 crops of 512 px": dict(encoder="mit_b1", encoder_weights="random", crop_size=512, batch_size=4)}


def measure(config: RunConfig, steps: int = 8, warm_up: int = 3) -> dict[str, float]:
    """Seconds of a training step with every term on (median, least, most), and this process's peak memory in MiB."""
    config = config.replace(c2s_start=0, s2c_start=0, propagation_start=0, iterations=warm_up + steps)
    split, accelerator = open_split(config, "train"), make_accelerator(config)
    learner = build(config, len(split.class_names), accelerator)
    ends = []
    for step, batch in enumerate(training_batches(config, split, accelerator)):
        float(train_step(learner, batch, config, step)["loss"])  # waits for the device
        ends.append(time.perf_counter())
    return _measured(np.diff(ends)[-steps:], accelerator.device)


def measure_refinement(config: RunConfig, steps: int = 8) -> dict[str, float]:
    """The same of PAR alone, weights and ten iterations, on the maps of a batch with two classes an image."""
    side, count, device = config.crop_size, config.batch_size, make_accelerator(config).device
    label = torch.zeros(count, 6).index_fill(1, torch.tensor([0, 1]), 1)
    box = torch.tensor([[0, 0, side, side]]).repeat(count, 1)
    batch = Batch(255 * torch.rand(count, 3, side, side), label, box, None, torch.arange(count), 2).to(device)
    maps = torch.rand(count, 3, side // 2, side // 2, device=device)
    seconds = Timer(lambda: float(refinement(batch, config)(maps).sum()), "gc.enable()").repeat(3 + steps, 1)
    return _measured(seconds[3:], device)


def measure_evaluation(config: RunConfig, images: int = 64) -> dict[str, float]:
    """Seconds of an evaluated image, all maps by both protocols; ``steps``: images."""
    split, device = open_split(config, "val"), make_accelerator(config).device
    split = split.select(np.arange(min(images, len(split)))).check(masks=True, progress=False)
    network = DualBranchNetwork(config, len(split.class_names)).to(device, memory_format=torch.channels_last)
    seconds = Timer(lambda: evaluate(network, split, config, progress=False), "gc.enable()").repeat(3, 1)
    return {**_measured(np.divide(seconds, len(split)), device), "steps": len(split)}


def measure_sizes(config: RunConfig, images: int = 2000, sizes: int = 500) -> dict[str, float]:
    """Memory of an evaluation on the CPU whose images have many sizes: ``peak_memory_mib`` is what is resident after
    all, ``memory_ratio`` that over what was resident after the first hundred; seconds per image."""
    settle_memory()
    network, random = DualBranchNetwork(config, 6).to(memory_format=torch.channels_last), np.random.default_rng(0)
    shapes = 64 + random.permutation(96 * 96)[:sizes]  # each another height and width
    resident, seconds = [], []
    with evaluating(network):
        for number in range(images):
            height, width = 64 + shapes[number % sizes] % 96, 64 + shapes[number % sizes] // 96
            image, box = 255 * torch.rand(1, 3, height, width), torch.tensor([[0, 0, height, width]])
            batch = Batch(image, torch.eye(6)[:1], box, torch.zeros(1, height, width).long(), torch.tensor([0]), 1)
            began = time.perf_counter()
            count_maps(predict_maps(network, batch, config, {"raw": set(MAPS), "ms": set(MAPS)}), batch.mask, 6)
            seconds.append(time.perf_counter() - began)
            if number + 1 in (100, images):
                resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20)
    return {**_measured(seconds), "peak_memory_mib": resident[1], "memory_ratio": round(resident[1] / resident[0], 3)}


def _measured(seconds: Any, device: torch.device | None = None) -> dict[str, float]:
    found = {"seconds_per_step": median(seconds), "seconds_least": min(seconds), "seconds_most": max(seconds)}
    found = {name: round(float(value), 4) for name, value in found.items()}
    return {**found, "peak_memory_mib": peak_memory_mib(device or torch.device("cpu")), "steps": len(seconds)}


def _apart(function: Callable[..., dict[str, float]], *given: Any) -> dict[str, float]:
    """A measurement in a process of its own: its own peak of memory, and no training in a notebook's kernel, which
    could not start several processes afterwards."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *given).result()


def duration(config: RunConfig) -> str:
    """How long a run would take here, in a line, from a few steps with every term on."""
    share = config.replace(batch_size=config.batch_size // config.processes, processes=1)
    seconds = _apart(measure, share, 3, 1)["seconds_per_step"]
    minutes, steps = seconds * config.iterations / 60, f"{config.iterations} iterations of {seconds:.2f} s"
    return f"about {minutes:.1f} min here: {steps}, measured with every term on; validations come to it"


def forecast(config: RunConfig) -> str:
    """What a run would do, and the time and memory it would take, from a step measured here with every term on."""
    check_config(config)
    train, val = open_split(config, "train"), open_split(config, "val")
    check_files(train, val, config, progress=True)
    check_processes(config, config.processes)
    share = config.batch_size // config.processes
    one = measure(config.replace(batch_size=share, processes=1), steps=3, warm_up=1)
    hours = one["seconds_per_step"] * config.iterations / 3600
    epochs, at_once = config.iterations * config.batch_size / len(train), min(share, config.images_per_pass or share)
    starts = f"c2s from {config.c2s_start}, s2c from {config.s2c_start}, {config.propagation} from"
    return "\n".join([
        f"run      {config.run_id(dataset_manifest(train, val))}, {config.encoder}",
        f"data     {len(train)} training and {len(val)} validation images, {len(train.class_names)} classes",
        f"steps    {config.iterations}, {epochs:.1f} epochs; {starts} {config.propagation_start}",
        f"batch    {config.batch_size} crops of {config.crop_size} px, {share} for each of {config.processes} processes"
        f", {at_once} at once",
        f"time     {hours:.1f} h: {one['seconds_per_step']:.2f} s per step measured here with one process's share and "
        "every term on; validations and what processes tell each other come to it",
        f"memory   {one['peak_memory_mib']} MiB per process",
    ])  # fmt: skip


def cost(config: RunConfig) -> pd.DataFrame:
    """A row per part and setting, each measured in a process of its own: part, setting, seconds (median, least, most),
    peak memory, both also as ratio to full supervision in the same setting, steps, and what it was measured on."""
    device = torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")
    on, rows = machine(device), []
    what = f"{on['hardware']}, {on['threads']} threads"
    for setting, changes in (ON_GPU if device.type == "cuda" else SIZES).items():
        jobs = {part: (measure, config.replace(**changes, **axes)) for part, axes in METHODS.items()}
        if "encoder" not in changes:
            jobs["PAR alone"] = (measure_refinement, config.replace(**changes))
            jobs["an evaluated image"] = (measure_evaluation, config.replace(**changes))
            jobs["memory, 2,000 images of 500 sizes"] = (measure_sizes, config.replace(eval_size=0))
        base: dict[str, float] = {}
        for part, (function, given) in jobs.items():
            row = _apart(function, given)
            base = base or row
            if function is measure:
                row["ratio"] = round(row["seconds_per_step"] / base["seconds_per_step"], 4)
                row["memory_ratio"] = round(row["peak_memory_mib"] / base["peak_memory_mib"], 3)
            rows.append({"part": part, "setting": setting, **row, "what": what})
    return pd.DataFrame(rows)
