"""Datasets on disk: VOC layout, and a folder of images with a CSV of labels."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from PIL import Image

from bidir.config import IGNORE, DataError, RunConfig, resolve
from bidir.data.split import UNREADABLE, Split, label_matrix

VOC_CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()


def read_voc(config: RunConfig, split: str, root: Path | None = None) -> Split:
    """A split of a folder in VOC layout (JPEGImages, SegmentationClass, ImageSets/Segmentation).
    ``classes.txt`` in the folder, if there, lists the class names by mask id, background first;
    otherwise they are VOC's twenty. Errors: ``DataError`` naming the file and the fix."""
    root = root or resolve(config.data_root)
    if not (root / "JPEGImages").is_dir():
        raise DataError(f"data_root = {str(root)!r}: no folder JPEGImages in it; give a folder in VOC layout")
    names = read_list(root / "ImageSets" / "Segmentation" / f"{split}.txt")
    images = [root / "JPEGImages" / f"{name}.jpg" for name in names]
    require(images, f"named in ImageSets/Segmentation/{split}.txt")
    masks = [root / "SegmentationClass" / f"{name}.png" for name in names]
    masks = masks if any(mask.is_file() for mask in masks) else None  # hidden, as of a test list
    known = known_classes(root / "classes.txt")
    class_names = config.classes or tuple(known)
    if unknown := [name for name in class_names if name not in known]:
        raise DataError(f"classes: {unknown} not in the class list; known: {', '.join(known)}")
    labels = _read_labels(config, root, names, masks, known)
    ids = tuple(1 + known.index(name) for name in class_names)
    other = tuple(i + 1 for i in range(len(known)) if i + 1 not in ids)
    matrix = label_matrix(labels, class_names)
    whole = Split(class_names, tuple(images), matrix, masks and tuple(masks), (0, *ids), other)
    return _not_empty(whole.select(np.flatnonzero(matrix.any(1))), f"{root}, split {split!r}")


def read_folder(config: RunConfig, split: str) -> Split:
    """Images plus ``labels.csv`` with columns file, labels (names separated by spaces), optionally split.
    Masks, if any, stand in ``masks/`` as PNG with the image's stem: 0 background, i the i-th class.
    Errors: ``DataError`` naming the file and the fix."""
    root = resolve(config.data_root)
    path = root / "labels.csv"
    if not path.is_file():
        raise DataError(f"{path}: not there; give a CSV with the columns file,labels")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if not {"file", "labels"} <= set(table.columns):
        raise DataError(f"{path}: columns {list(table.columns)}; needs file,labels")
    known = list(config.classes) or sorted({name for row in table["labels"] for name in row.split()})
    twice = table["file"][table["file"].map(lambda file: Path(file).stem).duplicated()]
    if len(twice):
        name = Path(twice.iloc[0]).stem
        raise DataError(f"{path}: a second image is called {name!r}; masks go by that name, rename it")
    if "split" in table.columns:
        table = table[table["split"] == split]
    elif split != config.train_list:
        raise DataError(f"{path}: no column split, so there is no {split!r}; add it, or set holdout above 0")
    labels, images = table["labels"].str.split().tolist(), [root / file for file in table["file"]]
    require(images, f"named in {path}")
    for file, row in zip(images, labels, strict=True):
        _check_labels(file.name, row, known, path)
    masks = tuple(root / "masks" / f"{image.stem}.png" for image in images) if (root / "masks").is_dir() else None
    matrix = label_matrix(labels, tuple(known))
    chosen = Split(tuple(known), tuple(images), matrix, masks, tuple(range(len(known) + 1)))
    return _not_empty(chosen, f"{path}, split {split!r}")


def read_list(path: Path) -> list[str]:
    """The image names in a list of ``ImageSets``. Errors: ``DataError`` if it is not there or names none."""
    if not path.is_file():
        there = sorted(p.stem for p in path.parent.glob("*.txt"))
        raise DataError(f"{path}: not there; lists in that folder: {', '.join(there) or 'none'}")
    if names := path.read_text().split():
        return names
    raise DataError(f"{path}: names no image")


def require(paths: list[Path] | tuple[Path, ...], why: str) -> None:
    """``DataError`` that names the files that are not there, and ``why`` they should be."""
    if missing := [str(path) for path in paths if not path.is_file()]:
        listed = "\n".join(missing[:20]) + ("\n..." if len(missing) > 20 else "")
        count = f" ({len(missing)} in all)" if len(missing) > 1 else ""
        raise DataError(f"{listed}: missing{count}, {why}; add the files or take them off the list")


def known_classes(path: Path | None) -> list[str]:
    """The names in a ``classes.txt``, without the background it begins with; VOC's twenty if it is not there."""
    return path.read_text().split()[1:] if path and path.is_file() else list(VOC_CLASSES)


def _read_labels(config: RunConfig, root: Path, names: list[str], masks: list[Path] | None, known: list[str]):
    """Lists of class names, one per image, from where ``label_source`` says."""
    if config.label_source == "masks":
        if masks is None:
            raise DataError(f"label_source = 'masks', but {root} has no folder SegmentationClass")
        labels, source = [_labels_in(mask, known) for mask in masks], root / "SegmentationClass"
    elif config.label_source == "xml":
        files = [root / "Annotations" / f"{name}.xml" for name in names]
        require(files, "the image labels (label_source = 'xml')")
        labels, source = [read_xml(file) for file in files], root / "Annotations"
    else:
        source = root / config.labels_file
        if not source.is_file():
            raise DataError(f"labels_file = {str(source)!r}: not there; give lines 'name class class ...'")
        table = {line[0]: line[1:] for line in map(str.split, source.read_text().splitlines()) if line}
        missing = [name for name in names if name not in table]
        if missing:
            raise DataError(f"{source}: no line for image {missing[0]!r} ({len(missing)} in all)")
        labels = [table[name] for name in names]
    for name, row in zip(names, labels, strict=True):
        _check_labels(name, row, known, source)
    return labels


def _labels_in(mask: Path, known: list[str]) -> list[str]:
    try:
        with Image.open(mask) as image:
            ids = [int(v) for v in np.unique(np.array(image)) if v not in (0, IGNORE)]
    except UNREADABLE as error:
        raise DataError(f"{mask}: the mask cannot be read ({error}); label_source = 'masks' needs it") from error
    if unknown := [v for v in ids if not 0 < v <= len(known)]:
        raise DataError(f"{mask}: unknown ids {unknown}; known: 0..{len(known)} and 255")
    return [known[v - 1] for v in ids]


def read_xml(path: Path) -> list[str]:
    """The classes that an annotation of VOC names. Errors: ``DataError``."""
    try:
        return sorted({node.text for node in ElementTree.parse(path).iterfind("object/name")})
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: not XML ({error})") from error


def _check_labels(image: str, labels: list[str], known: list[str], source: Path) -> None:
    if not labels:
        raise DataError(f"{source}: image {image!r} has no labels; name its classes or take it off the list")
    if unknown := [name for name in labels if name not in known]:
        raise DataError(f"{source}: image {image!r} has label {unknown[0]!r}; known: {', '.join(known)}")


def _not_empty(split: Split, where: str) -> Split:
    if not len(split):
        raise DataError(f"{where}: no image with any of the classes {', '.join(split.class_names)}")
    return split
