"""Training: one visible loop."""

from __future__ import annotations

import json
import socket
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs, notebook_launcher
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from bidir import processes
from bidir.checks import check_data, check_machine, check_processes
from bidir.config import ConfigError, RunConfig
from bidir.data import Split, dataset_manifest, open_split
from bidir.data.loader import StepSampler, TrainingCrops, make_loader
from bidir.evaluation import COLUMNS, IMAGE_COLUMNS, Scores, evaluate, mean_scores
from bidir.model.network import DualBranchNetwork
from bidir.runs import RunFolder, load_checkpoint, save_checkpoint
from bidir.schedule import active, learning_rate
from bidir.supervision import labelled_shares, loss_terms, make_pseudo_labels, total_loss

WATCHED = {"raw": {"y_s", "branch_c", "branch_s"}, "ms": {"cam", "seed", "y_c"}}  # maps validated on the way


def fit(config: RunConfig, progress: bool = True) -> Path:
    """Train and evaluate the run that ``config`` describes; returns its folder.

    A finished run returns at once, an interrupted one goes on from its last checkpoint. Everything
    about configuration and data is checked before training starts. Several processes (``processes``, or
    those that ``torchrun`` started) share every batch: losses and scores are those of one, up to rounding.
    Errors: ``ConfigError``, ``DataError``, ``WeightsError``; ``FloatingPointError`` naming a loss
    term that is not finite.
    """
    train, val = open_split(config, "train"), open_split(config, "val")
    folder = RunFolder(config, dataset_manifest(train, val))
    if config.processes > 1:
        check_processes(config, config.processes)
        if not folder.done.is_file():
            sizes, alone = check_data(train, val, config, progress), config.replace(processes=1)
            try:
                notebook_launcher(
                    _fit_launched, (alone, train, val, folder, sizes, False), config.processes, use_port=_free_port()
                )
            except ValueError as error:  # accelerate's, if this process has trained by itself before
                raise ConfigError(f"processes = {config.processes} cannot start here; restart the kernel") from error
        return folder.path
    return _fit_together(config, train, val, folder, None, progress)


def _fit_launched(*arguments: Any) -> None:
    torch.set_num_threads(1)  # forked: the threads of the notebook's process are not there to be waited for
    _fit_together(*arguments)


def _fit_together(
    config: RunConfig, train: Split, val: Split, folder: RunFolder, sizes: np.ndarray | None, progress: bool
) -> Path:
    """``fit`` in each of the processes. ``sizes``: those of the validation images, if all files were looked at."""
    accelerator = make_accelerator(config)
    check_processes(config, accelerator.num_processes)
    main = accelerator.is_main_process
    if not processes.gathered(folder.done.is_file())[0]:
        if sizes is None:
            sizes = processes.gathered(check_data(train, val, config, progress) if main else None)[0]
        with folder.lock() if main else nullcontext():
            if not processes.gathered(folder.done.is_file())[0]:  # another run of it may have been faster
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
    scored = val.masks is not None  # without masks there is training, but nothing to score
    network, model, optimizer = build(config, len(train.class_names), accelerator)
    if accelerator.process_index:  # each has its own dropout
        torch.manual_seed(config.seed + accelerator.process_index)
    start = resume(folder, network, optimizer, accelerator) if folder.checkpoint.is_file() else 0
    sampler = StepSampler(len(train), config, start, accelerator.process_index, accelerator.num_processes)
    crops = TrainingCrops(train, config, masks=config.supervision == "full")
    loader = make_loader(crops, sampler, config.num_workers)
    if accelerator.is_main_process:
        folder.start(config, dataset_manifest(train, val), train.class_names, accelerator.device, start)

    def validate(propagation: str) -> dict[str, float]:
        if not scored:
            return {}
        scores = evaluate(network, val, sizes, config, WATCHED, config.eval_images, False, propagation)
        return {name: round(value, 5) for name, value in mean_scores(scores.per_class).items()}

    def save(step: int) -> None:
        save_state(folder.checkpoint, network, optimizer, accelerator, step, config, train.class_names)
        if accelerator.is_main_process:
            folder.update({"seconds": round(time.perf_counter() - began, 1)})

    began = time.perf_counter() - (folder.facts().get("seconds", 0) if start else 0)
    log = folder.log if accelerator.is_main_process else lambda row: None
    loop(config, accelerator, network, model, optimizer, loader, start, log, validate, save, progress)
    seconds = time.perf_counter() - began

    nothing = Scores(pd.DataFrame(columns=COLUMNS), pd.DataFrame(columns=IMAGE_COLUMNS))
    scores = evaluate(network, val, sizes, config, progress=progress) if scored else nothing
    if accelerator.is_main_process:
        part = "holdout of train" if config.holdout else config.val_list
        folder.finish(scores, {
            "results": mean_scores(scores.per_class), "evaluated_on": part if scored else "nothing: no masks",
            "train_images": len(train), "val_images": len(val), "seconds": round(seconds, 1),
            "processes": accelerator.num_processes,
            "seconds_per_step": round(seconds / config.iterations, 4), "resumed_at": start,
            "peak_memory_mib": peak_memory_mib(accelerator.device),
        })  # fmt: skip
    accelerator.wait_for_everyone()


def build(
    config: RunConfig, num_classes: int, accelerator: Accelerator
) -> tuple[DualBranchNetwork, torch.nn.Module, torch.optim.Optimizer]:
    """The network as the run's seed makes it, the same wrapped for the processes, and its optimiser."""
    torch.manual_seed(config.seed)
    network = DualBranchNetwork(config, num_classes)
    network = network.to(accelerator.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameter_groups(config), lr=config.learning_rate, betas=(0.9, 0.999))
    return network, *accelerator.prepare(network, optimizer)


def loop(
    config: RunConfig,
    accelerator: Accelerator,
    network: DualBranchNetwork,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader,
    start: int,
    log: Callable[[dict], None],
    validate: Callable[[str], dict[str, float]],
    save: Callable[[int], None],
    progress: bool,
) -> None:
    """The iterations ``start`` .. ``config.iterations``. ``model`` is ``network``, or its wrapper for many GPUs."""
    model.train()
    hidden = not (progress and accelerator.is_main_process)
    bar = tqdm(loader, config.supervision, config.iterations, initial=start, disable=hidden, mininterval=2)
    for step, batch in enumerate(bar, start):
        on, parts = active(config, step), batch.to(accelerator.device).parts(config.images_per_pass)
        rate = learning_rate(config, step)
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * rate

        optimizer.zero_grad()
        said: dict[str, Tensor | float] = defaultdict(float)
        for number, part in enumerate(parts, 1):
            share = len(part.image) / len(batch.image)
            with nullcontext() if number == len(parts) else accelerator.no_sync(model):
                with accelerator.autocast():
                    targets = make_pseudo_labels(network, part, config, on)
                    outputs = model(part.image, segmentation=on.c2s or on.full, affinity=on.aff)
                terms = loss_terms(outputs, part, targets, config)
                loss = total_loss(terms, config)
                accelerator.backward(share * loss)
            for name, value in {"loss": loss, **terms, **labelled_shares(targets)}.items():
                said[name] += share * value.detach()
        norm = accelerator.clip_grad_norm_(network.parameters(), config.grad_clip or float("inf"))
        if not torch.isfinite(norm) and config.mixed_precision != "fp16":  # fp16 skips such steps itself
            raise FloatingPointError(f"the gradient of {' + '.join(terms)} is not finite; lower learning_rate")
        optimizer.step()

        done = step + 1
        last = done == config.iterations
        if done % config.log_every == 0 or last:
            means = processes.total(torch.stack([*said.values()])) / accelerator.num_processes
            row = {name: round(value, 6) for name, value in zip(said, means.tolist(), strict=True)}
            log({"step": done, "kind": "train", **row, "grad_norm": round(float(norm), 4), "lr": rate})
            bar.set_postfix({name: f"{row[name]:.3f}" for name in terms}, refresh=False)
        if config.eval_every and done % config.eval_every == 0 and not last:
            log({"step": done, "kind": "val", **validate(on.propagation)})
        if done % config.checkpoint_every == 0 or last:
            save(done)


def make_accelerator(config: RunConfig) -> Accelerator:
    """The device, precision and processes of the run. Errors: ``ConfigError`` if there is no GPU to use."""
    check_machine(config)
    settings = [
        DistributedDataParallelKwargs(find_unused_parameters=True),  # which branch runs depends on the step
        InitProcessGroupKwargs(timeout=processes.PATIENCE),
    ]
    try:
        accelerator = Accelerator(
            cpu=config.device == "cpu", mixed_precision=config.mixed_precision, kwargs_handlers=settings
        )
    except ValueError as error:  # accelerate keeps device and precision for the life of a process
        raise ConfigError(
            f"device = {config.device!r} with mixed_precision = {config.mixed_precision!r} cannot be had here; "
            f"if an earlier run of this process used others, restart the kernel ({error})"
        ) from error
    return accelerator


def _free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def save_state(
    path: Path,
    network: DualBranchNetwork,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    step: int,
    config: RunConfig,
    classes: tuple[str, ...],
) -> None:
    """Everything that the next iteration depends on, as tensors and plain values; the main process writes it."""
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    rng = processes.gathered(own)
    if not accelerator.is_main_process:
        return
    save_checkpoint(path, {
        "model": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "rng": rng,
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {},
        "config": json.dumps(asdict(config)), "classes": list(classes),
    })  # fmt: skip


def resume(
    folder: RunFolder, network: DualBranchNetwork, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> int:
    """Restore weights, optimiser, loss scale and random state; returns the iterations done."""
    state = load_checkpoint(folder.checkpoint)
    network.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if len(state["rng"]) == accelerator.num_processes:  # else dropout goes on from the seeds of this start
        own = state["rng"][accelerator.process_index]
        torch.set_rng_state(own["cpu"])
        if "cuda" in own and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["cuda"])
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(state["scaler"])
    return state["step"]


def peak_memory_mib(device: torch.device) -> int:
    """Largest memory of this process so far: of the GPU if there is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) >> 20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
