"""Batches of runs: every run of a grid that is not finished, and the registry of all."""

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import pandas as pd
from IPython.display import display
from tqdm import tqdm

from bidir.atomic import write_text
from bidir.config import ConfigError
from bidir.progress import bar, in_notebook
from bidir.run.folder import BUSY, RunFolder
from bidir.study.grid import Job, check, last_value, plan, progress_table, read_grid
from bidir.study.notebooks import make_figures, notebooks_folder, placed, write_report
from bidir.study.registry import collect, finished_runs, read_registry, write_registry
from bidir.study.workers import STOPPED, dask_cluster, local_slots, slot_places


def run_batch(
    jobs: list[Job], slots: int = 0, cluster: str | Path | None = None, retry_failed: bool = False
) -> pd.DataFrame:
    """Execute every run that is not finished, each in a process of its own; returns ``plan`` as it is then.
    Finished runs are not repeated, interrupted ones go on, failed ones stay so unless ``retry_failed``. A run that
    fails leaves its reason and ends no other. Ctrl-C stops after the current checkpoints; run again to go on.
    Args: ``slots`` runs at a time here (0: one per GPU, else per core); ``cluster`` a file that names a Dask
    cluster instead, see ``dask_cluster``. Errors: as ``check``, before the first run."""
    by_seed = sorted(jobs, key=lambda job: job.config.seed)  # a batch cut short then holds whole comparisons
    left = {job.folder.run_id: job for job in by_seed if _to_run(job.folder, retry_failed)}
    if not cluster:
        slot_places(slots)
    check(list(left.values()), here=not cluster)
    if not left:
        return plan(jobs)
    stop = next(iter(left.values())).folder.path.parent / f"STOP-{os.uname().nodename}-{os.getpid()}"
    stop.unlink(missing_ok=True)
    try:
        with dask_cluster(cluster) if cluster else local_slots(slots) as (executor, execute):
            futures = {}

            def submit(run_id: str) -> None:
                values, path = placed(left[run_id].config), str(left[run_id].folder.path)
                futures[executor.submit(*execute, values, path, str(stop))] = run_id

            try:
                for run_id in left:
                    submit(run_id)
                _follow(futures, left, len(plan(jobs).drop_duplicates("run_id")), submit)
            except KeyboardInterrupt:
                how = "cell" if in_notebook() else "command"
                print(f"\nstopping; run the same {how} again to go on", file=None if how == "cell" else sys.stderr)
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
    """Whether there is work: a run to finish, or a finished one whose notebook is to be drawn."""
    state = folder.state()
    return not folder.notebook.is_file() if state == "done" else state != "failed" or retry_failed


def write_tables(jobs: list[Job], out: str | Path) -> None:
    """The registry of the jobs' runs, into ``out``; its table ``grids`` says which cell each run belongs to.
    Finished runs that ``out`` holds stay, though their folders be gone or elsewhere, for an id names configuration and
    data; one whose scores change, trained again, is named. Errors: ``ConfigError`` if some are none of the jobs'."""
    grids = plan(jobs)[["grid", "case", "seed", "run_id", "state"]]
    tables = collect(list(dict.fromkeys(job.folder.path for job in jobs)))
    done, lost = finished_runs(out)
    if strange := sorted(done - set(grids["run_id"])):
        held = f"{len(strange)} finished runs that this grid file does not name, {strange[0]} for one"
        raise ConfigError(f"{out} holds {held}; choose another --out")
    kept = done - set(tables["runs"].query("state == 'done'")["run_id"])
    if kept and lost:
        held = f"it holds {len(kept)} finished runs whose folders are gone or damaged, {min(kept)} for one"
        raise ConfigError(f"{out}: {lost} is missing or damaged, and {held}; choose another --out")
    before = tables if lost else read_registry(out)
    new, old = (part["per_class"].groupby("run_id")["iou"].sum() for part in (tables, before))
    if len(again := new.index[(new - old.reindex(new.index)).abs() > 1e-9]):
        held = f"{len(again)} finished runs have other scores than it held, {again[0]} for one (trained again?)"
        print(f"{out}: {held}; the new ones replace them", file=sys.stderr)
    for name, table in tables.items():
        parts = [table[~table["run_id"].isin(kept)], before[name][before[name]["run_id"].isin(kept)]]
        tables[name] = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    grids.loc[grids["run_id"].isin(kept), "state"] = "done"
    write_registry({**tables, "grids": grids}, out)


def _outcome(future: Future, folder: RunFolder) -> str:
    """Why a run failed, or "". That its worker died is written down here: nobody else was left to."""
    if future.cancelled():
        return STOPPED
    if future.exception() is None:
        return future.result()
    reason = f"{type(future.exception()).__name__}: {future.exception()} (killed, or out of memory?)"
    if not folder.finished():
        with suppress(OSError), folder.lock(1, "OWNER"):  # unless another has taken it over
            write_text(folder.failed, reason + "\n")
    return reason


def _follow(futures: dict[Future, str], jobs: dict[str, Job], total: int, submit: Callable[[str], None]) -> None:
    """Progress until all are done: one bar with the time that remains; in a notebook, below it, a row per run.
    ``submit`` puts a run that another process is at behind all others."""
    first = {run_id: job.folder.last_step() for run_id, job in jobs.items()}
    left = {run_id: job.config.iterations - first[run_id] for run_id, job in jobs.items()}
    steps = dict.fromkeys(jobs, 0)
    with bar((), f"{total - len(jobs)}/{total} runs", sum(left.values()), unit="it", smoothing=0) as whole:
        shown = display(progress_table([*jobs.values()]), display_id=True) if in_notebook() else None
        while futures:
            time.sleep(1)
            for future in [f for f in futures if f.done()]:
                run_id = futures.pop(future)
                folder, error = jobs[run_id].folder, _outcome(future, jobs[run_id].folder)
                if error == BUSY and _to_run(folder, False):
                    submit(run_id)
                    continue
                error = folder.look()[1] if error == BUSY else error
                steps[run_id], count = left[run_id], f"{total - len(futures)}/{total}"
                whole.set_description(f"{count} runs", refresh=False)
                if not shown:
                    outcome = f"failed: {error}" if error else f"done, {last_value(folder)}"
                    tqdm.write(f"[{count}] {jobs[run_id].name}: {outcome} ({run_id})")
            for run_id in futures.values():  # a run may go back a little
                steps[run_id] = max(0, jobs[run_id].folder.last_step() - first[run_id])
            whole.update(sum(steps.values()) - whole.n)
            if shown:
                shown.update(progress_table([*jobs.values()]))


def run_study(folder: Path) -> Path:
    """The grid ``first_look``, its registry, figures and report, all in ``folder``; what is finished is not repeated.
    Returns the report. Errors: ``ChildProcessError`` naming a run that failed."""
    runs, report = folder / "runs", folder / "report.html"
    jobs = read_grid(notebooks_folder() / "grids/first_look.yaml", runs_dir=str(runs))
    for run in run_batch(jobs, retry_failed=True).query("state != 'done'").itertuples():
        raise ChildProcessError(f"{run.run_id} is {run.state}: {run.reason}")
    if not report.is_file() or report.stat().st_mtime < max(job.folder.done.stat().st_mtime for job in jobs):
        write_tables(jobs, folder)
        for name, outcome in make_figures(folder, "30", runs_dir=str(runs)).items():
            print(f"{name}: {outcome}", flush=True)
        write_report([folder], report)
    print((folder / "tables" / "table0_first_look.md").read_text())
    return report.relative_to(Path.cwd()) if report.is_relative_to(Path.cwd()) else report
