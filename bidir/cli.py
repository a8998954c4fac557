"""The command line: one command per thing to do, each a few lines over the package."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import typer
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from bidir.config import ConfigError, RunConfig, resolve
from bidir.data import DataError
from bidir.files import write_text
from bidir.model.weights import WeightsError
from bidir.tools import Parameters, parse_parameters, tools

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(tools)


@app.command()
def study(out: str = "results/study") -> None:
    """The main job: run the quick grid on the generated dataset, draw its figures, write a report."""
    from bidir.execution import run_study

    _stop_cleanly()
    print(f"\nDone. Open {run_study(resolve(out))}; its numbers are beside it, the figures in figures/")


@app.command()
def train(
    preset: Annotated[str, typer.Option(help="study | quick | photos | voc | coco")] = "study",
    parameter: Parameters = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check, measure a step, say what it would take")] = False,
    end_with_parent: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """One run of notebooks/10_train through papermill; under torchrun, without the notebook."""
    from bidir.execution import run_training

    if dry_run or "RANK" in os.environ:
        from bidir.benchmark import forecast
        from bidir.training import fit

        config = RunConfig.from_parameters(parse_parameters(parameter), preset)
        print(forecast(config) if dry_run else fit(config))
        return
    if end_with_parent:  # a run whose batch was killed must not work on beside its successor
        threading.Thread(target=_watch, args=(end_with_parent,), daemon=True).start()
    print(run_training(parse_parameters(parameter), preset))


@app.command()
def sweep(
    grid: Path,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, list the runs, start none")] = False,
    status: Annotated[bool, typer.Option("--status", help="list the runs and their state")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="try failed runs again")] = False,
    slots: Annotated[int, typer.Option(help="runs at a time here; 0: one per GPU, else per core")] = 0,
    cluster: Annotated[Path | None, typer.Option(help="YAML of a Dask cluster to run on instead")] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write the registry of these runs to, afterwards")] = None,
    parameter: Parameters = None,
) -> None:
    """A batch of runs from a grid file; goes on where an earlier call stopped."""
    from bidir.sweep import check, plan, read_grid, run_batch, write_tables

    _stop_cleanly()
    jobs = read_grid(grid, **parse_parameters(parameter))
    if dry_run:
        check(jobs)
    table = plan(jobs) if dry_run or status else run_batch(jobs, slots, cluster, retry_failed)
    if out and not dry_run:
        write_tables(jobs, out)
    print(table.drop(columns="reason").to_string(index=False))
    runs = table.drop_duplicates("run_id")
    for row in runs[runs["state"] == "failed"].itertuples():
        print(f"failed: {row.run_id}: {row.reason}")
    print(", ".join(f"{count} {state}" for state, count in runs["state"].value_counts().items()))
    if not (dry_run or status) and not (runs["state"] == "done").all():
        sys.exit(1)


@app.command()
def figures(
    results: Path,
    only: Annotated[str, typer.Option(help="start of a notebook's name, as 32")] = "",
    parameter: Parameters = None,
) -> None:
    """Figures and tables of a registry, by the notebooks 31 to 38, from its numbers alone."""
    from bidir.execution import make_figures

    said = make_figures(results, only, **parse_parameters(parameter))
    print("\n".join(f"{name}: {word}" for name, word in said.items()))
    if any(word.startswith("failed") for word in said.values()):
        sys.exit(1)


@app.command()
def report(results: list[Path], out: Path = Path("results/report.html")) -> None:
    """One HTML file with the figures and tables of one or more registries."""
    from bidir.execution import write_report

    write_report(results, resolve(out))
    print(out)


@app.command()
def benchmark(
    out: Annotated[Path | None, typer.Option(help="CSV to write, as results/scenes/cost.csv")] = None,
    parameter: Parameters = None,
) -> None:
    """Time and memory of a training step, part by part, on this machine."""
    from bidir.benchmark import cost

    table = cost(RunConfig.from_parameters(parse_parameters(parameter)))
    print(table.drop(columns="what").to_string(index=False), table["what"][0], sep="\n")
    if out:
        write_text(resolve(out), table.to_csv(index=False))


def _stop_cleanly() -> None:
    """Take the signal by which queueing systems end a job for Ctrl-C, and heed Ctrl-C also behind a shell's ``&``."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


def _watch(parent: int) -> None:
    """End this process as soon as ``parent`` is no longer its parent."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Run a command; a mistake in the input is one message, not a traceback."""
    try:
        app()
    except (ConfigError, DataError, WeightsError, FloatingPointError, OSError) as error:
        sys.exit(f"error: {error}")
    except PapermillExecutionError as error:
        sys.exit(f"error in a notebook, {error.ename}: {error.evalue}")
    except DeadKernelError:
        sys.exit("error: the notebook's kernel died (killed, or out of memory)")


if __name__ == "__main__":
    main()
