"""COCO 2014 or 2017 as it is published, to the one layout that training reads."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from bidir.atomic import write_text
from bidir.config import DataError, resolve
from bidir.data.files import require
from bidir.data.labels import class_list
from bidir.data.make.voc import begin, digest, finish, link, verify
from bidir.data.overlay import save_palette_png
from bidir.progress import bar

KEYS = {  # what is read of the instance annotations
    "images": {"id", "file_name", "width", "height"}, "categories": {"id", "name"},
    "annotations": {"id", "image_id", "category_id"},
}  # fmt: skip


def prepare_coco(source: str | Path, out: str | Path, any_count: bool = False, skip_unusable: bool = False) -> Path:
    """COCO: index masks with 81 classes, labels and lists of the images that show an object.
    ``source`` holds ``annotations/instances_{train,val}2014.json``, ``train2014`` and ``val2014``, or those of 2017.
    Class i is the i-th of the categories by id, spaces in names written as ``_``; of two objects the smaller is in
    front; crowd regions count as their class. ``skip_unusable``: annotations that cannot be drawn are printed and
    left out. Needs pycocotools (extra ``coco``). Errors: ``DataError``."""
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise DataError("COCO masks need pycocotools: pip install 'bidir[coco]'") from error
    source, out, coco = resolve(source), resolve(out), COCO()
    year = "2017" if (source / "annotations/instances_train2017.json").is_file() else "2014"
    read = {part: _read_instances(source / f"annotations/instances_{part}{year}.json") for part in ("train", "val")}
    categories, others = (sorted((c["id"], c["name"]) for c in content["categories"]) for content, _ in read.values())
    if categories != others:
        raise DataError(f"{source}/annotations: train and val name different categories")
    ids = {category: i for i, (category, _) in enumerate(categories, 1)}
    names = class_list([name.replace(" ", "_") for _, name in categories], f"{source}/annotations: categories")
    unusable: list[str] = []
    shown = {part: _objects(content, ids, unusable) for part, (content, _) in read.items()}
    if unusable:
        told = "\n".join([*unusable, f"{len(unusable)} annotations cannot be drawn"])
        if not skip_unusable:
            raise DataError(f"{told}; leave them out by --skip-unusable")
        print(f"{told}: left out")
    lists = {part: [Path(file).stem for file in images] for part, images in shown.items()}
    verify(dataset := f"coco{year.removeprefix('2014')}", lists, any_count)
    files = {part: [source / f"{part}{year}" / file for file in images] for part, images in shown.items()}
    require(files["train"] + files["val"], "named in the instance annotations")

    begin(out, {"dataset": "coco", "annotations": {part: checksum for part, (_, checksum) in read.items()}})
    write_text(out / "classes.txt", "\n".join(["background", *names]) + "\n")
    labels, problems = {}, []
    for part, images in shown.items():
        for (image, objects), file in zip(bar(images.values(), f"masks of {part}"), files[part], strict=True):
            link(file, out / "JPEGImages" / file.name)
            path = out / "SegmentationClass" / f"{file.stem}.png"
            try:
                if not path.is_file():
                    save_palette_png(_coco_mask(coco, image, objects, ids), path)
            except DataError as error:
                problems.append(str(error))
            labels[file.stem] = [names[i - 1] for i in sorted({ids[o["category_id"]] for o in objects})]
    if problems:
        raise DataError("\n".join(problems))
    return finish(dataset, out, lists, labels)


def _read_instances(path: Path) -> tuple[dict[str, Any], str]:
    """The instance annotations, and the digest of their file. Errors: ``DataError``."""
    if not path.is_file():
        raise DataError(f"{path}: not there; get annotations_trainval2014.zip or 2017 from cocodataset.org")
    text = path.read_bytes()
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); was the download cut short?") from error
    if lacking := sorted(
        kind for kind in KEYS if not (isinstance(content, dict) and isinstance(content.get(kind), list))
    ):
        raise DataError(f"{path}: no instance annotations, lacks {lacking[0]!r}")
    for kind, keys in KEYS.items():
        for number, one in enumerate(content[kind]):
            if lacking := sorted(keys - one.keys()):
                raise DataError(f"{path}: number {number} of {kind} lacks {lacking[0]!r}")
    return content, digest(text)


def _objects(content: dict[str, Any], ids: dict[int, int], unusable: list[str]) -> dict[str, tuple[dict, list[dict]]]:
    """File name -> (image, its objects), of the images that have one, by name; the others into ``unusable``."""
    images, objects = {image["id"]: image for image in content["images"]}, defaultdict(list)
    for one in content["annotations"]:
        if wrong := _unusable(one, images, ids):
            unusable.append(f"annotation {one['id']}: {wrong}")
        else:
            objects[one["image_id"]].append(one)
    return dict(sorted({images[i]["file_name"]: (images[i], objects[i]) for i in objects}.items()))


def _unusable(one: dict[str, Any], images: dict[int, dict], ids: dict[int, int]) -> str:
    """Why an annotation cannot be drawn; "" if it can."""
    outline, image = one.get("segmentation"), images.get(one["image_id"])
    if one["category_id"] not in ids:
        return f"category {one['category_id']} is not among the categories {sorted(ids)}"
    if image is None:
        return f"image {one['image_id']} is not among the images"
    if not isinstance(one.get("area"), int | float):
        return f"area = {one.get('area')!r} of {image['file_name']}"
    if isinstance(outline, dict):
        fits = "counts" in outline and outline.get("size") == [image["height"], image["width"]]
    else:
        fits = outline and all(isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 for part in outline)
    return "" if fits else f"no outline in {image['file_name']}"


def _coco_mask(coco: Any, image: dict, objects: list[dict], ids: dict[int, int]) -> np.ndarray:
    """(H, W) uint8 of class indices: crowds first, then large to small. Errors: ``DataError``."""
    coco.imgs = {image["id"]: image}
    mask = np.zeros((image["height"], image["width"]), np.uint8)
    for one in sorted(objects, key=lambda o: (-(o.get("iscrowd") or 0), -o["area"])):
        try:
            mask[coco.annToMask(one).astype(bool)] = ids[one["category_id"]]
        except Exception as error:  # pycocotools raises bare exceptions
            raise DataError(f"annotation {one['id']} of {image['file_name']}: no outline ({error})") from error
    return mask
