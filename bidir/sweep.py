"""Batches of runs: a grid file, checked as a whole, then every run that is not finished."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from bidir.checks import check_data, check_machine
from bidir.config import ConfigError, RunConfig, resolve
from bidir.data import dataset_manifest, open_split
from bidir.executors import dask_executor, execute, local_slots, read_yaml, require_keys
from bidir.files import write_text
from bidir.model.network import DualBranchNetwork
from bidir.registry import collect, read_registry, write_registry
from bidir.runs import RunFolder, last_step

FILE_KEYS, GRID_KEYS = {"preset", "fixed", "seeds", "grids"}, {"fixed", "seeds", "axes", "cases"}
DATA_FIELDS = [field.name for field in fields(RunConfig)]
DATA_FIELDS = DATA_FIELDS[: DATA_FIELDS.index("crop_size")]


@dataclass(frozen=True)
class Job:
    """A cell of a grid at one seed; two cells may share a run."""

    grid: str
    case: dict[str, Any]  # what the cell sets: its values on the grid's axes
    config: RunConfig
    folder: RunFolder

    @property
    def cell(self) -> str:
        """What the cell sets, as text."""
        return ", ".join(f"{name}={value}" for name, value in self.case.items())

    @property
    def name(self) -> str:
        """Grid, cell and seed, as a person tells runs apart."""
        return f"{self.grid}, {self.cell or 'all as fixed'}, seed {self.config.seed}"


def read_grid(path: str | Path, **overrides: Any) -> list[Job]:
    """The jobs of a grid file, every configuration checked and every dataset opened.

    The file names ``grids``, each with ``axes`` (parameter: list of values; all combinations) and/or
    ``cases`` (list of parameter dictionaries), and ``fixed`` parameters and ``seeds``, of the file or of one
    grid; ``preset`` is the base. ``overrides`` apply to all runs. Errors: ``ConfigError``, ``DataError``.
    """
    path, jobs, manifests = resolve(path), [], {}
    content = read_yaml(path, FILE_KEYS)
    if not isinstance(content.get("grids"), dict) or not content["grids"]:
        raise ConfigError(f"{path.name}: needs grids, a dictionary from name to axes, cases and seeds")
    for name, grid in content["grids"].items():
        where, first = f"{path.name}, grid {name!r}", len(jobs)
        fixed, seeds, axes, cases = _parts(content, grid, overrides, where)
        for case in cases:
            for values in product(*axes.values()):
                cell = {**case, **dict(zip(axes, values, strict=True))}
                for seed in seeds:
                    try:
                        config = RunConfig.from_parameters(
                            {**fixed, **cell, "seed": seed}, content.get("preset", "study")
                        )
                    except ConfigError as error:
                        raise ConfigError(f"{where}, {cell}: {error}") from error
                    key = tuple(getattr(config, field) for field in DATA_FIELDS)
                    if key not in manifests:
                        manifests[key] = dataset_manifest(open_split(config, "train"), open_split(config, "val"))
                    jobs.append(Job(name, cell, config, RunFolder(config, manifests[key])))
        twice = Counter(job.folder.run_id for job in jobs[first:]).most_common(1)[0]
        if twice[1] > 1:
            raise ConfigError(f"{where}: two of its cells or seeds are one run, {twice[0]}; it would count twice")
    return jobs


def _parts(content: dict, grid: Any, overrides: dict[str, Any], where: str) -> tuple[dict, list, dict, list]:
    """A grid's fixed parameters, seeds, axes and cases. Errors: ``ConfigError``."""
    require_keys(grid, GRID_KEYS, where)
    seeds, axes, cases = grid.get("seeds", content.get("seeds", [0])), grid.get("axes", {}), grid.get("cases", [{}])
    parts = [content.get("fixed", {}), grid.get("fixed", {}), axes, *(cases if isinstance(cases, list) else [cases])]
    wrong = [part for part in parts if not isinstance(part, dict)]
    if wrong:
        raise ConfigError(f"{where}: {wrong[0]!r} needs to be a dictionary from parameter to value")
    lists = {**axes, "seeds": seeds, "cases": cases}
    wrong = [key for key, values in lists.items() if not isinstance(values, list) or not values]
    if wrong:
        raise ConfigError(f"{where}: {wrong[0]} = {lists[wrong[0]]!r} needs to be a list that is not empty")
    if any("seed" in part for part in [*parts, overrides]):
        raise ConfigError(f"{where}: seed is set by the list seeds")
    set_here = set(axes).union(*cases) & overrides.keys()
    if set_here:
        raise ConfigError(f"{where}: {sorted(set_here)[0]} varies there and cannot be given for all runs")
    return {**parts[0], **parts[1], **overrides}, seeds, axes, cases


def plan(jobs: list[Job]) -> pd.DataFrame:
    """One row per cell and seed: grid, case, seed, run_id, state, step, iterations, seconds, reason of a failure."""
    rows, known = [], {}
    for job in jobs:
        folder = job.folder
        if folder.run_id not in known:
            state = folder.state()
            reason = folder.failed.read_text().strip() if state == "failed" else ""
            step = last_step(folder.metrics)
            known[folder.run_id] = {"state": state, "step": step, "iterations": job.config.iterations,
                                    "seconds": folder.facts().get("seconds"), "reason": reason}  # fmt: skip
        rows.append({"grid": job.grid, "case": job.cell, "seed": job.config.seed, "run_id": folder.run_id,
                     **known[folder.run_id]})  # fmt: skip
    return pd.DataFrame(rows)


def check(jobs: list[Job], here: bool = True) -> None:
    """Find before the first run what would stop one: files that cannot be read, crops too large, lacking weights,
    and, if the runs take place ``here``, lacking hardware and packages.

    Errors: ``ConfigError``, ``DataError``, ``WeightsError``.
    """
    data, models = {}, {}
    for config in (job.config for job in jobs):
        key = (*(getattr(config, f) for f in DATA_FIELDS), config.crop_size, config.scale_max)
        data.setdefault((*key, config.supervision == "full"), config)
        models.setdefault((config.encoder, config.encoder_weights), config)
    for config in data.values():
        check_data(open_split(config, "train"), open_split(config, "val"), config, progress=False)
    for config in models.values():
        DualBranchNetwork(config, 2)
    for job in jobs if here else ():
        check_machine(job.config)


def run_batch(
    jobs: list[Job], slots: int = 0, cluster: str | Path | None = None, retry_failed: bool = False
) -> pd.DataFrame:
    """Execute every run that is not finished, each in a process of its own; returns ``plan`` as it is then.

    Finished runs are not repeated, interrupted ones go on, failed ones stay so unless ``retry_failed``. A run that
    fails leaves its reason and ends no other. Ctrl-C stops after the current checkpoints; run again to go on.
    Args: ``slots`` runs at a time here (0: one per GPU, else per core); ``cluster`` a file that names a Dask
    cluster instead, see ``dask_executor``. Errors: as ``check``, before the first run.
    """
    by_seed = sorted(jobs, key=lambda job: job.config.seed)  # a batch cut short then holds whole comparisons
    left = {job.folder.run_id: job for job in by_seed if _to_run(job.folder, retry_failed)}
    check(list(left.values()), here=not cluster)
    if not left:
        return plan(jobs)
    runs_dir = next(iter(left.values())).folder.path.parent
    stop = runs_dir / f"STOP-{os.getpid()}"
    stop.unlink(missing_ok=True)
    try:
        with dask_executor(cluster) if cluster else local_slots(slots) as (executor, options):
            futures = {}
            try:
                for run_id, job in left.items():
                    places = {"runs_dir": str(job.folder.path.parent), "data_root": str(resolve(job.config.data_root))}
                    values = {**vars(job.config), **places}
                    futures[executor.submit(execute, values, str(job.folder.path), str(stop), **options)] = run_id
                _follow(futures, left, len(plan(jobs).drop_duplicates("run_id")))
            except KeyboardInterrupt:
                print("\nstopping; run the same command again to go on", file=sys.stderr, flush=True)
                write_text(stop, "")
                for future in futures:
                    future.cancel()
                if cluster:
                    _wait_for_workers(list(left.values()))
    finally:  # the slots of this machine have ended their runs by now
        stop.unlink(missing_ok=True)
    return plan(jobs)


def _wait_for_workers(jobs: list[Job]) -> None:
    """Until no worker is at one of ``jobs``, for 30 seconds at most: the futures do not say. A worker looks for the
    order to stop several times a second, and a run that is starting holds no lock yet."""
    until = time.monotonic() + 30
    time.sleep(5)
    while any(job.folder.state() == "running" for job in jobs) and time.monotonic() < until:
        time.sleep(0.5)


def _to_run(folder: RunFolder, retry_failed: bool) -> bool:
    state = folder.state()
    whole = (folder.path / "notebook.ipynb").is_file()  # its kernel may have died after the last score
    return (state != "done" or not whole) and (state != "failed" or retry_failed)


def write_tables(jobs: list[Job], out: str | Path) -> None:
    """The registry of the jobs' runs, into ``out``; its table ``grids`` says which cell each run belongs to.

    Runs that ``out`` already holds as finished stay, though their folders be gone or on another machine: a run's id
    names its configuration and its data.
    """
    grids = plan(jobs)[["grid", "case", "seed", "run_id", "state"]]
    tables = collect(list(dict.fromkeys(job.folder.path for job in jobs)))
    if (resolve(out) / "runs.parquet").is_file():
        before = read_registry(out)
        done = set(before["runs"].query("state == 'done'")["run_id"]) & set(grids["run_id"])
        kept = done - set(tables["runs"].query("state == 'done'")["run_id"])
        for name, table in tables.items():
            parts = [table[~table["run_id"].isin(kept)], before[name][before[name]["run_id"].isin(kept)]]
            tables[name] = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
        grids.loc[grids["run_id"].isin(kept), "state"] = "done"
    write_registry({**tables, "grids": grids}, out)


def _outcome(future: Future, folder: RunFolder) -> str:
    """Why a run failed, or "". A failure of the cluster itself is written down here: nobody else was left to."""
    if future.cancelled():
        return "cancelled"
    if future.exception() is None:
        return future.result()
    reason = f"{type(future.exception()).__name__}: {future.exception()}"
    with suppress(OSError):
        write_text(folder.failed, reason + "\n")
    return reason


def _follow(futures: dict[Future, str], jobs: dict[str, Job], total: int) -> None:
    """Progress until all are done: a line per run at work, one for the whole with the time that remains."""
    first = {run_id: last_step(job.folder.metrics) for run_id, job in jobs.items()}
    steps, bars, open_futures = dict(first), {}, dict(futures)
    iterations = sum(job.config.iterations - first[run_id] for run_id, job in jobs.items())
    done = total - len(jobs)
    with tqdm(total=iterations, unit="it", smoothing=0, mininterval=1, position=0) as whole:
        while open_futures:
            time.sleep(0.5)
            for run_id in set(open_futures.values()):
                step, config = last_step(jobs[run_id].folder.metrics), jobs[run_id].config
                if step != steps[run_id]:
                    label = jobs[run_id].name
                    bar = bars.get(run_id) or tqdm(total=config.iterations, desc=label, leave=False, mininterval=1)
                    bars[run_id], steps[run_id] = bar, step
                    bar.update(step - bar.n)
            for future in [f for f in open_futures if f.done()]:
                run_id = open_futures.pop(future)
                done += 1
                steps[run_id] = jobs[run_id].config.iterations
                if run_id in bars:
                    bars.pop(run_id).close()
                facts = jobs[run_id].folder.facts()
                score = facts.get("results", {}).get("raw/branch_s")
                error = _outcome(future, jobs[run_id].folder)
                said = f"failed: {error}" if error else f"done in {facts.get('seconds', 0):.0f} s"
                said += "" if score is None else f", Branch-S {100 * score:.1f}"
                tqdm.write(f"[{done}/{total}] {jobs[run_id].name}: {said} ({run_id})")
            whole.set_description(f"{done}/{total} runs")
            whole.n = sum(max(0, steps[run_id] - first[run_id]) for run_id in jobs)  # a run may go back a little
            whole.refresh()
