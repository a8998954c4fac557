"""Datasets on disk: VOC layout, and a folder of images with a table of labels or one folder per class."""

from collections import Counter
from pathlib import Path

import numpy as np

from bidir.config import IGNORE, DataError, RunConfig, resolve
from bidir.data.files import find, image_name, read_ids, read_list, require
from bidir.data.labels import VOC_CLASSES as VOC_CLASSES
from bidir.data.labels import Row, class_list, classes_of, known_classes, names_in, read_rows, read_xml, rows_of_folders
from bidir.data.split import Split, label_matrix

PARTS = {"training": "train", "validation": "val", "valid": "val"}  # what a column split may call them


def read_voc(config: RunConfig, split: str, root: Path | None = None) -> Split:
    """A split of a folder in VOC layout (JPEGImages, SegmentationClass, ImageSets/Segmentation).
    ``classes.txt`` in the folder, if there, lists the class names by mask id, background first;
    otherwise they are VOC's twenty. Errors: ``DataError`` naming the file and the fix."""
    root = root or resolve(config.data_root)
    if not (root / "JPEGImages").is_dir():
        raise DataError(f"data_root = {str(root)!r}: no folder JPEGImages in it; give a folder in VOC layout")
    known, photos = known_classes(root / "classes.txt"), root / "JPEGImages"
    names = read_list(root / "ImageSets" / "Segmentation" / f"{split}.txt", photos)
    images, rows = find(photos, names, ".jpg"), [Row(name, {}) for name in names]
    require(images, f"named in ImageSets/Segmentation/{split}.txt")
    masks = find(root / "SegmentationClass", names, ".png")
    source = root / {"xml": "Annotations", "masks": "SegmentationClass"}.get(config.label_source, config.labels_file)
    if config.label_source == "xml":
        files = [source / f"{name}.xml" for name in names]
        require(files, "the image labels (label_source = 'xml')")
        rows = [Row(name, dict.fromkeys(read_xml(file), True)) for name, file in zip(names, files, strict=True)]
    elif config.label_source == "file":
        if not source.is_file():
            there = ", ".join(sorted(path.name for path in root.iterdir() if path.is_file())) or "none"
            raise DataError(f"labels_file = {str(source)!r}: not there (files: {there}); give lines 'name class class'")
        table = {image_name(row.file): row for row in read_rows(source, known, names)}
        if missing := [name for name in names if name not in table]:
            raise DataError(f"{source}: no line for image {missing[0]!r} ({len(missing)} in all)")
        rows = [table[name] for name in names]
    return _split(config, known, rows, images, masks, source, Counter())


def read_folder(config: RunConfig, split: str) -> Split:
    """Images with ``labels.csv`` or ``labels_file``, as ``read_rows`` takes it, or one folder per class.
    Masks, if any, stand in ``masks/`` by the image's stem: 0 background, i the i-th class: of ``classes.txt``, of
    ``classes``, else by name. Errors: ``DataError`` naming the file and the fix."""
    root = resolve(config.data_root)
    listed = known_classes(root / "classes.txt") if (root / "classes.txt").is_file() else [*config.classes]
    path = next((root / name for name in (config.labels_file, "labels.csv") if (root / name).is_file()), None)
    every, path = read_rows(path, listed, []) if path else rows_of_folders(root), path or root / "labels.csv"
    if not any(row.labels for row in every) and config.label_source != "masks":
        raise DataError(
            f"{path}: no labels there; give a CSV with the columns file,labels, a labels_file, or one folder per class"
        )
    known, rows, others = listed or classes_of(every, path), every, Counter()
    if any(row.split is not None for row in every):
        rows = [row for row in every if _part(row.split) == _part(split)]
        parts = {_part(name) for name in (split, config.train_list, config.val_list)}
        others.update(f"of split {row.split!r}" for row in every if _part(row.split) not in parts)
    elif split != config.train_list:
        raise DataError(f"{path}: no column split, so there is no {split!r}; add it, or set holdout above 0")
    images = [root / row.file for row in rows]
    for folder in (root, root / "images"):  # names may lack their suffix or that folder
        found = find(folder, [image_name(row.file) for row in rows], ".jpg")
        images = [image if image.is_file() else other for image, other in zip(images, found, strict=True)]
    require(images, f"named in {path}")
    masks = find(root / "masks", [image.stem for image in images], ".png")
    return _split(config, known, rows, images, masks, path, others)


def _part(split: str | None) -> str:
    name = (split or "").strip().lower()
    return PARTS.get(name, name)


def _split(
    config: RunConfig, known: list[str], rows: list[Row], images: list[Path], masks: list[Path], source: Path,
    left_out: Counter,
) -> Split:  # fmt: skip
    """The images whose rows name a class that is asked for, or none at all. Errors: ``DataError``."""
    names, masked = tuple(class_list([*config.classes], "classes")) or tuple(known), config.label_source == "masks"
    if unknown := [name for name in names if name not in known]:
        raise DataError(f"classes: {unknown} not in the class list; known: {', '.join(known)}")
    if twice := [stem for stem, count in Counter(image.stem for image in images).items() if count > 1]:
        raise DataError(f"{source}: a second image is called {twice[0]!r}; masks go by that name, rename it")
    labels = [_labels_in(mask, known) for mask in masks] if masked else names_in(rows, known, source)
    matrix = label_matrix(labels, names)
    kept = [i for i, row in enumerate(labels) if matrix[i].any() or not row]
    if not kept:
        there = left_out and f"; there are images {', '.join(left_out)}"
        raise DataError(f"{source}: no image with any of the classes {', '.join(names)}{there or ''}")
    left_out["of other classes"] = len(rows) - len(kept)
    ids = tuple(1 + known.index(name) for name in names)
    other = tuple(i + 1 for i in range(len(known)) if i + 1 not in ids)
    there = tuple(masks) if any(mask.is_file() for mask in masks) else None  # hidden, as of a test list
    told = ", ".join(f"{count} {which}" for which, count in left_out.items() if count)
    return Split(names, tuple(images), matrix, there, (0, *ids), other, told).select(np.array(kept))


def _labels_in(mask: Path, known: list[str]) -> list[str]:
    try:
        ids = [int(v) for v in np.unique(read_ids(mask)) if v not in (0, IGNORE)]
    except DataError as error:
        raise DataError(f"{error}; label_source = 'masks' needs it") from error
    if unknown := [v for v in ids if not 0 < v <= len(known)]:
        raise DataError(f"{mask}: unknown ids {unknown}; known: 0..{len(known)} and 255")
    return [known[v - 1] for v in ids]
