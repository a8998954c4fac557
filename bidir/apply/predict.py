"""What a trained model says of images: masks and overlays of one's own, and scores on a dataset."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from bidir.atomic import write_text
from bidir.config import ConfigError, DataError, RunConfig
from bidir.data.files import is_picture
from bidir.data.loader import WholeImages, collate
from bidir.data.open import open_split
from bidir.data.overlay import draw_overlay, save_palette_png, save_png
from bidir.data.split import Split, label_matrix
from bidir.method import distributed
from bidir.method.network import DualBranchNetwork
from bidir.method.tensors import Batch, nearest, rescale
from bidir.progress import bar
from bidir.run.checkpoint import load_network
from bidir.run.crf import load_crf
from bidir.run.evaluation import MAPS, PROTOCOLS, evaluate, makes, predict_maps
from bidir.run.folder import Scores
from bidir.run.machine import settle_memory

LABELLED_MAPS = ("cam", "seed", "y_c")  # made for given image labels; the others see the image alone


def predict(
    checkpoint: str | Path, images: str | Path | list[Path], out_dir: str | Path,
    labels: dict[str, list[str]] | None = None, map_name: str = "branch_s", protocol: str = "raw", overlays: bool = True
) -> pd.DataFrame:  # fmt: skip
    """Segment images of one's own; writes ``<name>.png`` (VOC palette) and ``<name>_overlay.png``.
    Args: ``images`` a file, a folder or a list; ``labels`` by file stem, for all images or none;
    ``map_name`` one of ``MAPS``. ``cam``, ``seed`` and ``y_c`` are made for the image labels: those given,
    else those that Branch-C predicts; the other maps see the image alone. Returns one row per image
    that says which, also written to ``predictions.csv``. Errors: ``DataError``, ``WeightsError``, ``ConfigError``."""
    check_map(map_name, protocol)
    paths = image_paths(images)
    if labels is not None and map_name not in LABELLED_MAPS:
        raise ConfigError(f"map = {map_name!r} takes no labels; give them with map = {' | '.join(LABELLED_MAPS)}")
    if Path(out_dir).resolve() in {path.parent.resolve() for path in paths}:
        raise DataError(f"out_dir = {str(out_dir)!r} holds the images themselves; masks need a folder of their own")
    network, config, class_names = open_model(checkpoint)
    given = labels is not None
    known = _given_labels(paths, labels, class_names) if given else np.zeros((len(paths), len(class_names)), bool)
    split = Split(class_names, tuple(paths), known, None, tuple(range(len(class_names) + 1)))
    return segment(network, config, split, Path(out_dir), given, map_name, protocol, overlays)


def score(checkpoint: str | Path, protocols: Sequence[str] = ("raw", "ms"), part: str = "val", **where: Any) -> Scores:
    """Scores of a checkpoint's maps on ``part`` of its dataset, by any number of processes the same.
    ``where``: fields of the configuration to override. Errors: ``ConfigError``, ``DataError``, ``WeightsError``."""
    if unknown := [protocol for protocol in protocols if protocol not in PROTOCOLS]:
        raise ConfigError(f"protocol = {unknown[0]!r}: choose of {', '.join(PROTOCOLS)}")
    if "crf" in protocols:
        load_crf()
    network, config, class_names = open_model(checkpoint, **where)
    split = own_split(config, part, class_names)
    if split.masks is None:
        raise DataError(f"{part} has no masks to score against; bidir predict and pseudo-masks need none")
    split = distributed.gathered(split.check(True, eval_size=config.eval_size) if distributed.rank() == 0 else None)[0]
    return evaluate(network, split, config, {protocol: set(MAPS) for protocol in protocols})


def segment(
    network: DualBranchNetwork, config: RunConfig, split: Split, out: Path, labels_given: bool, map_name: str,
    protocol: str, overlays: bool, resume: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """``predict`` for a split. ``resume``: masks in ``out`` that this model and setting made are not made again."""
    if (rank := distributed.rank()) == 0:
        files = Counter(f"{name}{end}".lower() for name in split.names for end in ("", "_overlay")[: 1 + overlays])
        if (most := files.most_common(1)[0])[1] > 1:
            raise DataError(f"two images are called {most[0]!r}, or one as what is written of another; rename one")
        split.check(masks=False, eval_size=config.eval_size)
        if resume:
            _begin(out, network, config, split, map=map_name, protocol=protocol)
    distributed.gathered(None)  # nobody writes before that was looked at
    dataset, device = WholeImages(split, config.eval_size, masks=False), next(network.parameters()).device
    labels, ids = split.labels.copy(), np.arange(256, dtype=np.uint8)
    ids[: len(split.mask_ids)] = split.mask_ids  # as the dataset's own masks have them
    for index in bar(range(rank, len(split), distributed.count()), map_name, hidden=rank > 0):
        path = out / f"{split.names[index]}.png"
        if resume and path.is_file():
            continue
        batch = collate([dataset[index]]).to(device)
        if not labels_given:
            batch.label = _predicted_labels(network, batch)
            labels[index] = batch.label[0].cpu() > 0
            batch.most = max(1, int(labels[index].sum()))
        prediction = predict_maps(network, batch, config, {protocol: {map_name}})[protocol, map_name]
        pixels = split.read_image(index)
        mask = nearest(prediction, pixels.shape[:2])[0].cpu().numpy().astype(np.uint8)
        save_palette_png(ids[mask], path)
        if overlays:
            save_png(Image.fromarray(draw_overlay(pixels, mask, split.class_names)), out / f"{path.stem}_overlay.png")
    source = "predicted" if not labels_given else "given" if map_name in LABELLED_MAPS else "not used"
    labels = np.any(distributed.gathered(labels), axis=0)  # when all are done
    present = [" ".join(np.array(split.class_names)[row]) for row in labels]
    table = pd.DataFrame({"image": split.names, "labels": present, "labels_from": source, "map": map_name,
                          "protocol": protocol})  # fmt: skip
    if rank == 0:
        write_text(out / "predictions.csv", table.to_csv(index=False))
    return table


def check_map(map_name: str, protocol: str) -> None:
    """``ConfigError`` if a protocol does not make that map, or needs a package that is not installed."""
    if map_name not in MAPS or protocol not in PROTOCOLS or not makes(protocol, map_name):
        known = f"maps {', '.join(MAPS)}; protocols raw, ms (not y_s), crf (branch_s alone)"
        raise ConfigError(f"map = {map_name!r} with protocol = {protocol!r}: {known}")
    if protocol == "crf":
        load_crf()


def own_split(config: RunConfig, part: str, class_names: tuple[str, ...]) -> Split:
    """The images of ``part``. Errors: ``DataError`` if their classes are not those the model knows."""
    split = open_split(config, part)
    if split.class_names != class_names:
        raise DataError(f"the dataset has classes {split.class_names}, the checkpoint {class_names}")
    return split


def _begin(out: Path, network: DualBranchNetwork, config: RunConfig, split: Split, **how: str) -> None:
    """Note in ``out`` what makes its masks. Errors: ``DataError`` if it holds masks that something else made."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    maker = {"model": digest.hexdigest(), "images": split.manifest(), "settings": config.identity(), **how}
    path, made = out / "made_by.json", json.dumps({**maker, "ids": split.mask_ids})
    if path.read_text() != made if path.is_file() else any(out.glob("*.png")):
        raise DataError(f"{out} holds masks of another model, dataset, map, protocol or setting; give another folder")
    write_text(path, made)


def open_model(checkpoint: str | Path, **where: Any) -> tuple[DualBranchNetwork, RunConfig, tuple[str, ...]]:
    """``load_network`` on this process's device, with ``where`` in place of what the configuration says; ``ema_decay``
    = 0 there takes the weights of the last step, not their average."""
    settle_memory()
    network, config, class_names = load_network(checkpoint, averaged=where.get("ema_decay") != 0)
    config = config.replace(**{"device": "auto", **where})
    state = PartialState(cpu=config.device == "cpu", timeout=distributed.PATIENCE)
    return network.to(state.device), config, class_names


def _predicted_labels(network: DualBranchNetwork, batch: Batch) -> Float[Tensor, "B C"]:
    """Image labels that Branch-C finds: probability above 0.5, or else the likeliest of several."""
    with torch.no_grad():
        logits = network(rescale(batch.image), segmentation=False).class_logits
    return ((logits > 0) | ((logits == logits.amax(1, keepdim=True)) & (logits.shape[1] > 1))).float()


def image_paths(images: str | Path | list[Path]) -> list[Path]:
    """The image files that a file, a folder or a list names; prints what is skipped of one. Errors: ``DataError``."""
    paths = [Path(p) for p in ([images] if isinstance(images, (str, Path)) else images)]
    if isinstance(images, (str, Path)) and paths[0].is_dir():
        there = sorted(p for p in paths[0].iterdir() if not p.name.startswith("."))
        paths = [p for p in there if is_picture(p)]
        if skipped := [p.name for p in there if not is_picture(p)]:
            print(f"{images}: skipped, no pictures: {', '.join(skipped)}")
    if (missing := [p for p in paths if not p.is_file()]) or not paths:
        raise DataError(f"{missing[0] if missing else images}: no image there")
    return paths


def _given_labels(paths: list[Path], labels: dict[str, list[str]], class_names: tuple[str, ...]) -> np.ndarray:
    for path in paths:
        if path.stem not in labels:
            raise DataError(f"no labels given for image {path.stem!r}; give them for all images or for none")
        if unknown := sorted(set(labels[path.stem]) - set(class_names)):
            raise DataError(f"image {path.stem!r}: label {unknown[0]!r}; the model knows {', '.join(class_names)}")
    return label_matrix([labels[path.stem] for path in paths], class_names)
