"""The command line: one command per thing to do, each a few lines over what ``bidir`` offers."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

import bidir
from bidir.atomic import write_text
from bidir.config import ConfigError, DataError, RunConfig, WeightsError, resolve
from bidir.study.parameters import check_place, parse_parameters


def _folder(out: Path | None) -> Path | None:
    """What can be written to is found out before any work; some commands take a path from the project's root."""
    for place in {out, resolve(out)} if out else ():
        check_place(place, "out")
    return out


def _file(out: Path | None) -> Path | None:
    if out and resolve(out).is_dir():
        raise ConfigError(f"out = {str(out)!r} is a folder; give the name of a file")
    _folder(out and out.parent)
    return out


app = Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
Pairs = Annotated[list[str] | None, Option("--parameter", "-p", help="name=value, a list as name=a,b; repeatable")]
Folder = Annotated[Path, Argument(callback=_folder)]
File = Annotated[Path, Argument(callback=_file)]
Preset = Annotated[str, Option(help="study | quick | teach | photos | voc | coco")]
Measured = Annotated[bool, Option("--dry-run", help="check, measure a step, say what it would take")]
Only = Annotated[str, Option(help="start of a notebook's name, as 32")]
Csv = Annotated[Path | None, Option(help="CSV to write, as results/scenes/cost.csv", callback=_file)]
Sbd = Annotated[Path | None, Option(help="SBD as published: adds the list train_aug")]
Download = Annotated[bool, Option("--download", help="fetch VOC and SBD where they are lacking")]
AnyCount = Annotated[bool, Option("--any-count", help="accept other counts than the published")]
Skip = Annotated[bool, Option("--skip-unusable", help="leave out annotations of COCO that cannot be drawn")]
Labels = Annotated[str, Option(help="classes in every image, comma-separated; default: predicted")]
Map = Annotated[str, Option("--map", help="cam | seed | y_c | y_s | branch_c | branch_s")]
Tables = Annotated[Path | None, Option(help="folder for per_class.csv and per_image.csv", callback=_folder)]
Protocols = Annotated[list[str] | None, Option(help="raw | ms | crf; default: raw and ms")]
List = Annotated[str, Option("--list", help="list in ImageSets/Segmentation")]
Classes = Annotated[Path | None, Option(help="names, background first; default: VOC's twenty")]
Hub = Annotated[str, Option(help="user/name on the hub to upload it to")]


@app.command()
def study(out: Annotated[Path, Option(callback=_folder)] = Path("results/study")) -> None:
    """The main job: run a first look at the method on the generated dataset, draw its figures, write a report."""
    _stop_cleanly()
    print(f"\nDone. Open {bidir.run_study(resolve(out))}; its numbers are beside it, the figures in figures/")


@app.command()
def train(preset: Preset = "study", parameter: Pairs = None, dry_run: Measured = False) -> None:
    """One run of notebooks/10_train through papermill; under torchrun, without the notebook."""
    parameters = parse_parameters(parameter)
    config = RunConfig.from_parameters(parameters, preset)
    bidir.check_settings(config)
    if dry_run or "RANK" in os.environ:
        print(bidir.forecast(config) if dry_run else bidir.fit(config))
    else:
        print(bidir.run_training(parameters, preset))


@app.command()
def sweep(
    grid: Path,
    dry_run: Annotated[bool, Option("--dry-run", help="check everything, list the runs, start none")] = False,
    status: Annotated[bool, Option("--status", help="list the runs and their state")] = False,
    retry_failed: Annotated[bool, Option("--retry-failed", help="try failed runs again")] = False,
    slots: Annotated[int, Option(min=0, help="runs at a time here; 0: one per GPU, else per core")] = 0,
    cluster: Annotated[Path | None, Option(help="YAML of a Dask cluster to run on instead")] = None,
    out: Annotated[Path | None, Option(help="folder for the registry of these runs", callback=_folder)] = None,
    parameter: Pairs = None,
) -> None:
    """A batch of runs from a grid file; goes on where an earlier call stopped."""
    _stop_cleanly()
    if cluster:
        bidir.read_cluster(cluster)
    bidir.notebooks_folder()
    jobs = bidir.read_grid(grid, **parse_parameters(parameter))
    if dry_run:
        bidir.check(jobs)
    table = bidir.plan(jobs) if dry_run or status else bidir.run_batch(jobs, slots, cluster, retry_failed)
    if out and not dry_run:
        bidir.write_tables(jobs, out)
    print(bidir.progress_table(jobs).to_string(max_colwidth=60))
    runs = table.drop_duplicates("run_id")
    for row in runs[runs["reason"] != ""].itertuples():
        print(f"{row.state}: {row.run_id}: {row.reason}")
    print(", ".join(f"{count} {state}" for state, count in runs["state"].value_counts().items()))
    sys.exit(not (dry_run or status or (runs["state"] == "done").all()))


@app.command()
def figures(results: Path, only: Only = "", parameter: Pairs = None) -> None:
    """Figures and tables of a registry, by its notebooks, from its numbers alone."""
    check_place(resolve(results), "results")
    outcomes = bidir.make_figures(results, only, **parse_parameters(parameter, known=()))
    print("\n".join(f"{name}: {outcome}" for name, outcome in outcomes.items()))
    sys.exit(any(outcome.startswith("failed") for outcome in outcomes.values()))


@app.command()
def report(results: list[Path], out: Annotated[Path, Option(callback=_file)] = Path("results/report.html")) -> None:
    """One HTML file with the figures and tables of one or more registries."""
    for path in results:
        bidir.read_registry(path)
    bidir.write_report(results, resolve(out))
    print(out)


@app.command()
def claims() -> None:
    """Answer results/claims.yaml anew, in itself, README and docs/results.md; name figures out of date."""
    for name in bidir.write_claims():
        print(f"{name}: drawn of other runs than the registry holds; draw it anew")


@app.command()
def benchmark(out: Csv = None, parameter: Pairs = None) -> None:
    """Time and memory of a training step, part by part, on this machine."""
    table = bidir.cost(RunConfig.from_parameters(parse_parameters(parameter)))
    print(table.drop(columns="what").to_string(index=False), table["what"][0], sep="\n")
    if out:
        write_text(resolve(out), table.to_csv(index=False))


@app.command()
def prepare(
    dataset: str, source: Path, out: Folder, sbd: Sbd = None, download: Download = False, any_count: AnyCount = False,
    skip_unusable: Skip = False,
) -> None:  # fmt: skip
    """VOC 2012 or COCO (voc | coco) as published, to the layout that training reads, in a folder OUT."""
    if dataset == "voc":
        folder = bidir.prepare_voc(source, out, sbd, download, any_count)
    elif dataset != "coco":
        raise ConfigError(f"dataset = {dataset!r}: choose voc or coco")
    elif sbd or download:
        raise ConfigError("coco takes neither --sbd nor --download; see cocodataset.org for its archives")
    else:
        folder = bidir.prepare_coco(source, out, any_count, skip_unusable)
    lists = " -p train_list=train" if dataset == "voc" and not sbd else ""
    print(f"{folder}: see manifest.json; train with bidir train --preset {dataset} -p data_root={out}{lists}")


@app.command("check-data")
def check_data(preset: Preset = "study", parameter: Pairs = None) -> None:
    """Look at every file of a dataset: class balance, sizes, and all problems at once."""
    bidir.describe_dataset(RunConfig.from_parameters(parse_parameters(parameter), preset))


@app.command()
def predict(
    checkpoint: Path, images: Path, out: Folder, labels: Labels = "", map_name: Map = "branch_s", protocol: str = "raw"
) -> None:
    """Masks and overlays for an image or a folder of images."""
    names, paths = [name.strip() for name in labels.split(",")], bidir.image_paths(images)
    given = {path.stem: names for path in paths} if labels else None
    print(bidir.predict(checkpoint, paths, out, given, map_name, protocol).to_string(index=False))


@app.command("pseudo-masks")
def pseudo_masks(
    checkpoint: Path, part: str, out: Folder, map_name: Map = "seed", protocol: str = "ms", parameter: Pairs = None
) -> None:
    """Pseudo-masks of a split (train | val) as VOC palette PNG, for a second-stage model."""
    table = bidir.export_pseudo_masks(checkpoint, part, out, map_name, protocol, **parse_parameters(parameter))
    print(f"{len(table)} masks in {out}")


@app.command()
def evaluate(
    checkpoint: Path, out: Tables = None, protocol: Protocols = None, part: str = "val", parameter: Pairs = None
) -> None:
    """Scores of every map of a checkpoint; under torchrun the processes share the images."""
    scores = bidir.score(checkpoint, protocol or ("raw", "ms"), part, **parse_parameters(parameter))
    if bidir.rank() == 0:
        mean = scores.per_class[scores.per_class["class"] == "mean"].drop(columns="class")
        print(mean.round(4).to_string(index=False))
        if out:
            scores.write(out)


@app.command("voc-archive")
def voc_archive(
    checkpoint: Path, out: File, names: List = "test", protocol: str = "crf", parameter: Pairs = None
) -> None:
    """Branch-S's masks of a list as the archive (.tgz) that VOC's test server takes (reported unreachable in 2026)."""
    print(bidir.export_voc_archive(checkpoint, names, out, protocol, **parse_parameters(parameter)))


@app.command("import")
def import_(weights: Path, out: File, classes: Classes = None, preset: Preset = "voc", parameter: Pairs = None) -> None:
    """A state dict of the reference implementation as a checkpoint.pt of ours, every tensor accounted for."""
    if classes and not classes.is_file():
        raise ConfigError(f"--classes {classes}: no such file")
    config = RunConfig.from_parameters(parse_parameters(parameter), preset)
    print(bidir.import_reference(weights, out, config, tuple(bidir.known_classes(classes))))


@app.command()
def export(checkpoint: Path, out: Folder, push_to: Hub = "") -> None:
    """A model as safetensors with its configuration and a model card; load_network(OUT) loads it back."""
    print(bidir.export_model(checkpoint, out, push_to))


def _stop_cleanly() -> None:
    """Take the signal by which queueing systems end a job for Ctrl-C, and heed Ctrl-C also behind a shell's ``&``."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


def main() -> None:
    """Run a command; a mistake in the input is one message, not a traceback."""
    try:
        app()
    except (ConfigError, DataError, WeightsError, FloatingPointError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
