"""VOC 2012 (with SBD) and COCO 2014 as they are published, to the one layout that training reads.

The prepared folder links to the published images and holds lists, masks, image labels and a manifest, which
is written last. A call that was stopped goes on; masks that are there are not made again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat
from torchvision.datasets import SBDataset, VOCSegmentation
from tqdm import tqdm

from bidir.config import RunConfig, resolve
from bidir.data.split import DataError
from bidir.data.voc import VOC_CLASSES, read_list, read_voc, read_xml, require
from bidir.files import write_text
from bidir.palette import save_palette_png

PUBLISHED = {  # images per list: VOC's own lists, VOC with SBD without val; COCO images that show an object
    "voc": {"train": 1464, "val": 1449, "test": 1456, "train_aug": 10582},
    "coco": {"train": 82081, "val": 40137},
}


def prepare_voc(
    source: str | Path, out: str | Path, sbd: str | Path | None = None, download: bool = False, any_count: bool = False
) -> Path:
    """VOC 2012 with, if ``sbd`` is given, the augmented list ``train_aug`` and its masks made from SBD's .mat files.

    Args: ``source`` holds ``VOCdevkit/VOC2012`` or is that folder; ``sbd`` holds ``cls/``, ``train.txt`` and
    ``val.txt``; ``download`` fetches what is lacking of both (torchvision); ``any_count`` accepts lists of other
    lengths than the published. Image labels come from the XML files. Errors: ``DataError``.
    """
    source, out = resolve(source), resolve(out)
    sbd = resolve(sbd) if sbd else None
    if download:
        _download(source, sbd)
    voc = next((p for p in (source, source / "VOCdevkit" / "VOC2012") if (p / "JPEGImages").is_dir()), None)
    if voc is None:
        raise DataError(f"{source}: neither JPEGImages nor VOCdevkit/VOC2012/JPEGImages there; --download fetches VOC")
    folder = voc / "ImageSets" / "Segmentation"
    lists = {name: read_list(folder / f"{name}.txt") for name in ("train", "val")}
    if (folder / "test.txt").is_file():
        lists["test"] = read_list(folder / "test.txt")
    classes = {}
    if sbd:
        root = next((p for p in (sbd, sbd / "benchmark_RELEASE" / "dataset") if (p / "cls").is_dir()), None)
        if root is None:
            raise DataError(f"{sbd}: no folder cls in it (nor in benchmark_RELEASE/dataset); --download fetches SBD")
        extra = {*read_list(root / "train.txt"), *read_list(root / "val.txt")} - {*lists["val"], *lists["train"]}
        classes = {name: root / "cls" / f"{name}.mat" for name in sorted(extra)}
        require(list(classes.values()), f"SBD's masks of images in {root}/train.txt and val.txt")
        lists["train_aug"] = sorted({*lists["train"], *extra})
    _verify("voc", lists, any_count)
    named = sorted(set().union(*lists.values()))
    require([voc / "JPEGImages" / f"{name}.jpg" for name in named], "named in a list of VOC or SBD")
    labelled = sorted(set().union(*(names for part, names in lists.items() if part != "test")))
    annotations = [voc / "Annotations" / f"{name}.xml" for name in labelled]
    require(annotations, "image labels come from it")
    labels = {name: read_xml(file) for name, file in zip(labelled, annotations, strict=True)}

    _link(voc / "JPEGImages", out / "JPEGImages")
    for name in {*lists["train"], *lists["val"]}:
        mask = voc / "SegmentationClass" / f"{name}.png"
        if mask.is_file():  # training needs none
            _link(mask, out / "SegmentationClass" / mask.name)
    for name, file in tqdm(classes.items(), "masks of SBD", unit="image"):
        path = out / "SegmentationClass" / f"{name}.png"
        if not path.is_file():
            save_palette_png(_sbd_mask(file), path)
    return _finish("voc", out, lists, labels)


def prepare_coco(source: str | Path, out: str | Path, any_count: bool = False) -> Path:
    """COCO 2014: index masks with 81 classes, labels and lists of the images that show an object.

    ``source`` holds ``annotations/instances_{train,val}2014.json`` and the folders ``train2014``, ``val2014``.
    Class i is the i-th of the categories by id, spaces in names written as ``_``. Where objects overlap the
    smaller is in front; crowd regions count as their class. Needs pycocotools (extra ``coco``). Errors: ``DataError``.
    """
    source, out = resolve(source), resolve(out)
    parts = {part: _read_instances(source / "annotations" / f"instances_{part}2014.json") for part in ("train", "val")}
    categories = {
        part: sorted((c["id"], c["name"].replace(" ", "_")) for c in parts[part]["categories"]) for part in parts
    }
    if categories["train"] != categories["val"]:
        raise DataError(f"{source}/annotations: train and val name different categories")
    ids = {category: i for i, (category, _) in enumerate(categories["train"], 1)}
    shown = {part: _objects(content, ids, part) for part, content in parts.items()}
    lists = {part: [Path(file).stem for file in images] for part, images in shown.items()}
    _verify("coco", lists, any_count)
    files = {part: [source / f"{part}2014" / file for file in images] for part, images in shown.items()}
    require(files["train"] + files["val"], "named in the instance annotations")

    write_text(out / "classes.txt", "\n".join(["background", *(name for _, name in categories["train"])]) + "\n")
    names, labels = dict(enumerate((name for _, name in categories["train"]), 1)), {}
    for part, images in shown.items():
        for (image, objects), file in zip(tqdm(images.values(), f"masks of {part}"), files[part], strict=True):
            _link(file, out / "JPEGImages" / file.name)
            path = out / "SegmentationClass" / f"{file.stem}.png"
            if not path.is_file():
                save_palette_png(_coco_mask(image, objects, ids), path)
            labels[file.stem] = [names[i] for i in sorted({ids[o["category_id"]] for o in objects})]
    return _finish("coco", out, lists, labels)


def _download(source: Path, sbd: Path | None) -> None:
    """Fetch VOC 2012 and SBD where they are not there; a broken archive is fetched again. Errors: ``DataError``."""
    try:
        if not any((p / "JPEGImages").is_dir() for p in (source, source / "VOCdevkit" / "VOC2012")):
            VOCSegmentation(str(source), "2012", "train", download=True)
        if sbd and not (sbd / "cls").is_dir():
            SBDataset(str(sbd), "train", "segmentation", download=True)
    except (RuntimeError, OSError, EOFError) as error:
        raise DataError(
            f"download into {source}: {error}; run the same command again, or put the files there yourself"
        ) from error


def _sbd_mask(path: Path) -> np.ndarray:
    """(H, W) uint8 of 0..20 from an SBD file. Errors: ``DataError``."""
    try:
        mask = loadmat(path)["GTcls"][0]["Segmentation"][0]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path}: no mask of SBD ({error}); unpack the archive again") from error
    if mask.ndim != 2 or mask.max() > len(VOC_CLASSES):
        raise DataError(f"{path}: mask of shape {mask.shape} with id {mask.max()}; known: 0..{len(VOC_CLASSES)}")
    return mask.astype(np.uint8)


def _read_instances(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: not there; get annotations_trainval2014.zip from cocodataset.org")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); was the download cut short?") from error
    lacking = {"images", "annotations", "categories"} - set(content if isinstance(content, dict) else ())
    if lacking:
        raise DataError(f"{path}: no instance annotations, lacks {sorted(lacking)[0]!r}")
    return content


def _objects(content: dict[str, Any], ids: dict[int, int], part: str) -> dict[str, tuple[dict, list[dict]]]:
    """File name -> (image, its objects), of the images that have one, by name. Errors: ``DataError``."""
    images = {image["id"]: image for image in content["images"]}
    objects = defaultdict(list)
    for one in content["annotations"]:
        if one["category_id"] not in ids:
            raise DataError(
                f"{part}, annotation {one['id']}: category {one['category_id']} is not among the categories"
            )
        if one["image_id"] not in images:
            raise DataError(f"{part}, annotation {one['id']}: image {one['image_id']} is not among the images")
        objects[one["image_id"]].append(one)
    found = {images[i]["file_name"]: (images[i], objects[i]) for i in objects}
    return dict(sorted(found.items()))


def _coco_mask(image: dict, objects: list[dict], ids: dict[int, int]) -> np.ndarray:
    """(H, W) uint8 of class indices: crowds first, then large to small. Errors: ``DataError``."""
    coco = _pycocotools()
    coco.imgs = {image["id"]: image}
    mask = np.zeros((image["height"], image["width"]), np.uint8)
    for one in sorted(objects, key=lambda o: (-o.get("iscrowd", 0), -o["area"])):
        try:
            mask[coco.annToMask(one).astype(bool)] = ids[one["category_id"]]
        except Exception as error:  # pycocotools raises bare exceptions
            raise DataError(f"annotation {one['id']} of {image['file_name']}: no outline ({error})") from error
    return mask


def _pycocotools() -> Any:
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise DataError("COCO masks need pycocotools: pip install 'bidir[coco]'") from error
    with redirect_stdout(io.StringIO()):
        return COCO()


def _verify(dataset: str, lists: dict[str, list[str]], any_count: bool) -> None:
    """``DataError`` if a list is not as long as published, or lists that must not share an image do."""
    for name, images in lists.items():
        if not any_count and len(images) != PUBLISHED[dataset][name]:
            raise DataError(
                f"{dataset}: list {name} holds {len(images)} images, the published one {PUBLISHED[dataset][name]}; "
                "complete the source, or accept it with --any-count"
            )
        shared = sorted({*images} & {*lists["val"]}) if name != "val" else []
        if shared:
            raise DataError(
                f"{dataset}: {shared[0]} ({len(shared)} in all) is in {name} and in val; are they mixed up?"
            )


def _link(target: Path, path: Path) -> None:
    """A symbolic link, made once. Errors: ``DataError`` if something else is in its place."""
    if path.is_symlink() and Path(os.readlink(path)) == target:
        return
    if path.is_symlink() or path.exists():
        raise DataError(f"{path}: there already, and no link to {target}; give an empty folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def _finish(dataset: str, out: Path, lists: dict[str, list[str]], labels: dict[str, list[str]]) -> Path:
    """Lists, image labels, a look at every image, and the manifest; returns ``out``. Errors: ``DataError``."""
    for name, images in lists.items():
        write_text(out / "ImageSets" / "Segmentation" / f"{name}.txt", "\n".join(images) + "\n")
    lines = [" ".join([name, *classes]) for name, classes in sorted(labels.items())]
    write_text(out / "image_labels.txt", "\n".join(lines) + "\n")
    config = RunConfig(dataset="voc", data_root=str(out))
    for name in lists.keys() - {"test"}:
        read_voc(config, name).check(masks=False)
    told = {"dataset": dataset, "images": {name: len(images) for name, images in lists.items()},
            "published": all(len(images) == PUBLISHED[dataset][name] for name, images in lists.items()),
            "sha256": dict(_digests(out, lists))}  # fmt: skip
    path = out / "manifest.json"
    before = json.loads(path.read_text())["sha256"] if path.is_file() else {}
    changed = [name for name, digest in before.items() if told["sha256"].get(name) != digest]
    if changed:
        raise DataError(f"{out}: {', '.join(changed)} changed since manifest.json was written; delete it to accept")
    write_text(path, json.dumps(told, indent=1) + "\n")
    return out


def _digests(out: Path, lists: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """SHA-256 of every list, of the image labels and of all masks together."""
    for name in ("image_labels.txt", *(f"ImageSets/Segmentation/{name}.txt" for name in lists)):
        yield name, hashlib.sha256((out / name).read_bytes()).hexdigest()
    masks = hashlib.sha256()
    for path in tqdm(sorted((out / "SegmentationClass").glob("*.png")), "checksums", unit="mask"):
        masks.update(path.name.encode() + path.read_bytes())
    yield "SegmentationClass", masks.hexdigest()
