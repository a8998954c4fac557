"""VOC 2012 with SBD as they are published, to the one layout that training reads; what COCO shares with it.

The prepared folder links to the published images and holds lists, masks, image labels and a manifest, which
is written last. A call that was stopped goes on; masks that are there are not made again."""

import hashlib
import json
import tarfile
from collections import Counter
from http.client import HTTPException
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat
from torchvision.datasets import SBDataset
from torchvision.datasets.utils import download_and_extract_archive
from torchvision.datasets.voc import DATASET_YEAR_DICT

from bidir.atomic import write_text
from bidir.config import DataError, resolve
from bidir.data.files import read_list, require
from bidir.data.labels import VOC_CLASSES, read_xml
from bidir.data.overlay import save_palette_png
from bidir.data.split import Split
from bidir.progress import bar

PLACES = "JPEGImages/{}.jpg", "SegmentationClass/{}.png"
PUBLISHED = {  # images per list: VOC's own lists, VOC with SBD without val; COCO images that show an object
    "voc": {"train": 1464, "val": 1449, "test": 1456, "train_aug": 10582},
    "coco": {"train": 82081, "val": 40137},
    "coco2017": {"train": 117266, "val": 4952},
}


def prepare_voc(
    source: str | Path, out: str | Path, sbd: str | Path | None = None, download: bool = False, any_count: bool = False
) -> Path:
    """VOC 2012 with, if ``sbd`` is given, the augmented list ``train_aug`` and its masks made from SBD's .mat files.
    Args: ``source`` holds ``VOCdevkit/VOC2012`` or is that folder; ``sbd`` holds ``cls/``, ``train.txt`` and
    ``val.txt``; ``download`` fetches what is lacking of both (torchvision); ``any_count`` accepts lists of other
    lengths than the published. Image labels come from the XML files. Errors: ``DataError``."""
    out, published = resolve(out), (DATASET_YEAR_DICT["2012"][key] for key in ("url", "filename", "md5"))
    voc = _place("JPEGImages", resolve(source), "VOCdevkit/VOC2012", download, *published)
    if sbd:
        published = SBDataset.url, SBDataset.filename, SBDataset.md5
        sbd = _place("cls", resolve(sbd), "benchmark_RELEASE/dataset", download, *published)
    folder = voc / "ImageSets" / "Segmentation"
    test = ["test"] if (folder / "test.txt").is_file() else []
    lists, classes = {name: read_list(folder / f"{name}.txt") for name in ["train", "val", *test]}, {}
    if sbd:
        extra = {*read_list(sbd / "train.txt"), *read_list(sbd / "val.txt")} - {*lists["val"], *lists["train"]}
        classes = {name: sbd / "cls" / f"{name}.mat" for name in sorted(extra)}
        require(list(classes.values()), f"SBD's masks of images in {sbd}/train.txt and val.txt")
        lists["train_aug"] = sorted({*lists["train"], *extra})
    verify("voc", lists, any_count)
    named = sorted(set().union(*lists.values()))
    require([voc / "JPEGImages" / f"{name}.jpg" for name in named], "named in a list of VOC or SBD")
    labelled = sorted(set().union(*(names for part, names in lists.items() if part != "test")))
    annotations = [voc / "Annotations" / f"{name}.xml" for name in labelled]
    require(annotations, "image labels come from it")
    masks = [voc / "SegmentationClass" / f"{name}.png" for name in sorted({*lists["train"], *lists["val"]})]
    if not any_count and any(mask.is_file() for mask in masks):  # training needs none
        require(masks, "one of VOC's own masks")
    labels = {name: read_xml(file) for name, file in zip(labelled, annotations, strict=True)}

    begin(out, {"dataset": "voc", "images": {name: digest("\n".join(images)) for name, images in lists.items()}})
    link(voc / "JPEGImages", out / "JPEGImages")
    for mask in filter(Path.is_file, masks):
        link(mask, out / "SegmentationClass" / mask.name)
    for name, file in bar(classes.items(), "masks of SBD"):
        path = out / "SegmentationClass" / f"{name}.png"
        if not path.is_file():
            save_palette_png(_sbd_mask(file), path)
    return finish("voc", out, lists, labels)


def _place(name: str, source: Path, inside: str, download: bool, url: str, archive: str, md5: str) -> Path:
    """The folder that holds the folder ``name``: ``source``, or ``inside`` it, where the ``archive`` unpacks to.
    ``download`` fetches and unpacks that, again after a stop, unless one's own copy is there. Errors: ``DataError``."""
    places, unpacked = (source, source / inside), source / f"{archive}.unpacked"
    own = any((place / name).is_dir() for place in places) and not (source / archive).is_file()
    if download and not own and not unpacked.is_file():
        try:
            download_and_extract_archive(url, str(source), filename=archive, md5=md5)
        except (RuntimeError, OSError, EOFError, tarfile.TarError, HTTPException) as error:
            what = f"{url} into {source / archive} (MD5 {md5}): {error}"
            raise DataError(f"{what}; run the same command again, or put the files there yourself") from error
        write_text(unpacked, "")
    for place in places:
        if (place / name).is_dir():
            return place
    raise DataError(f"{source}: no folder {name}, nor in {inside}; --download (in the notebook, download) fetches it")


def _sbd_mask(path: Path) -> np.ndarray:
    """(H, W) uint8 of 0..20 from an SBD file. Errors: ``DataError``."""
    try:
        mask = loadmat(path)["GTcls"][0]["Segmentation"][0]
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise DataError(f"{path}: no mask of SBD ({error}); unpack the archive again") from error
    if mask.ndim != 2 or mask.max() > len(VOC_CLASSES):
        raise DataError(f"{path}: mask of shape {mask.shape} with id {mask.max()}; known: 0..{len(VOC_CLASSES)}")
    return mask.astype(np.uint8)


def verify(dataset: str, lists: dict[str, list[str]], any_count: bool) -> None:
    """``DataError`` if a list is not as long as published, names an image twice, or shares one with another."""
    for name, images in lists.items():
        if not any_count and len(images) != PUBLISHED[dataset][name]:
            counts = f"list {name} holds {len(images)} images, the published one {PUBLISHED[dataset][name]}"
            raise DataError(f"{dataset}: {counts}; complete the source, or accept it with --any-count")
        if len({*images}) < len(images):
            raise DataError(f"{dataset}: list {name} names {Counter(images).most_common(1)[0][0]} twice")
    for one, other in combinations(lists, 2):
        if {one, other} != {"train", "train_aug"} and (shared := sorted({*lists[one]} & {*lists[other]})):
            raise DataError(f"{dataset}: {shared[0]} ({len(shared)} in all) is in {one} and in {other}; mixed up?")


def begin(out: Path, sources: dict[str, Any]) -> None:
    """Note what ``out`` is made from. Errors: ``DataError`` if it was begun from something else."""
    path, text = out / "sources.json", json.dumps(sources, indent=1) + "\n"
    if path.is_file() and path.read_text() != text:
        raise DataError(f"{out} was begun from other lists or annotations; give another folder, or delete this one")
    write_text(path, text)


def digest(content: str | bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def link(target: Path, path: Path) -> None:
    """A symbolic link, made once. Errors: ``DataError`` if something else is in its place."""
    if not (path.is_symlink() or path.exists()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
    elif not path.is_symlink() or path.readlink() != target:
        raise DataError(f"{path}: there already, and no link to {target}; give an empty folder")


def finish(dataset: str, out: Path, lists: dict[str, list[str]], labels: dict[str, list[str]]) -> Path:
    """A look at every image and mask, then lists, labels and the manifest; returns ``out``. Errors: ``DataError``."""
    texts = {f"ImageSets/Segmentation/{name}.txt": "\n".join(images) + "\n" for name, images in lists.items()}
    texts["image_labels.txt"] = "".join(f"{' '.join([name, *row])}\n" for name, row in sorted(labels.items()))
    every = sorted(set().union(*lists.values()))
    images, masks = (tuple(out / place.format(name) for name in every) for place in PLACES)
    Split(tuple(map(str, range(254))), images, np.zeros((len(every), 254), bool), masks, tuple(range(255))).check(None)
    manifest = {"dataset": dataset, "images": {name: len(images) for name, images in lists.items()},
            "published": all(len(images) == PUBLISHED[dataset][name] for name, images in lists.items()),
            "sha256": {name: digest(text) for name, text in texts.items()}}  # fmt: skip
    masks = hashlib.sha256()  # of all masks together
    for mask in bar(sorted((out / "SegmentationClass").glob("*.png")), "checksums"):
        masks.update(mask.name.encode() + mask.read_bytes())
    manifest["sha256"]["SegmentationClass"] = masks.hexdigest()
    path = out / "manifest.json"
    before = json.loads(path.read_text())["sha256"] if path.is_file() else {}
    if changed := [name for name, digest in before.items() if manifest["sha256"].get(name) != digest]:
        raise DataError(f"{out}: {', '.join(changed)} changed since manifest.json was written; delete it to accept")
    for name, text in texts.items():
        write_text(out / name, text)
    write_text(path, json.dumps(manifest, indent=1) + "\n")
    return out
