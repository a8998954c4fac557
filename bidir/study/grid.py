"""A grid file: which runs a batch has, checked as a whole before the first of them."""

import re
from collections import Counter
from dataclasses import dataclass, fields
from itertools import product
from math import prod
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from tqdm import tqdm

from bidir.checked import at, settings, shown
from bidir.config import ConfigError, Data, RunConfig, Scenes, resolve
from bidir.data.open import dataset_manifest, open_split
from bidir.method.network import DualBranchNetwork
from bidir.run.folder import RunFolder
from bidir.run.preflight import check_config, check_files, check_machine, check_processes
from bidir.study.parameters import check_place, from_yaml

MOST = 10_000  # runs of a grid

data_of = attrgetter("data_root", *(field.name for group in (Data, Scenes) for field in fields(group)))


@settings
class Cluster:
    """A Dask cluster to run on: a scheduler that is there, or one whose workers are jobs of a queueing system."""

    address: str = at("", "of a scheduler")
    cluster: Literal["", "slurm", "pbs"] = at("", "which system")
    jobs: int = at(1, "how many", ge=1, le=MOST)
    options: dict[str, Any] = at({}, "of dask-jobqueue's cluster class")
    threads: int = at(0, "that a run may use; 0: as it finds them", ge=0, le=1024)
    security: dict[str, Any] = at({}, "of Dask's Security: TLS")
    patience: int = at(0, "seconds until a first worker must be there; 0: 300, for queued jobs a day", ge=0, le=MOST)

    def __post_init__(self) -> None:
        if bool(self.address) == bool(self.cluster):
            raise ConfigError(f"{vars(self)}: give either address (a scheduler) or cluster (slurm | pbs)")
        if self.address and not re.fullmatch(r"(\w+://)?([^/\s:]+|\[[\da-fA-F:.%]+\]):\d{1,5}/?", self.address):
            raise ConfigError(f"address = {self.address!r}: needs a host and a port, as tcp://10.0.0.1:8786")


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
    grid; ``preset`` is the base. ``overrides`` apply to all runs. Errors: ``ConfigError``, ``DataError``."""
    path, cells, manifests = resolve(path), [], {}
    content = read_yaml(path, {"preset", "fixed", "seeds", "grids"})
    if not isinstance(content.get("grids"), dict) or not content["grids"]:
        raise ConfigError(f"{path.name}: needs grids, a dictionary from name to axes, cases and seeds")
    for name, grid in content["grids"].items():
        where, first = f"{path.name}, grid {name!r}", len(cells)
        fixed, seeds, axes, cases = _parts(content, grid, overrides, where)
        for case, values, seed in product(cases, product(*axes.values()), seeds):
            cell = {**case, **dict(zip(axes, values, strict=True))}
            try:
                config = RunConfig.from_parameters({**fixed, **cell, "seed": seed}, content.get("preset", "study"))
                check_config(config)
                check_places(config)
            except ConfigError as error:
                raise ConfigError(f"{where}, {shown(cell)}: {error}") from error
            cells.append((name, cell, config))
        (_, twice), count = Counter((c.data_root, c.run_id("")) for _, _, c in cells[first:]).most_common(1)[0]
        if count > 1:
            raise ConfigError(f"{where}: two of its cells or seeds are one run, {twice}; it would count twice")
    for data, config in {data_of(config): config for _, _, config in cells}.items():
        manifests[data] = dataset_manifest(open_split(config, "train"), open_split(config, "val"))
    return [Job(*cell, RunFolder.of(cell[2], manifests[data_of(cell[2])])) for cell in cells]


def _parts(content: dict, grid: Any, overrides: dict[str, Any], where: str) -> tuple[dict, list, dict, list]:
    """A grid's fixed parameters, seeds, axes and cases. Errors: ``ConfigError``."""
    require_keys(grid, {"fixed", "seeds", "axes", "cases"}, where)
    seeds, axes, cases = grid.get("seeds", content.get("seeds", [0])), grid.get("axes", {}), grid.get("cases", [{}])
    parts = [content.get("fixed", {}), grid.get("fixed", {}), axes, *(cases if isinstance(cases, list) else [cases])]
    if wrong := [part for part in parts if not isinstance(part, dict)]:
        raise ConfigError(f"{where}: {shown(wrong[0])} needs to be a dictionary from parameter to value")
    lists = {**axes, "seeds": seeds, "cases": cases}
    if wrong := [key for key, values in lists.items() if not isinstance(values, list) or not values]:
        raise ConfigError(f"{where}: {wrong[0]} = {shown(lists[wrong[0]])} needs to be a list that is not empty")
    if (count := prod(map(len, [seeds, cases, *axes.values()]))) > MOST:
        raise ConfigError(f"{where}: {count} runs are too many; at most {MOST}, in several files")
    if any("seed" in part for part in [*parts, overrides]):
        raise ConfigError(f"{where}: seed is set by the list seeds")
    if set_here := sorted(set(axes).union(*cases) & overrides.keys()):
        raise ConfigError(f"{where}: {set_here[0]} varies there and cannot be given for all runs")
    return {**parts[0], **parts[1], **overrides}, seeds, axes, cases


def plan(jobs: list[Job]) -> pd.DataFrame:
    """One row per cell and seed: grid, case, seed, run_id, state, reason of a failure."""
    seen = {run_id: folder.look() for run_id, folder in {job.folder.run_id: job.folder for job in jobs}.items()}
    rows = [(job.grid, job.cell, job.config.seed, job.folder.run_id, *seen[job.folder.run_id]) for job in jobs]
    return pd.DataFrame(rows, columns=["grid", "case", "seed", "run_id", "state", "reason"])


def progress_table(jobs: list[Job]) -> pd.DataFrame:
    """One row per run as a person watches it, those at work first; read from the run folders, by any process."""
    rows, order = [], ["running", "failed", "interrupted", "waiting", "done"]
    for job in {job.folder.run_id: job for job in jobs}.values():
        folder, iterations = job.folder, job.config.iterations
        (state, reason), step, seconds, clock = folder.look(), folder.last_step(), folder.facts().get("seconds", 0), ""
        if state == "running" and step:  # run.json has the seconds up to when it was last written
            seconds += folder.metrics.stat().st_mtime - folder.provenance.stat().st_mtime
            left = tqdm.format_interval(seconds * (iterations - step) / step)
            clock = f"{left} left" if step < iterations else "scoring"
        clock = f"took {tqdm.format_interval(seconds)}" if state == "done" else clock
        rows.append({"run": job.name, "state": state, "iteration": f"{step} of {iterations}", "time": clock,
                     "last": reason or last_value(folder), "folder": folder.run_id})  # fmt: skip
    return pd.DataFrame(sorted(rows, key=lambda row: order.index(row["state"]))).set_index("run")


def last_value(folder: RunFolder) -> str:
    """Branch-S's score of a finished run, else the last loss or score that was logged; "" if there is none."""
    row = folder.facts().get("results") or folder.last_row()
    if "raw/branch_s" in row:
        return f"Branch-S {100 * row['raw/branch_s']:.1f} %"
    return f"loss {row['loss']:.3f}" if "loss" in row else ""


def check_places(config: RunConfig) -> None:
    """``ConfigError`` if a run's folder, or generated scenes, could not be written where the configuration says."""
    check_place(resolve(config.runs_dir), "runs_dir")
    if config.dataset == "scenes":
        check_place(resolve(config.data_root), "data_root")


def check_settings(config: RunConfig) -> None:
    """What can be looked at before data is opened, weights among it. Errors: ``ConfigError``, ``WeightsError``."""
    check_config(config)
    check_places(config)
    check_machine(config)
    check_processes(config, config.processes)
    DualBranchNetwork(config, 2)


def check(jobs: list[Job], here: bool = True) -> None:
    """Find before the first run what would stop one: files that cannot be read, crops too large, lacking weights; if
    the runs take place ``here``, hardware and packages. Errors: ``ConfigError``, ``DataError``, ``WeightsError``."""
    data, models = {}, {}
    for config in (job.config for job in jobs):
        opens = (config.supervision == "full", config.eval_size, config.score_train)  # which masks, at which size
        data.setdefault((data_of(config), config.crop_size, config.scale_max, *opens), config)
        models.setdefault((config.encoder, config.encoder_weights), config)
    for job in jobs if here else ():
        check_machine(job.config)
    for config in models.values():
        DualBranchNetwork(config, 2)
    for config in data.values():
        check_files(open_split(config, "train"), open_split(config, "val"), config, progress=False)


def read_yaml(path: Path, keys: set[str]) -> dict[str, Any]:
    """A YAML file that is a dictionary of ``keys``. Errors: ``ConfigError`` that names the file."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    content = from_yaml(path.read_bytes(), path.name)
    require_keys(content, keys, path.name)
    return content


def read_cluster(path: str | Path) -> Cluster:
    """The file that names a cluster. Errors: ``ConfigError``."""
    return Cluster(**read_yaml(resolve(path), {field.name for field in fields(Cluster)}))


def require_keys(content: Any, keys: set[str], where: str) -> None:
    """``ConfigError`` if ``content`` of a YAML file is no dictionary, or has a key that is none of ``keys``."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: needs to be a dictionary with {', '.join(sorted(keys))}")
    if unknown := [key for key in content if key not in keys]:
        raise ConfigError(f"{where}: unknown key {shown(unknown[0])}; there are {', '.join(sorted(keys))}")
