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
import yaml
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from bidir.config import ConfigError, RunConfig, resolve
from bidir.data import DataError
from bidir.files import write_text
from bidir.model.weights import WeightsError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def study(out: str = "results/study") -> None:
    """The main job: run the quick grid on the generated dataset, draw its figures, write a report."""
    from bidir.execution import make_figures, write_report
    from bidir.sweep import read_grid, run_batch, write_tables

    _stop_cleanly()
    folder = resolve(out)
    jobs = read_grid("notebooks/grids/quick.yaml", runs_dir=str(folder / "runs"))
    table = run_batch(jobs, retry_failed=True)
    lacking = table[table["state"] != "done"]
    if len(lacking):
        sys.exit(f"error: {lacking.iloc[0]['run_id']} is {lacking.iloc[0]['state']}: {lacking.iloc[0]['reason']}")
    newest = max(job.folder.done.stat().st_mtime for job in jobs)
    report = folder / "report.html"
    if not report.is_file() or report.stat().st_mtime < newest:
        write_tables(jobs, folder)
        for name, said in make_figures(folder).items():
            print(f"{name}: {said}", flush=True)
        write_report([folder], report)
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    print(
        f"\nDone. Open {shown}/report.html; the numbers are in {shown}/per_class.csv, the figures in {shown}/figures/"
    )


@app.command()
def train(
    preset: Annotated[str, typer.Option(help="study | quick | photos | voc")] = "study",
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", help="name=value, as in YAML")] = None,
    end_with_parent: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """One run of notebooks/10_train through papermill."""
    from bidir.execution import run_training

    if end_with_parent:  # a run whose batch was killed must not work on beside its successor
        threading.Thread(target=_watch, args=(end_with_parent,), daemon=True).start()
    print(run_training(parse_parameters(parameter or []), preset))


@app.command()
def sweep(
    grid: Path,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, list the runs, start none")] = False,
    status: Annotated[bool, typer.Option("--status", help="list the runs and their state")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="try failed runs again")] = False,
    slots: Annotated[int, typer.Option(help="runs at a time here; 0: one per GPU, else per core")] = 0,
    cluster: Annotated[Path | None, typer.Option(help="YAML of a Dask cluster to run on instead")] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write the registry of these runs to, afterwards")] = None,
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", help="name=value, for all runs")] = None,
) -> None:
    """A batch of runs from a grid file; goes on where an earlier call stopped."""
    from bidir.sweep import check, plan, read_grid, run_batch, write_tables

    _stop_cleanly()
    jobs = read_grid(grid, **parse_parameters(parameter or []))
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
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", help="name=value, for those")] = None,
) -> None:
    """Figures and tables of a registry, by the notebooks 31 to 38, from its numbers alone."""
    from bidir.execution import make_figures

    said = make_figures(results, only, **parse_parameters(parameter or []))
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
def prepare(
    dataset: Annotated[str, typer.Argument(help="voc | coco")],
    source: Annotated[Path, typer.Argument(help="the dataset as published")],
    out: Annotated[Path, typer.Argument(help="folder to make: what data_root then names")],
    sbd: Annotated[Path | None, typer.Option(help="SBD as published: adds the list train_aug")] = None,
    download: Annotated[bool, typer.Option("--download", help="fetch VOC and SBD where they are lacking")] = False,
    any_count: Annotated[bool, typer.Option("--any-count", help="accept other counts than the published")] = False,
) -> None:
    """VOC 2012 or COCO 2014 to the layout that training reads: lists, masks, image labels, manifest."""
    from bidir.data.prepare import prepare_coco, prepare_voc

    if dataset not in ("voc", "coco"):
        raise ConfigError(f"dataset = {dataset!r}: choose voc or coco")
    if dataset == "coco" and (sbd or download):
        raise ConfigError("coco takes neither --sbd nor --download; see cocodataset.org for its archives")
    done = (
        prepare_voc(source, out, sbd, download, any_count) if dataset == "voc" else prepare_coco(source, out, any_count)
    )
    print(f"{done}: see manifest.json; train with -p dataset=voc -p data_root={out}")


@app.command("check-data")
def check_data(
    preset: str = "study",
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", help="name=value")] = None,
) -> None:
    """Look at every file of a dataset: class balance, sizes, and all problems at once."""
    from bidir.data import open_split
    from bidir.data.split import describe

    config = RunConfig.from_parameters(parse_parameters(parameter or []), preset)
    for part in ("train", "val"):
        print(f"{part}: {describe(open_split(config, part))}\n")


@app.command()
def predict(
    checkpoint: Path,
    images: Path,
    out: Path,
    labels: Annotated[str, typer.Option(help="classes in every image, comma-separated; default: predicted")] = "",
    map: str = "branch_s",
    protocol: str = "raw",
) -> None:
    """Masks and overlays for an image or a folder of images."""
    from bidir.prediction import image_paths
    from bidir.prediction import predict as run

    given = {path.stem: labels.split(",") for path in image_paths(images)} if labels else None
    table = run(checkpoint, images, out, given, map, protocol)
    print(table.to_string(index=False))


@app.command("pseudo-masks")
def pseudo_masks(checkpoint: Path, part: str, out: Path, map: str = "seed", protocol: str = "ms") -> None:
    """Pseudo-masks of a split (train | val) as VOC palette PNG, for a second-stage model."""
    from bidir.prediction import export_pseudo_masks

    print(f"{len(export_pseudo_masks(checkpoint, part, out, map, protocol))} masks in {out}")


@app.command("import")
def import_(
    weights: Annotated[Path, typer.Argument(help="a state dict of the reference implementation")],
    out: Annotated[Path, typer.Argument(help="checkpoint.pt to write")],
    classes: Annotated[Path | None, typer.Option(help="names, background first; default: VOC's twenty")] = None,
    preset: str = "voc",
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", help="name=value")] = None,
) -> None:
    """A checkpoint of the reference implementation as one of ours, every tensor accounted for."""
    from bidir.data.voc import known_classes
    from bidir.exchange import import_reference

    config = RunConfig.from_parameters(parse_parameters(parameter or []), preset)
    print(import_reference(weights, out, config, tuple(known_classes(classes))))


@app.command()
def export(
    checkpoint: Path,
    out: Path,
    push_to: Annotated[str, typer.Option(help="user/name on the hub, to upload it to")] = "",
) -> None:
    """A model as safetensors with its configuration and a model card; load_network(OUT) loads it back."""
    from bidir.exchange import export_model

    print(export_model(checkpoint, out, push_to))


@app.command()
def benchmark(
    out: Annotated[Path | None, typer.Option(help="CSV to write, as results/scenes/cost.csv")] = None,
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", help="name=value")] = None,
) -> None:
    """Time and memory of a training step, part by part, on this machine."""
    from bidir.benchmark import cost

    table = cost(RunConfig.from_parameters(parse_parameters(parameter or [])))
    print(table.drop(columns="what").to_string(index=False), table["what"][0], sep="\n")
    if out:
        write_text(resolve(out), table.to_csv(index=False))


def parse_parameters(pairs: list[str]) -> dict:
    """``name=value`` strings to values, read as YAML."""
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise ConfigError(f"-p {wrong[0]}: write it as name=value")
    return {name: yaml.safe_load(value) for name, value in (pair.split("=", 1) for pair in pairs)}


def _stop_cleanly() -> None:
    """Take the signal by which queueing systems end a job for Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


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
