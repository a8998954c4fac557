"""Commands around the study: preparing data, and what trained models are used for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from bidir.config import ConfigError, RunConfig

Parameters = Annotated[list[str] | None, typer.Option("--parameter", "-p", help="name=value, as in YAML; repeatable")]
tools = typer.Typer()


@tools.command()
def prepare(
    dataset: Annotated[str, typer.Argument(help="voc | coco")],
    source: Annotated[Path, typer.Argument(help="the dataset as published")],
    out: Annotated[Path, typer.Argument(help="folder to make: what data_root then names")],
    sbd: Annotated[Path | None, typer.Option(help="SBD as published: adds the list train_aug")] = None,
    download: Annotated[bool, typer.Option("--download", help="fetch VOC and SBD where they are lacking")] = False,
    any_count: Annotated[bool, typer.Option("--any-count", help="accept other counts than the published")] = False,
) -> None:
    """VOC 2012 or COCO 2014 to the layout that training reads: lists, masks, image labels, manifest."""
    from bidir.data.coco import prepare_coco
    from bidir.data.prepare import prepare_voc

    if dataset not in ("voc", "coco"):
        raise ConfigError(f"dataset = {dataset!r}: choose voc or coco")
    if dataset == "coco" and (sbd or download):
        raise ConfigError("coco takes neither --sbd nor --download; see cocodataset.org for its archives")
    done = (
        prepare_voc(source, out, sbd, download, any_count) if dataset == "voc" else prepare_coco(source, out, any_count)
    )
    lists = " -p train_list=train" if dataset == "voc" and not sbd else ""
    print(f"{done}: see manifest.json; train with bidir train --preset {dataset} -p data_root={out}{lists}")


@tools.command("check-data")
def check_data(
    preset: str = "study",
    parameter: Parameters = None,
) -> None:
    """Look at every file of a dataset: class balance, sizes, and all problems at once."""
    from bidir.data import DataError, open_split
    from bidir.data.split import describe

    config, problems = RunConfig.from_parameters(parse_parameters(parameter), preset), []
    for part in ("train", "val"):
        try:
            print(f"{part}: {describe(open_split(config, part))}\n")
        except DataError as error:
            problems.append(f"{part}: {error}")
    if problems:
        raise DataError("\n".join(problems))


@tools.command()
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

    given = (
        {path.stem: [name.strip() for name in labels.split(",")] for path in image_paths(images)} if labels else None
    )
    table = run(checkpoint, images, out, given, map, protocol)
    print(table.to_string(index=False))


@tools.command("pseudo-masks")
def pseudo_masks(
    checkpoint: Path,
    part: str,
    out: Path,
    map: str = "seed",
    protocol: str = "ms",
    parameter: Parameters = None,
) -> None:
    """Pseudo-masks of a split (train | val) as VOC palette PNG, for a second-stage model."""
    from bidir.prediction import export_pseudo_masks

    where = parse_parameters(parameter)
    print(f"{len(export_pseudo_masks(checkpoint, part, out, map, protocol, **where))} masks in {out}")


@tools.command()
def evaluate(
    checkpoint: Path,
    out: Annotated[Path | None, typer.Option(help="folder for per_class.csv and per_image.csv")] = None,
    protocol: Annotated[list[str] | None, typer.Option(help="raw | ms | crf; default: raw and ms")] = None,
    part: str = "val",
    parameter: Parameters = None,
) -> None:
    """Scores of every map of a checkpoint; under torchrun the processes share the images."""
    from bidir.prediction import score
    from bidir.processes import rank

    scores = score(checkpoint, protocol or ("raw", "ms"), part, **parse_parameters(parameter))
    if rank() == 0:
        mean = scores.per_class[scores.per_class["class"] == "mean"].drop(columns="class")
        print(mean.round(4).to_string(index=False))
        if out:
            scores.write(out)


@tools.command("voc-archive")
def voc_archive(
    checkpoint: Path,
    out: Annotated[Path, typer.Argument(help="the .tgz to write")],
    names: Annotated[str, typer.Option("--list", help="list in ImageSets/Segmentation")] = "test",
    protocol: str = "crf",
    parameter: Parameters = None,
) -> None:
    """Branch-S's masks of a list as the archive that VOC's test server takes."""
    from bidir.prediction import export_voc_archive

    print(export_voc_archive(checkpoint, names, out, protocol, **parse_parameters(parameter)))


@tools.command("import")
def import_(
    weights: Annotated[Path, typer.Argument(help="a state dict of the reference implementation")],
    out: Annotated[Path, typer.Argument(help="checkpoint.pt to write")],
    classes: Annotated[Path | None, typer.Option(help="names, background first; default: VOC's twenty")] = None,
    preset: str = "voc",
    parameter: Parameters = None,
) -> None:
    """A checkpoint of the reference implementation as one of ours, every tensor accounted for."""
    from bidir.data.voc import known_classes
    from bidir.exchange import import_reference

    if classes and not classes.is_file():
        raise ConfigError(f"--classes {classes}: no such file")
    config = RunConfig.from_parameters(parse_parameters(parameter), preset)
    print(import_reference(weights, out, config, tuple(known_classes(classes))))


@tools.command()
def export(
    checkpoint: Path,
    out: Path,
    push_to: Annotated[str, typer.Option(help="user/name on the hub, to upload it to")] = "",
) -> None:
    """A model as safetensors with its configuration and a model card; load_network(OUT) loads it back."""
    from bidir.exchange import export_model

    print(export_model(checkpoint, out, push_to))


def parse_parameters(pairs: list[str] | None) -> dict:
    """``name=value`` strings to values, read as YAML."""
    pairs = pairs or []
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise ConfigError(f"-p {wrong[0]}: write it as name=value")
    return {name: yaml.safe_load(value) for name, value in (pair.split("=", 1) for pair in pairs)}
