"""Scores of every map the method makes, streaming: predict, count, drop."""

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from bidir.config import RunConfig
from bidir.data.loader import WholeImages, make_loader, same_size_batches
from bidir.data.split import Split
from bidir.method import distributed
from bidir.method.maps import Needed, Passes, best_logits, multi_scale_pass, needed, seed_maps
from bidir.method.network import DualBranchNetwork
from bidir.method.par import PAR
from bidir.method.propagation import Present, Propagator, raw_seed, refinement, segmentation_pseudo_label
from bidir.method.tensors import IGNORE, Batch, nearest, resize
from bidir.progress import bar
from bidir.run.crf import dense_crf, probabilities
from bidir.run.folder import Scores
from bidir.run.metrics import confusion, pixels, score_table

Key = tuple[str, str]  # protocol, map
Wanted = dict[str, set[str]]  # maps by protocol
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
PROPAGATED, OF_CAM = {"seed", "y_c"}, {"cam", "seed", "y_c", "branch_c"}


def makes(protocol: str, name: str) -> bool:
    """Whether a protocol makes a map: ``crf`` only Branch-S's, and Branch-S teaches (``y_s``) from one pass."""
    return name == "branch_s" if protocol == "crf" else (protocol, name) != ("ms", "y_s")


def predict_maps(
    network: DualBranchNetwork, batch: Batch, config: RunConfig, wanted: Wanted
) -> dict[Key, Int[Tensor, "B H W"]]:
    """The maps ``wanted`` per protocol, of a batch of whole images, as class ids 0..C, 255 = ignored.
    ``cam``, ``seed`` and ``y_c`` use the image labels, as training does; ``branch_c`` and ``branch_s``
    use the image alone. Under ``ms`` the seeds take ``seed_scales``, Branch-S takes ``eval_scales``; ``crf`` refines
    that of Branch-S and makes no other map. Each scale and flip passes the network once for all of them."""
    asked, size = Needed(), tuple(batch.image.shape[-2:])
    wanted = {protocol: {name for name in names if makes(protocol, name)} for protocol, names in wanted.items()}
    for protocol, names in wanted.items():
        scales, tested, flip = _passed(protocol, config)
        if names & OF_CAM:
            asked |= needed(scales, flip, config.propagation if names & PROPAGATED else "")
        if names & {"branch_s", "y_s"}:
            asked |= needed((), flip, branch_s=tested)
    passes, masks = multi_scale_pass(network, batch.image, asked), {}
    several = any("branch_s" in wanted.get(protocol, ()) for protocol in ("ms", "crf"))
    best = resize(best_logits(passes, batch.image, config.eval_scales), size) if several else None
    par = refinement(batch, config) if any(names & PROPAGATED for names in wanted.values()) else None
    for protocol, names in wanted.items():
        made = _of_cam(passes, batch, config, protocol, names, par) if names & OF_CAM else {}
        masks |= {(protocol, name): one for name, one in made.items()}
        if protocol == "raw" and names & {"y_s", "branch_s"}:
            logits = passes[1.0].segmentation_logits[: len(batch.image)].float()
            masks[protocol, "y_s"] = nearest(segmentation_pseudo_label(logits, batch, config), size)
            masks[protocol, "branch_s"] = resize(logits, size).argmax(1)
        elif "branch_s" in names:
            refined = dense_crf(batch.image, probabilities(best, config)) if protocol == "crf" else best.argmax(1)
            masks[protocol, "branch_s"] = refined
    return {(p, name): masks[p, name] for p, names in wanted.items() for name in MAPS if name in names}


def _passed(protocol: str, config: RunConfig) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """The scales of a protocol's CAM and of its Branch-S, and whether they are passed mirrored too."""
    return ((1.0,), (1.0,), False) if protocol == "raw" else (config.seed_scales, config.eval_scales, True)


def _of_cam(
    passes: Passes, batch: Batch, config: RunConfig, protocol: str, names: set[str], par: PAR | None
) -> dict[str, Int[Tensor, "B H W"]]:
    """The maps of a protocol that are made from a CAM: raw, propagated, of the classes predicted."""
    scales, _, flip = _passed(protocol, config)
    maps, size, made = seed_maps(passes, batch, scales, flip), tuple(batch.image.shape[-2:]), {}
    if names & PROPAGATED:
        propagate = Propagator(maps, batch, config, par)
        made |= {name: propagate(config.propagation, decided=name == "seed") for name in names & PROPAGATED}
    predicted = (passes[1.0].class_logits[: len(batch.image)] > 0).float()
    for name, label, most in (("cam", batch.label, batch.most), ("branch_c", predicted, predicted.shape[1])):
        if name in names:
            made[name] = raw_seed(maps.cam, Present.of(label, most), config.threshold_cam, size)
    return made


def evaluate(
    network: DualBranchNetwork, split: Split, config: RunConfig, wanted: Wanted | None = None, progress: bool = True
) -> Scores:
    """Scores over a split that was checked, one confusion matrix per map; beside ``MAPS`` also the branches' agreement.
    ``wanted``: maps per protocol (default all). Nothing is kept but the confusion matrices. Several processes share the
    images and get the same scores as one."""
    wanted = wanted or {"raw": set(MAPS), "ms": set(MAPS)}
    device, classes = next(network.parameters()).device, len(split.class_names)
    batches = same_size_batches(split.sizes, config.batch_size)[distributed.rank() :: distributed.count()]
    loader = make_loader(WholeImages(split, config.eval_size), batches, config.num_workers)
    matrices, images = {}, []
    for batch in bar(loader, "evaluate", hidden=not progress or distributed.rank() > 0, leave=False):
        names, batch = [split.names[i] for i in batch.index.tolist()], batch.to(device)
        counted = count_maps(predict_maps(network, batch, config, wanted), batch.mask, classes)
        for key, counts in counted.items():
            matrices[key] = matrices.get(key, 0) + counts.sum(0)
            if key in PER_IMAGE:
                images += _image_rows(key, counts, names, split.class_names)
    parts, tables = distributed.gathered((matrices, images)), []
    for key in sorted({key for counted, _ in parts for key in counted}):
        counts = sum(counted[key] for counted, _ in parts if key in counted)  # a process may have no image
        tables.append(score_table(counts, split.class_names).assign(protocol=key[0], map=key[1], images=len(split)))
    per_image = pd.DataFrame(sorted(row for _, rows in parts for row in rows), columns=IMAGE_COLUMNS)
    return Scores(pd.concat(tables, ignore_index=True)[COLUMNS], per_image)


def count_maps(
    predictions: dict[Key, Int[Tensor, "B H W"]], mask: Int[Tensor, "B H2 W2"], num_classes: int
) -> dict[Key, Int[Tensor, "B S S1"]]:
    """The confusion matrix of each image by each map, at the mask's size; one reading from the device for all.
    Where both branches' maps are there, also ``agreement``: Branch-S's against Branch-C's in place of the mask."""
    at_size = nearest(torch.cat([*predictions.values()]), tuple(mask.shape[-2:])).split(len(mask))
    full = dict(zip(predictions, at_size, strict=True))
    truth = dict.fromkeys(full, mask)
    for protocol in {protocol for protocol, _ in full}:
        if {(protocol, "branch_c"), (protocol, "branch_s")} <= full.keys():
            truth[protocol, "agreement"] = full[protocol, "branch_c"].masked_fill(mask == IGNORE, IGNORE)
            full[protocol, "agreement"] = full[protocol, "branch_s"]
    counts = confusion(torch.cat([*full.values()]), torch.cat([truth[key] for key in full]), num_classes)
    return dict(zip(full, counts.cpu().split(len(mask)), strict=True))


def _image_rows(key: Key, counts: Int[Tensor, "B S S1"], names: list[str], classes: tuple[str, ...]) -> list[tuple]:
    """Of each image and each class that is in it or predicted in it: pixels hit, true and predicted."""
    images = zip(names, *(values.tolist() for values in pixels(counts)), strict=True)
    rows = ((name, *key, *row) for name, *each in images for row in zip(("background", *classes), *each, strict=True))
    return [row for row in rows if row[-2] or row[-1]]


def means_by_name(per_class: pd.DataFrame) -> dict[str, float]:
    """``{"raw/branch_s": mIoU, ...}``, and of the pseudo-labels ``ms/y_c/precision`` and ``ms/y_c/coverage`` too."""
    scores = {}
    for row in per_class[per_class["class"] == "mean"].itertuples():
        name = f"{row.protocol}/{row.map}"
        scores[name] = float(row.iou)
        if row.map in ("y_c", "y_s"):
            scores |= {f"{name}/precision": float(row.precision), f"{name}/coverage": float(row.coverage)}
    return scores
