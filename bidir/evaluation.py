"""Scores of every map the method makes, streaming: predict, count, drop."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from bidir import processes
from bidir.config import RunConfig
from bidir.crf import dense_crf, probabilities
from bidir.data.loader import Batch, WholeImages, make_loader, same_size_batches
from bidir.data.split import IGNORE, Split
from bidir.files import write_text
from bidir.metrics import ConfusionMatrix
from bidir.model.network import DualBranchNetwork, rescale, resize
from bidir.seeds.maps import evaluating, multi_scale_maps
from bidir.seeds.propagation import Propagator, raw_seed, segmentation_pseudo_label
from bidir.supervision import nearest

PROTOCOLS = ("raw", "ms", "crf")  # one pass as it is | several scales, each with its flip | the same, then dense CRF
COLUMNS = ["protocol", "map", "class", "iou", "precision", "recall", "coverage", "images"]
IMAGE_COLUMNS = ["image", "protocol", "map", "class", "hit", "true", "predicted"]
PER_IMAGE = {("raw", "branch_s"), ("raw", "branch_c"), ("ms", "seed")}  # maps whose pixels are counted per image too
MAPS = {
    "cam": "raw CAM of the classes present",
    "seed": "propagated CAM, no pixel ignored",
    "y_c": "pseudo-label of Branch-C for Branch-S (coverage: share of pixels not ignored)",
    "y_s": "pseudo-label of Branch-S for Branch-C",
    "branch_c": "CAM of the classes that Branch-C itself predicts",
    "branch_s": "prediction of Branch-S",
}


def makes(protocol: str, name: str) -> bool:
    """Whether a protocol makes a map: ``crf`` only Branch-S's, and Branch-S teaches (``y_s``) from one pass."""
    return name == "branch_s" if protocol == "crf" else (protocol, name) != ("ms", "y_s")


def predict_maps(
    network: DualBranchNetwork,
    batch: Batch,
    config: RunConfig,
    protocol: str,
    names: set[str],
    propagation: str | None = None,
) -> dict[str, Int[Tensor, "B H W"]]:
    """The maps in ``names`` for a batch of whole images, as class ids 0..C, 255 = ignored.

    ``cam``, ``seed`` and ``y_c`` use the image labels, as training does; ``branch_c`` and ``branch_s``
    use the image alone. Under ``ms`` the seeds take ``seed_scales``, Branch-S takes ``eval_scales``; ``crf`` refines
    that of Branch-S and makes no other map.
    ``propagation`` replaces the configuration's, as early in training.
    """
    propagation = propagation or config.propagation
    size, found = tuple(batch.image.shape[-2:]), {}
    if protocol == "crf":
        scores = resize(multi_scale_logits(network, batch.image, config.eval_scales), size)
        return {"branch_s": dense_crf(batch.image, probabilities(scores, config))} if "branch_s" in names else {}
    if protocol == "ms" and "branch_s" in names:
        found["branch_s"] = resize(multi_scale_logits(network, batch.image, config.eval_scales), size).argmax(1)
        if len(names) == 1:
            return found
    scales, flip = ((1.0,), False) if protocol == "raw" else (config.seed_scales, True)
    propagated = bool(names & {"seed", "y_c"})
    decoded = scales if protocol == "raw" or (propagated and propagation == "bsp") else ()
    affinity = propagated and propagation == "afa"
    maps = multi_scale_maps(network, batch.image, batch.box, scales, decoded, affinity, flip)
    if propagated:
        propagate = Propagator(maps, batch.image, batch.label, batch.box, config)
        found |= {"y_c": propagate(propagation)} if "y_c" in names else {}
        found |= {"seed": propagate(propagation, decided=True)} if "seed" in names else {}
    found["cam"] = raw_seed(maps.cam, batch.label, config.threshold_cam, size)
    predicted = (maps.class_logits > 0).float()
    found["branch_c"] = raw_seed(maps.cam, predicted, config.threshold_cam, size)
    if protocol == "raw":
        logits = maps.segmentation_logits
        y_s = segmentation_pseudo_label(logits, batch.label, batch.box, size, config)
        found["y_s"] = nearest(y_s, size)
        found["branch_s"] = resize(logits, size).argmax(1)
    return {name: found[name] for name in MAPS if name in names and name in found}


def multi_scale_logits(
    network: DualBranchNetwork, image: Float[Tensor, "B 3 H W"], scales: tuple[float, ...]
) -> Float[Tensor, "B S h4 w4"]:
    """Branch-S at several scales: mean over the flip pair, maximum over scales."""
    height, width = image.shape[-2:]
    quarter, best = (-(-height // 4), -(-width // 4)), None
    with evaluating(network):
        for scale in scales:
            scaled = rescale(image, scale)
            out = network(torch.cat([scaled, scaled.flip(3)])).segmentation_logits.float()
            plain, flipped = resize(out, quarter).chunk(2)
            logits = (plain + flipped.flip(3)) / 2
            best = logits if best is None else torch.maximum(best, logits)
    return best


class Scores(NamedTuple):
    """``per_class``: (protocol, map, class) with iou, precision, recall, coverage in 0..1; class ``mean`` is
    their mean. The map ``agreement`` is Branch-S's prediction scored against Branch-C's in place of the mask.
    ``per_image``: pixels hit, true and predicted by (image, protocol, map, class), of ``PER_IMAGE``."""

    per_class: pd.DataFrame
    per_image: pd.DataFrame

    def write(self, folder: Path) -> None:
        """``per_class.csv`` and ``per_image.csv``, in ``folder``."""
        write_text(folder / "per_class.csv", self.per_class.to_csv(index=False, float_format="%.6f"))
        write_text(folder / "per_image.csv", self.per_image.to_csv(index=False))


def evaluate(
    network: DualBranchNetwork,
    split: Split,
    sizes: np.ndarray,
    config: RunConfig,
    wanted: dict[str, set[str]] | None = None,
    limit: int = 0,
    progress: bool = True,
    propagation: str | None = None,
) -> Scores:
    """Scores over a split, one confusion matrix per map; beside ``MAPS`` also the branches' agreement.

    Args: ``sizes`` (images, 2) from ``Split.check``; ``wanted`` maps per protocol (default all);
    ``limit`` > 0 takes that many images, evenly spaced; ``propagation`` as in ``predict_maps``.
    Nothing is kept but the confusion matrices. Several processes share the images and get the same scores as one.
    """
    wanted = wanted or {"raw": set(MAPS), "ms": set(MAPS)}
    if 0 < limit < len(split):
        chosen = np.linspace(0, len(split) - 1, limit).round().astype(int)
        split, sizes = split.select(chosen), sizes[chosen]
    device = next(network.parameters()).device
    batches = same_size_batches(sizes, config.batch_size)[processes.rank() :: processes.count()]
    loader = make_loader(WholeImages(split, config.eval_size), batches, config.num_workers)
    keys = [(protocol, name) for protocol, names in wanted.items() for name in (*MAPS, "agreement")
            if name in names or (name == "agreement" and {"branch_c", "branch_s"} <= names)]  # fmt: skip
    keys = [key for key in keys if makes(*key)]
    matrices = {key: ConfusionMatrix(len(split.class_names)) for key in keys}
    images: list[tuple] = []
    names_of_classes = ("background", *split.class_names)

    def count(key: tuple[str, str], prediction: Tensor, truth: Tensor, index: Tensor) -> None:
        """Add a batch to the matrix of ``key``, and its images' pixels where they are kept."""
        for one, real, i in zip(prediction, truth, index.tolist(), strict=True):
            matrix = ConfusionMatrix(len(split.class_names))
            matrix.update(one, real)
            matrices[key].counts += matrix.counts
            if key in PER_IMAGE:
                rows = zip(names_of_classes, *(n.int().tolist() for n in matrix.pixels()), strict=True)
                images.extend((split.names[i], *key, *row) for row in rows if row[2] or row[3])

    for batch in tqdm(loader, "evaluate", disable=not progress or processes.rank() > 0, leave=False, mininterval=1):
        batch = batch.to(device)
        for protocol, names in wanted.items():
            predictions = predict_maps(network, batch, config, protocol, names, propagation)
            full = {name: nearest(p, tuple(batch.mask.shape[-2:])) for name, p in predictions.items()}
            for name, prediction in full.items():
                count((protocol, name), prediction, batch.mask, batch.index)
            if {"branch_c", "branch_s"} <= full.keys():
                other = full["branch_c"].masked_fill(batch.mask == IGNORE, IGNORE)
                count((protocol, "agreement"), full["branch_s"], other, batch.index)
    for matrix in matrices.values():
        matrix.counts = processes.total(matrix.counts.to(device)).cpu()
    images = sorted(chain.from_iterable(processes.gathered(images)))
    tables = [
        matrix.table(split.class_names).assign(protocol=protocol, map=name, images=len(split))
        for (protocol, name), matrix in sorted(matrices.items())
    ]
    per_class = pd.concat(tables, ignore_index=True)[COLUMNS]
    return Scores(per_class, pd.DataFrame(images, columns=IMAGE_COLUMNS))


def mean_scores(per_class: pd.DataFrame) -> dict[str, float]:
    """``{"raw/branch_s": mIoU, ...}``, and of the pseudo-labels ``ms/y_c/precision`` and ``ms/y_c/coverage`` too."""
    found = {}
    for row in per_class[per_class["class"] == "mean"].itertuples():
        name = f"{row.protocol}/{row.map}"
        found[name] = float(row.iou)
        if row.map in ("y_c", "y_s"):
            found |= {f"{name}/precision": float(row.precision), f"{name}/coverage": float(row.coverage)}
    return found
