"""Image labels as people have them, held against one list of classes: cells, lines, columns, arrays, XML, folders."""

import io
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pandas as pd

from bidir.config import DataError
from bidir.data.files import is_picture, read_text

VOC_CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()
BETWEEN = r",;|/\t"  # parts the labels of an image, as blanks do
AROUND = ",;|/\t\r\n []'\""  # may stand around one
USES = ("file", "filename", "image", "name", "path"), ("labels", "label", "class", "classes"), ("split",)  # columns
ON, OFF = ("1", "1.0", "True", "TRUE", "true"), ("", "0", "0.0", "False", "FALSE", "false")
NO_CLASS = "leave the labels of an image that shows none empty"


class Row(NamedTuple):
    """What is written of an image: its file, its labels as text or whether each class is there, its split."""

    file: str
    labels: str | dict[str, bool]
    split: str | None = None


def class_list(names: list[str], where: Path | str) -> list[str]:
    """``names``, if they can be classes: each once, none background, no more than ids in a mask. Else ``DataError``."""
    if wrong := [name for name in names if _is_background(name)]:
        raise DataError(f"{where}: {wrong[0]!r} is no class; {NO_CLASS}")
    lower = Counter(name.lower() for name in names)
    if wrong := [name for name in names if lower[name.lower()] > 1] or names[254:]:
        raise DataError(f"{where}: class {wrong[0]!r} is there twice, or one more than a mask has ids for (254)")
    return names


def _is_background(name: str) -> bool:
    return name.strip("_ ").lower() == "background"


def known_classes(path: Path | None) -> list[str]:
    """The names in a ``classes.txt``, a line each or all in one, without the background that it begins with; VOC's
    twenty if it is not there. Errors: ``DataError``."""
    if not path or not path.is_file():
        return list(VOC_CLASSES)
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    first, *names = re.split(rf"[\s{BETWEEN}]+", lines[0]) if len(lines) == 1 else lines or [""]
    if not _is_background(first):
        raise DataError(f"{path}: begins with {first!r}; the first line is background, the class of id 0")
    return class_list(names, path)


def names_in(rows: list[Row], known: list[str], source: Path) -> list[list[str]]:
    """The classes of ``known`` that each row names; in a text the longest first: they may hold blanks and commas.
    Errors: ``DataError`` that names what is not known."""
    names = "|".join(map(re.escape, sorted(known, key=len, reverse=True))) or "(?!)"
    one_of, labels = re.compile(rf"({names})(?=[{re.escape(AROUND)}]|$)"), []
    for row in rows:
        if isinstance(row.labels, dict):
            found = [name for name, there in row.labels.items() if there]
            unknown = next((name for name in found if name not in known), "")
        else:
            found, unknown = [], row.labels.strip(AROUND)
            while match := one_of.match(unknown):
                found.append(match[1])
                unknown = unknown[match.end() :].strip(AROUND)
            unknown = re.split(rf"[\s{BETWEEN}]", unknown)[0]
        if unknown:
            fix = NO_CLASS if _is_background(unknown) else f"known: {', '.join(known)}"
            raise DataError(f"{source}: image {Path(row.file).name!r} has label {unknown!r}; {fix}")
        labels.append(found)
    return labels


def classes_of(rows: list[Row], path: Path) -> list[str]:
    """The classes that rows name, sorted, where no list says which there are: if a comma or the like parts labels,
    blanks belong to names. Errors: ``DataError`` where it cannot be told what is one class."""
    cells = [row.labels.strip(AROUND) for row in rows if isinstance(row.labels, str)]
    parted = any(re.search(rf"[{BETWEEN}]", cell) for cell in cells)
    pieces = [{p.strip(AROUND) for p in re.split(rf"[{BETWEEN}]" if parted else r"\s+", cell)} for cell in cells]
    names, seen = sorted(set().union(*pieces, *(row.labels for row in rows if isinstance(row.labels, dict))) - {""}), {}
    for name in names if cells else ():
        twin = seen.setdefault(tuple(name in row for row in pieces), name)  # in the same rows
        if (" " in name and {*name.split()} <= {*names}) or (not parted and twin != name):
            fix = f"list the classes in {path.parent / 'classes.txt'}, background first"
            raise DataError(f"{path}: one class or several: {name!r}{'' if twin == name else f', {twin!r}'}? {fix}")
    return class_list(names, path)


def read_rows(path: Path, known: list[str], images: list[str]) -> list[Row]:
    """What a file says of images: a CSV with columns file, labels (or one of 0 and 1 for each class), split; a ``.npy``
    of a dictionary of names and of arrays in the order of ``known``; else lines ``name class class``, where names with
    blanks are those among ``images``. Errors: ``DataError``."""
    if path.suffix.lower() == ".npy":
        return _read_npy(path, known)
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    named = "|".join(re.escape(name) for name in sorted(images, key=len, reverse=True) if " " in name)
    begins, rows = re.compile(rf"(?:{named})(?:\.\w+)?(?=[\s,;]|$)|[^\s,;]*"), []
    for line in filter(None, map(str.strip, read_text(path).splitlines())):
        first = begins.match(line)[0]
        rows.append(Row(first, line[len(first) :]))
    return rows


def _read_csv(path: Path) -> list[Row]:
    text = read_text(path)
    how = {"sep": max(",;\t", key=text.partition("\n")[0].count), "dtype": str, "keep_default_na": False}
    try:
        table = pd.read_csv(io.StringIO(text), header=None, **how).map(str.strip)
    except ValueError as error:  # also of pandas' own kinds
        raise DataError(f"{path}: {error}; labels that hold a comma stand in quotes") from error
    head, table = table.iloc[0].tolist(), table[1:][table[1:].any(axis=1)]
    files, labels, splits = ([i for i, name in enumerate(head) if name.lower() in use] for use in USES)
    hot = [i for i in range(len(head)) if i not in files + splits]
    if len(files) != 1 or len(labels) > 1 or not (labels or table[hot].isin([*ON, *OFF]).all(axis=None)):
        raise DataError(f"{path}: columns {head}; needs file,labels, or file and a column of 0 and 1 for each class")
    rows = []
    for line in table.itertuples(index=False):
        there = line[labels[0]] if labels else {head[i]: line[i] in ON for i in hot}
        rows.append(Row(line[files[0]], there, line[splits[0]] if splits else None))
    return rows


class _Arrays(pickle.Unpickler):
    """Makes arrays, and calls nothing else that a file may ask for."""

    def find_class(self, module: str, name: str) -> Any:
        known = np.ndarray, np.dtype, np._core.multiarray._reconstruct, np._core.multiarray.scalar
        return {("numpy", one.__name__): one for one in known}[module.partition(".")[0], name]


def _read_npy(path: Path, known: list[str]) -> list[Row]:
    try:
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            table = _Arrays(file, encoding="latin1").load().item()
        return [Row(str(name), dict(zip(known, map(bool, there), strict=True))) for name, there in table.items()]
    except Exception as error:  # pickle raises many kinds
        what = f"no dictionary of names and of {len(known)} values, one for each class known"
        raise DataError(f"{path}: {what} ({error}); the classes stand in classes.txt, background first") from error


def read_xml(path: Path) -> list[str]:
    """The classes that an annotation of VOC names. Errors: ``DataError``."""
    try:
        names = {(node.text or "").strip() for node in ElementTree.parse(path).iterfind("object/name")}
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path}: not XML ({error})") from error
    if "" in names:
        raise DataError(f"{path}: an object without a name; name it or take the object out")
    return sorted(names)


def rows_of_folders(root: Path) -> list[Row]:
    """One folder per class, in one folder per split or in none; pictures beside the classes' folders show no class."""
    found = [path.relative_to(root).parts for path in sorted(root.rglob("*")) if is_picture(path)]
    found = [parts for parts in found if parts[0] != "masks" and len(parts) <= 3]
    depth = max(map(len, found), default=0)
    placed = [(parts, int(depth == 3 and len(parts) > 1)) for parts in found]  # 1: below the folder of a split
    return [Row("/".join(parts), dict.fromkeys(parts[at:-1], True), parts[0] if at else None) for parts, at in placed]
