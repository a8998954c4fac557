"""Training: one visible loop, and the step that it repeats."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, notebook_launcher
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from bidir.config import ConfigError, Optimiser, RunConfig
from bidir.data.loader import StepSampler, TrainingCrops, make_loader
from bidir.data.open import dataset_manifest, open_split
from bidir.data.split import Split
from bidir.method import distributed
from bidir.method.network import DualBranchNetwork
from bidir.method.supervision import active, forward, labelled_shares, loss_terms, make_targets, total_loss
from bidir.method.tensors import Batch
from bidir.run.checkpoint import resume, save_state
from bidir.run.evaluation import COLUMNS, IMAGE_COLUMNS, evaluate, mean_scores
from bidir.run.folder import RunFolder, Scores
from bidir.run.machine import free_port, machine, make_accelerator, peak_memory_mib
from bidir.run.preflight import check_config, check_files, check_processes

WATCHED = {"raw": {"y_s", "branch_c", "branch_s"}, "ms": {"cam", "seed", "y_c"}}  # maps validated on the way


def fit(config: RunConfig, progress: bool = True) -> Path:
    """Train and evaluate the run that ``config`` describes; returns its folder.

    A finished run returns at once, an interrupted one goes on from its last checkpoint. Everything
    about configuration and data is checked before training starts. Several processes (``processes``, or
    those that ``torchrun`` started) share every batch: losses and scores are those of one, up to rounding.
    Errors: ``ConfigError``, ``DataError``, ``WeightsError``; ``FloatingPointError`` naming a loss
    term that is not finite.
    """
    check_config(config)
    train, val = open_split(config, "train"), open_split(config, "val")
    folder = RunFolder.of(config, dataset_manifest(train, val))
    if config.processes == 1:
        return _fit_together(config, train, val, folder, None, progress)
    check_processes(config, config.processes)
    if not folder.done.is_file():
        given = (config.replace(processes=1), train, val, folder, check_files(train, val, config, progress), False)
        try:
            notebook_launcher(_fit_launched, given, config.processes, use_port=free_port())
        except ValueError as error:  # accelerate's, if this process has trained by itself before
            raise ConfigError(f"processes = {config.processes} cannot start here; restart the kernel") from error
    return folder.path


def _fit_launched(*arguments: Any) -> None:
    torch.set_num_threads(1)  # forked: the threads of the notebook's process are not there to be waited for
    _fit_together(*arguments)


def _fit_together(
    config: RunConfig, train: Split, val: Split, folder: RunFolder, sizes: np.ndarray | None, progress: bool
) -> Path:
    """``fit`` in each of the processes. ``sizes``: those of the validation images, if all files were looked at."""
    accelerator = make_accelerator(config, folder.path)
    check_processes(config, accelerator.num_processes)
    main = accelerator.is_main_process
    if not distributed.gathered(folder.done.is_file())[0]:
        if sizes is None:
            sizes = distributed.gathered(check_files(train, val, config, progress) if main else None)[0]
        with folder.lock() if main else nullcontext():
            if not distributed.gathered(folder.done.is_file())[0]:  # another run of it may have been faster
                _fit(config, accelerator, train, val, sizes, folder, progress)
    return folder.path


def _fit(
    config: RunConfig,
    accelerator: Accelerator,
    train: Split,
    val: Split,
    sizes: np.ndarray,
    folder: RunFolder,
    progress: bool,
) -> None:
    """The loop. Without validation masks there is training, but nothing to score."""
    scored, main = val.masks is not None, accelerator.is_main_process
    network, model, optimizer = build(config, len(train.class_names), accelerator)
    start = resume(folder.checkpoint, network, optimizer, accelerator)
    if main:
        folder.start(config, dataset_manifest(train, val), train.class_names, machine(accelerator.device), start)
    before = folder.facts().get("seconds", 0) if start else 0
    batches = training_batches(config, train, accelerator, start)
    health = Health(config.mixed_precision == "fp16")
    hidden, began = not (progress and main), time.perf_counter()
    for done, batch in enumerate(tqdm(batches, config.supervision, config.iterations, initial=start,
                                      disable=hidden, mininterval=2), start + 1):  # fmt: skip
        row = train_step(network, model, optimizer, batch, config, done - 1, accelerator)
        health.look(row)
        last = done == config.iterations
        if done % config.log_every == 0 or done % config.checkpoint_every == 0 or last:
            health.check()
        if done % config.log_every == 0 or last:
            log(folder, accelerator, {"step": done, "kind": "train", **mean_row(row)})
        if scored and config.eval_every and done % config.eval_every == 0 and not last:
            propagation = active(config, done - 1).propagation
            scores = evaluate(network, val, sizes, config, WATCHED, config.eval_images, False, propagation)
            means = {name: round(value, 5) for name, value in mean_scores(scores.per_class).items()}
            log(folder, accelerator, {"step": done, "kind": "val", **means})
        if done % config.checkpoint_every == 0 or last:
            save_state(folder.checkpoint, network, optimizer, accelerator, done, config, train.class_names)
            if main:
                folder.update({"seconds": round(before + time.perf_counter() - began, 1)})
    seconds = before + time.perf_counter() - began

    nothing = Scores(pd.DataFrame(columns=COLUMNS), pd.DataFrame(columns=IMAGE_COLUMNS))
    scores = evaluate(network, val, sizes, config, progress=progress) if scored else nothing
    if main:
        part = "holdout of train" if config.holdout else config.val_list
        folder.finish(scores, {
            "results": mean_scores(scores.per_class), "evaluated_on": part if scored else "nothing: no masks",
            "train_images": len(train), "val_images": len(val), "seconds": round(seconds, 1),
            "processes": accelerator.num_processes,
            "seconds_per_step": round(seconds / config.iterations, 4), "resumed_at": start,
            "peak_memory_mib": peak_memory_mib(accelerator.device),
        })  # fmt: skip
    for tracker in accelerator.trackers:  # accelerate's end_training would part the processes too
        tracker.finish()
    accelerator.wait_for_everyone()


def train_step(
    network: DualBranchNetwork,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: RunConfig,
    step: int,
    accelerator: Accelerator,
) -> dict[str, Float[Tensor, ""] | float]:
    """One update: targets, terms, total, gradients, optimiser. ``model`` is ``network``, or its wrapper for many GPUs.

    Returns this process's means: loss, each term, what each teacher labels; and grad_norm, lr. Nothing here waits for
    the device.
    """
    on, parts = active(config, step), batch.to(accelerator.device).parts(config.images_per_pass)
    rate = learning_rate(config, step)
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * rate
    optimizer.zero_grad()
    row: dict[str, Tensor | float] = defaultdict(float)
    for number, part in enumerate(parts, 1):
        share = len(part.image) / len(batch.image)
        with nullcontext() if number == len(parts) else accelerator.no_sync(model):
            with accelerator.autocast():
                outputs = forward(model, part, config, on)
                targets = make_targets(network, outputs, part, config, on)
            terms = loss_terms(outputs, part, targets, config, on)
            loss = total_loss(terms, config)
            accelerator.backward(share * loss)
        for name, value in {"loss": loss, **terms, **labelled_shares(targets)}.items():
            row[name] += share * value.detach()
    norm = accelerator.clip_grad_norm_(network.parameters(), config.grad_clip or float("inf"))
    optimizer.step()
    return {**row, "grad_norm": norm, "lr": rate}


class Health:
    """Whether all values were finite since the last check: noted on the device, asked for when a row is logged or a
    checkpoint saved, so that no update done with a value that is not finite is ever saved."""

    def __init__(self, skips: bool) -> None:
        self.skips, self.broken = skips, {}  # fp16 skips steps whose gradients overflow, by itself

    def look(self, row: dict[str, Float[Tensor, ""] | float]) -> None:
        """Note which values of a step's row are not finite."""
        for name, value in row.items():
            if isinstance(value, Tensor) and not (self.skips and name == "grad_norm"):
                self.broken[name] = self.broken.get(name, False) | ~torch.isfinite(value)

    def check(self) -> None:
        """``FloatingPointError`` that names what was not finite, on any process."""
        names, flags = list(self.broken), torch.stack([*self.broken.values()]).float()
        bad = [name for name, count in zip(names, distributed.total(flags).tolist(), strict=True) if count]
        self.broken = {}
        if bad:
            raise FloatingPointError(f"{', '.join(bad)}: not finite; lower learning_rate or set grad_clip")


def mean_row(row: dict[str, Float[Tensor, ""] | float]) -> dict[str, float]:
    """A step's row as plain numbers, its means over all processes."""
    names = [name for name in row if name not in ("grad_norm", "lr")]
    means = distributed.total(torch.stack([row[name] for name in names])) / distributed.count()
    rounded = {name: round(value, 6) for name, value in zip(names, means.tolist(), strict=True)}
    return {**rounded, "grad_norm": round(float(row["grad_norm"]), 4), "lr": row["lr"]}


def log(folder: RunFolder, accelerator: Accelerator, row: dict[str, Any]) -> None:
    """Write a row to the run's folder and to the trackers that the configuration names."""
    if accelerator.is_main_process:
        folder.log(row)
        values = {f"{row['kind']}/{name}": value for name, value in row.items() if name not in ("step", "kind")}
        accelerator.log(values, row["step"])


def learning_rate(config: Optimiser, step: int) -> float:
    """Learning rate of the encoder at iteration ``step``: linear warm-up, then poly with power 1."""
    decayed = config.learning_rate * (1 - step / config.iterations)
    if step >= config.warmup_iterations:
        return decayed
    return config.warmup_lr + (config.learning_rate - config.warmup_lr) * step / config.warmup_iterations


def build(
    config: RunConfig, num_classes: int, accelerator: Accelerator
) -> tuple[DualBranchNetwork, torch.nn.Module, torch.optim.Optimizer]:
    """The network as the run's seed makes it, the same wrapped for the processes, and its optimiser; in train mode."""
    torch.manual_seed(config.seed)
    network = DualBranchNetwork(config, num_classes)
    network = network.to(accelerator.device, memory_format=torch.channels_last)
    fused = accelerator.device.type == "cuda"
    groups = network.parameter_groups(config)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.999), fused=fused)
    if config.compile:
        network.compile()
    model, optimizer = accelerator.prepare(network, optimizer)
    model.train()
    if accelerator.process_index:  # each has its own dropout
        torch.manual_seed(config.seed + accelerator.process_index)
    return network, model, optimizer


def training_batches(config: RunConfig, train: Split, accelerator: Accelerator, start: int = 0) -> Iterator[Batch]:
    """This process's share of the crops of every step from ``start`` on; with masks for the oracle alone."""
    sampler = StepSampler(len(train), config, start, accelerator.process_index, accelerator.num_processes)
    crops = TrainingCrops(train, config, masks=config.supervision == "full")
    return iter(make_loader(crops, sampler, config.num_workers))
