"""What a trained model is used for: masks of one's own images, pseudo-masks, scores, VOC's test server."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from PIL import Image
from tqdm import tqdm

from bidir import processes
from bidir.config import ConfigError, RunConfig, resolve
from bidir.crf import load_crf
from bidir.data import DataError, Split, open_split
from bidir.data.loader import Batch, WholeImages, collate
from bidir.data.split import label_matrix
from bidir.data.voc import VOC_CLASSES, read_list
from bidir.evaluation import MAPS, PROTOCOLS, Scores, evaluate, makes, predict_maps
from bidir.files import write_bytes, write_text
from bidir.model.network import DualBranchNetwork, rescale
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
    network, config, class_names = _open(checkpoint)
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
    checkpoint: str | Path, part: str, out_dir: str | Path, map: str = "seed", protocol: str = "ms", **where: Any
) -> pd.DataFrame:
    """Pseudo-masks of ``part`` (train | val) of the dataset a run was trained on, as VOC palette PNG.

    Uses the dataset's image labels and opens no mask; ids are those of the dataset's own masks.
    ``where`` may override configuration fields such as ``data_root``. A call that was stopped goes on; several
    processes share the images. Returns and writes the table that ``predict`` does.
    """
    network, config, class_names = _open(checkpoint, **where)
    split = _own_split(config, part, class_names)
    return _segment(network, config, split, Path(out_dir), True, map, protocol, overlays=False, resume=True)


def export_voc_archive(checkpoint: str | Path, names: str, out: str | Path, protocol: str = "ms", **where: Any) -> Path:
    """Branch-S's masks of the images in the list ``names`` (``test``) as the archive that VOC's test server takes.

    ``out`` ends in ``.tgz``; the masks are made beside it first, and a call that was stopped goes on. Needs neither
    labels nor masks. Errors: ``DataError``, ``WeightsError``.
    """
    network, config, class_names = _open(checkpoint, **where)
    out = Path(out)
    if list(class_names) != VOC_CLASSES:
        raise DataError(f"the test server scores VOC's twenty classes; the model knows {', '.join(class_names)}")
    if out.suffix != ".tgz":
        raise DataError(f"{out}: the archive is a .tgz")
    root = resolve(config.data_root)
    images = [root / "JPEGImages" / f"{name}.jpg" for name in
              read_list(root / "ImageSets" / "Segmentation" / f"{names}.txt")]  # fmt: skip
    split = Split(class_names, tuple(image_paths(images)), np.zeros((len(images), 20), bool), None, tuple(range(21)))
    inside = f"results/VOC2012/Segmentation/comp6_{names}_cls"
    folder = out.with_name(f"{out.stem}_masks") / inside
    _segment(network, config, split, folder, True, "branch_s", protocol, overlays=False, resume=True)
    if processes.rank() == 0:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz") as archive:
            for name in split.names:
                archive.add(folder / f"{name}.png", f"{inside}/{name}.png")
        write_bytes(out, content.getvalue())
    return out


def score(checkpoint: str | Path, protocols: Sequence[str] = ("raw", "ms"), part: str = "val", **where: Any) -> Scores:
    """Scores of a checkpoint's maps on ``part`` of its dataset, by any number of processes the same.

    ``where`` may override configuration fields such as ``data_root``, ``val_list`` or ``eval_scales``.
    Errors: ``ConfigError``, ``DataError``, ``WeightsError``.
    """
    unknown = [protocol for protocol in protocols if protocol not in PROTOCOLS]
    if unknown:
        raise ConfigError(f"protocol = {unknown[0]!r}: choose of {', '.join(PROTOCOLS)}")
    if "crf" in protocols:
        load_crf()
    network, config, class_names = _open(checkpoint, **where)
    split = _own_split(config, part, class_names)
    if split.masks is None:
        raise DataError(f"{part} has no masks to score against; bidir predict and pseudo-masks need none")
    sizes = processes.gathered(split.check(masks=True) if processes.rank() == 0 else None)[0]
    return evaluate(network, split, sizes, config, {protocol: set(MAPS) for protocol in protocols})


def _segment(
    network: DualBranchNetwork,
    config: RunConfig,
    split: Split,
    out: Path,
    labels_given: bool,
    map: str,
    protocol: str,
    overlays: bool,
    resume: bool = False,
) -> pd.DataFrame:
    if map not in MAPS or protocol not in PROTOCOLS or not makes(protocol, map):
        raise ConfigError(
            f"map = {map!r} with protocol = {protocol!r}: maps {', '.join(MAPS)}; protocols raw, ms (not y_s), "
            "crf (branch_s alone)"
        )
    if protocol == "crf":
        load_crf()
    if processes.rank() == 0:
        split.check(masks=False)
        if resume:
            _begin(out, network, config, split, map, protocol)
    processes.gathered(None)  # nobody writes before that was looked at
    dataset, device = WholeImages(split, config.eval_size, masks=False), next(network.parameters()).device
    labels, ids = split.labels.copy(), np.arange(256, dtype=np.uint8)
    ids[: len(split.mask_ids)] = split.mask_ids  # as the dataset's own masks have them
    mine = range(processes.rank(), len(split), processes.count())
    for index in tqdm(mine, map, unit="image", disable=processes.rank() > 0):
        path = out / f"{split.names[index]}.png"
        if resume and path.is_file():
            continue
        batch = collate([dataset[index]]).to(device)
        if not labels_given:
            batch.label = _predicted_labels(network, batch)
            labels[index] = batch.label[0].cpu() > 0
        prediction = predict_maps(network, batch, config, protocol, {map})[map]
        pixels = split.read_image(index)
        mask = nearest(prediction, pixels.shape[:2])[0].cpu().numpy().astype(np.uint8)
        save_palette_png(ids[mask], path)
        if overlays:
            save_png(Image.fromarray(draw_overlay(pixels, mask, split.class_names)), out / f"{path.stem}_overlay.png")
    labels = np.any(processes.gathered(labels), axis=0)  # when all are done
    source = "predicted" if not labels_given else "given" if map in LABELLED_MAPS else "not used"
    present = [" ".join(np.array(split.class_names)[row]) for row in labels]
    table = pd.DataFrame({"image": split.names, "labels": present, "labels_from": source, "map": map,
                          "protocol": protocol})  # fmt: skip
    if processes.rank() == 0:
        write_text(out / "predictions.csv", table.to_csv(index=False))
    return table


def _own_split(config: RunConfig, part: str, class_names: tuple[str, ...]) -> Split:
    """The images of ``part``. Errors: ``DataError`` if their classes are not those the model knows."""
    split = open_split(config, part)
    if split.class_names != class_names:
        raise DataError(f"the dataset has classes {split.class_names}, the checkpoint {class_names}")
    return split


def _begin(out: Path, network: DualBranchNetwork, config: RunConfig, split: Split, map: str, protocol: str) -> None:
    """Note in ``out`` what makes its masks. Errors: ``DataError`` if it holds masks that something else made."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    maker = {"model": digest.hexdigest(), "images": split.manifest(), "settings": config.identity(), "map": map,
             "protocol": protocol, "ids": split.mask_ids}  # fmt: skip
    path, told = out / "made_by.json", json.dumps(maker)
    if path.read_text() != told if path.is_file() else any(out.glob("*.png")):
        raise DataError(f"{out} holds masks of another model, dataset, map, protocol or setting; give another folder")
    write_text(path, told)


def _open(checkpoint: str | Path, **where: Any) -> tuple[DualBranchNetwork, RunConfig, tuple[str, ...]]:
    """``load_network`` on this process's device, with ``where`` in place of what the configuration says."""
    network, config, class_names = load_network(checkpoint)
    config = config.replace(**{"device": "auto", **where})
    state = PartialState(cpu=config.device == "cpu", timeout=processes.PATIENCE)
    return network.to(state.device), config, class_names


def _predicted_labels(network: DualBranchNetwork, batch: Batch) -> torch.Tensor:
    """Image labels (1, C) that Branch-C finds: probability above 0.5, or else the likeliest class."""
    with torch.no_grad():
        logits = network(rescale(batch.image), segmentation=False).class_logits
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
    stem, count = Counter(p.stem for p in paths).most_common(1)[0]
    if count > 1:
        raise DataError(f"two images are called {stem!r}; their masks would overwrite each other")
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
