"""Masks for images: of one's own, or of a whole split as pseudo-masks for a second-stage model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from bidir.config import ConfigError, RunConfig
from bidir.data import DataError, Split, open_split
from bidir.data.loader import Batch, WholeImages, collate
from bidir.data.split import label_matrix
from bidir.evaluation import MAPS, PROTOCOLS, predict_maps
from bidir.files import write_text
from bidir.model.network import DualBranchNetwork
from bidir.overlay import draw_overlay
from bidir.palette import save_palette_png, save_png
from bidir.runs import load_network
from bidir.supervision import nearest

LABELLED_MAPS = ("cam", "seed", "y_c")  # made for given image labels; the others see the image alone
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def predict(
    checkpoint: str | Path,
    images: str | Path | list[Path],
    out_dir: str | Path,
    labels: dict[str, list[str]] | None = None,
    map: str = "branch_s",
    protocol: str = "raw",
    overlays: bool = True,
) -> pd.DataFrame:
    """Segment images of one's own; writes ``<name>.png`` (VOC palette) and ``<name>_overlay.png``.

    Args: ``images`` a file, a folder or a list; ``labels`` by file stem, for all images or none;
    ``map`` one of ``MAPS``. ``cam``, ``seed`` and ``y_c`` are made for the image labels: those given,
    else those that Branch-C predicts; the other maps see the image alone. Returns one row per image
    that says which, also written to ``predictions.csv``. Errors: ``DataError``, ``WeightsError``, ``ConfigError``.
    """
    network, config, class_names = load_network(checkpoint)
    paths = image_paths(images)
    if labels is not None and map not in LABELLED_MAPS:
        raise ConfigError(f"map = {map!r} takes no labels; give them with map = {' | '.join(LABELLED_MAPS)}")
    if Path(out_dir).resolve() in {path.parent.resolve() for path in paths}:
        raise DataError(f"out_dir = {str(out_dir)!r} holds the images themselves; masks need a folder of their own")
    matrix = None if labels is None else _given_labels(paths, labels, class_names)
    known = np.zeros((len(paths), len(class_names)), bool) if matrix is None else matrix
    split = Split(class_names, tuple(paths), known, None, tuple(range(len(class_names) + 1)))
    return _segment(network, config, split, Path(out_dir), matrix is not None, map, protocol, overlays)


def export_pseudo_masks(
    checkpoint: str | Path, part: str, out_dir: str | Path, map: str = "seed", protocol: str = "ms", **where: str
) -> pd.DataFrame:
    """Pseudo-masks of ``part`` (train | val) of the dataset a run was trained on, as VOC palette PNG.

    Uses the dataset's image labels and opens no mask. ``where`` may override configuration fields
    such as ``data_root``. Returns and writes the table that ``predict`` does.
    """
    network, config, class_names = load_network(checkpoint)
    split = open_split(config.replace(**where), part)
    if split.class_names != class_names:
        raise DataError(f"the dataset has classes {split.class_names}, the checkpoint {class_names}")
    return _segment(network, config, split, Path(out_dir), True, map, protocol, overlays=False)


def _segment(
    network: DualBranchNetwork,
    config: RunConfig,
    split: Split,
    out: Path,
    labels_given: bool,
    map: str,
    protocol: str,
    overlays: bool,
) -> pd.DataFrame:
    if map not in MAPS or protocol not in PROTOCOLS or (map, protocol) == ("y_s", "ms"):
        raise ConfigError(
            f"map = {map!r} with protocol = {protocol!r}: maps {', '.join(MAPS)}; protocols raw, ms (not y_s)"
        )
    split.check(masks=False)
    out.mkdir(parents=True, exist_ok=True)
    dataset, rows = WholeImages(split, config.eval_size, masks=False), []
    for index in tqdm(range(len(split)), map, unit="image"):
        batch = collate([dataset[index]])
        if not labels_given:
            batch.label = _predicted_labels(network, batch)
        prediction = predict_maps(network, batch, config, protocol, {map})[map]
        pixels = split.read_image(index)
        mask = nearest(prediction, pixels.shape[:2])[0].numpy().astype(np.uint8)
        name = split.names[index]
        save_palette_png(mask, out / f"{name}.png")
        if overlays:
            save_png(Image.fromarray(draw_overlay(pixels, mask, split.class_names)), out / f"{name}_overlay.png")
        present = [c for c, there in zip(split.class_names, batch.label[0] > 0, strict=True) if there]
        source = "predicted" if not labels_given else "given" if map in LABELLED_MAPS else "not used"
        rows.append(
            {"image": name, "labels": " ".join(present), "labels_from": source, "map": map, "protocol": protocol}
        )
    table = pd.DataFrame(rows)
    write_text(out / "predictions.csv", table.to_csv(index=False))
    return table


def _predicted_labels(network: DualBranchNetwork, batch: Batch) -> torch.Tensor:
    """Image labels (1, C) that Branch-C finds: probability above 0.5, or else the likeliest class."""
    with torch.no_grad():
        logits = network(batch.image, segmentation=False).class_logits
    return ((logits > 0) | (logits == logits.amax(1, keepdim=True))).float()


def image_paths(images: str | Path | list[Path]) -> list[Path]:
    """The image files that a file, a folder or a list names. Errors: ``DataError``."""
    if isinstance(images, (str, Path)):
        folder = Path(images)
        found = sorted(folder.iterdir()) if folder.is_dir() else [folder]
        paths = [p for p in found if p.suffix.lower() in IMAGE_SUFFIXES] if folder.is_dir() else found
    else:
        paths = [Path(p) for p in images]
    missing = [p for p in paths if not p.is_file()]
    if missing or not paths:
        raise DataError(f"{missing[0] if missing else images}: no image there")
    stems = [p.stem for p in paths]
    twice = {stem for stem in stems if stems.count(stem) > 1}
    if twice:
        raise DataError(f"two images are called {sorted(twice)[0]!r}; their masks would overwrite each other")
    return paths


def _given_labels(paths: list[Path], labels: dict[str, list[str]], class_names: tuple[str, ...]) -> np.ndarray:
    for path in paths:
        if not labels.get(path.stem):
            raise DataError(f"no labels given for image {path.stem!r}; give them for all images or for none")
        unknown = set(labels[path.stem]) - set(class_names)
        if unknown:
            raise DataError(
                f"image {path.stem!r}: label {sorted(unknown)[0]!r}; the model knows {', '.join(class_names)}"
            )
    return label_matrix([labels[path.stem] for path in paths], class_names)
