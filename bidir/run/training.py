"""Training: one visible loop, and the step that it repeats."""

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator, notebook_launcher
from torch.distributed.elastic.utils.distributed import get_free_port

from bidir.config import ConfigError, RunConfig
from bidir.data.loader import StepSampler, TrainingCrops, make_loader
from bidir.data.open import dataset_manifest, open_split
from bidir.data.split import Split
from bidir.method import distributed
from bidir.method.supervision import active
from bidir.method.tensors import Batch
from bidir.progress import Stopped, bar
from bidir.run.checkpoint import begin_from, resume, save_state
from bidir.run.evaluation import COLUMNS, IMAGE_COLUMNS, evaluate, means_by_name
from bidir.run.folder import RunFolder, Scores
from bidir.run.machine import machine, make_accelerator, peak_memory_mib
from bidir.run.preflight import check_config, check_files, check_processes
from bidir.run.step import Health, Learner, build, mean_row, train_step

Parts = tuple[Split, Split]  # the images to train on and to score, the latter checked once all files are
SCORED_TRAIN = {"raw": {"cam", "branch_s"}, "ms": {"cam", "seed"}}  # maps of training images, scored by score_train
WATCHED = {"raw": {"y_s", "branch_c", "branch_s"}, "ms": {"cam", "seed", "y_c"}}  # maps validated on the way


def fit(config: RunConfig, progress: bool = True) -> Path:
    """Train and evaluate the run that ``config`` describes; returns its folder.
    A finished run returns at once, an interrupted one goes on from its last checkpoint. Everything
    about configuration and data is checked before training starts. Several processes (``processes``, or
    those that ``torchrun`` started) share every batch: losses and scores are those of one, up to rounding.
    Errors: ``ConfigError``, ``DataError``, ``WeightsError``; ``FloatingPointError``."""
    check_config(config)
    train, val = open_split(config, "train"), open_split(config, "val")
    folder = RunFolder.of(config, dataset_manifest(train, val))
    try:
        return (_fit_together if config.processes == 1 else _launch)(config, (train, val), folder, progress)
    except KeyboardInterrupt as error:
        raise Stopped(f"stopped at iteration {folder.last_step()}; run again to go on") from error


def _launch(config: RunConfig, data: Parts, folder: RunFolder, progress: bool) -> Path:
    """``fit`` in ``processes`` of its own."""
    check_processes(config, config.processes)
    if not folder.finished():
        checked = (data[0], check_files(*data, config, progress))
        given = (config.replace(processes=1), checked, folder, False)
        try:
            notebook_launcher(_fit_launched, given, config.processes, use_port=str(get_free_port()))
        except ValueError as error:  # accelerate's, if this process has trained by itself before
            raise ConfigError(f"processes = {config.processes} cannot start here; restart the kernel") from error
    return folder.path


def _fit_launched(*given: Any) -> None:
    torch.set_num_threads(1)  # forked: the threads of the notebook's process are not there to be waited for
    _fit_together(*given)


def _fit_together(config: RunConfig, data: Parts, folder: RunFolder, progress: bool) -> Path:
    """``fit`` in each of the processes."""
    accelerator, (train, val) = make_accelerator(config, folder.path), data
    check_processes(config, accelerator.num_processes)
    main = accelerator.is_main_process
    if not distributed.gathered(folder.finished())[0]:
        if val.sizes is None:
            val = distributed.gathered(check_files(train, val, config, progress) if main else None)[0]
        with folder.lock() if main else nullcontext():
            if not distributed.gathered(folder.finished())[0]:  # another run of it may have been faster
                _fit(config, accelerator, (train, val), folder, progress)
    return folder.path


def _fit(config: RunConfig, accelerator: Accelerator, data: Parts, folder: RunFolder, progress: bool) -> None:
    """A run from wherever it is to its final scores. Without validation masks nothing is scored."""
    (train, val), main = data, accelerator.is_main_process
    watched = val.select(val.spread(config.eval_images or len(val)))
    built = config.replace(encoder_weights="random") if config.initial else config
    learner = build(built, len(train.class_names), accelerator)
    start, rows = resume(folder.checkpoint, learner)
    began_from = begin_from(learner.network, config, train.class_names) if config.initial and not start else {}
    if began_from:
        learner.scored.load_state_dict(learner.network.state_dict())  # the average begins there too
    if main:
        folder.start(config, dataset_manifest(train, val), train.class_names, machine(accelerator.device), start, rows)
        if began_from:
            folder.update({"began_from": began_from})
            print(f"begins from {config.initial}; heads of classes, tensors: {began_from}")
    before = folder.facts().get("seconds", 0) if start else 0
    batches, health = training_batches(config, train, accelerator, start), Health(config.mixed_precision == "fp16")
    began = time.perf_counter()
    steps = bar(batches, config.supervision, config.iterations, not (progress and main), initial=start)
    for done, batch in enumerate(steps, start + 1):
        row = train_step(learner, batch, config, done - 1)
        health.look(row)
        logged, saved, kept, validated = _due(config, done, val.masks is not None)
        if logged or saved:
            health.check()
        if logged:
            log(folder, accelerator, {"step": done, "kind": "train", **mean_row(row)})
        if validated:
            now = config.replace(propagation=active(config, done - 1).propagation)
            scores = evaluate(learner.scored, watched, now, WATCHED, progress=False)
            means = {name: round(value, 5) for name, value in means_by_name(scores.per_class).items()}
            log(folder, accelerator, {"step": done, "kind": "val", **means})
        if saved:
            facts = {"step": done, "config": json.dumps(asdict(config)), "classes": list(train.class_names)}
            facts["rows"] = folder.rows()
            save_state(folder.checkpoint, learner, facts)
            if main:
                folder.update({"seconds": round(before + time.perf_counter() - began, 1)})
                if kept:
                    folder.keep(done)
    seconds = round(before + time.perf_counter() - began, 1)
    finish(config, learner, data, folder, {"seconds": seconds, "resumed_at": start}, progress)


def _due(config: RunConfig, done: int, scored: bool) -> tuple[bool, bool, bool, bool]:
    """Whether iteration ``done`` is logged, saved, kept, validated; the last one gets its scores from ``finish``."""
    last, kept = done == config.iterations, config.keep_every > 0 and done % config.keep_every == 0
    validated = scored and config.eval_every > 0 and done % config.eval_every == 0 and not last
    logged = done % config.log_every == 0 or (config.gradients_every and done % config.gradients_every == 0)
    return logged or last, done % config.checkpoint_every == 0 or kept or last, kept, validated


def finish(config: RunConfig, learner: Learner, data: Parts, folder: RunFolder, facts: dict, progress: bool) -> None:
    """The final scores, on all validation images by all protocols, and DONE."""
    (train, val), accelerator, scored = data, learner.accelerator, data[1].masks is not None
    nothing = Scores(pd.DataFrame(columns=COLUMNS), pd.DataFrame(columns=IMAGE_COLUMNS))
    scores = evaluate(learner.scored, val, config, None, progress) if scored else nothing
    results, tables = means_by_name(scores.per_class), {"val": scores}
    if config.score_train:
        some = train.select(train.spread(config.score_train)).check(masks=True, progress=False)
        tables["train"] = evaluate(learner.scored, some, config, SCORED_TRAIN, progress)
    if accelerator.is_main_process:
        part = "holdout of train" if config.holdout else config.val_list
        folder.finish(Scores.joined(tables), {
            **facts, "results": results, "evaluated_on": part if scored else "nothing: no masks",
            "train_images": len(train), "val_images": len(val), "processes": accelerator.num_processes,
            "seconds_per_step": round(facts["seconds"] / config.iterations, 4),
            "peak_memory_mib": peak_memory_mib(accelerator.device),
        })  # fmt: skip
    for tracker in accelerator.trackers:  # accelerate's end_training would part the processes too
        tracker.finish()
    accelerator.wait_for_everyone()


def log(folder: RunFolder, accelerator: Accelerator, row: dict[str, Any]) -> None:
    """Write a row to the run's folder and to the trackers that the configuration names."""
    if accelerator.is_main_process:
        folder.log(row)
        values = {f"{row['kind']}/{name}": value for name, value in row.items() if name not in ("step", "kind")}
        accelerator.log(values, row["step"])


def training_batches(config: RunConfig, train: Split, accelerator: Accelerator, start: int = 0) -> Iterator[Batch]:
    """This process's share of the crops of every step from ``start`` on; with masks for the oracle alone."""
    sampler = StepSampler(len(train), config, start, accelerator.process_index, accelerator.num_processes)
    crops = TrainingCrops(train, config, masks=config.supervision == "full")
    return iter(make_loader(crops, sampler, config.num_workers))
