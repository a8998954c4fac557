"""Masks of a whole list of images: pseudo-masks for a second stage, and the archive that VOC's test server takes."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bidir.apply.predict import check_map, image_paths, open_model, own_split, segment
from bidir.atomic import write_bytes
from bidir.config import DataError, resolve
from bidir.data.files import find, read_list
from bidir.data.folders import VOC_CLASSES
from bidir.data.split import Split
from bidir.method import distributed


def export_pseudo_masks(
    checkpoint: str | Path, part: str, out_dir: str | Path, map_name: str = "seed", protocol: str = "ms", **where: Any
) -> pd.DataFrame:
    """Pseudo-masks of ``part`` (train | val) of the dataset a run was trained on, as VOC palette PNG.
    Uses the dataset's image labels and mask ids, opens no mask. ``where`` overrides fields, such as ``data_root``. A
    stopped call goes on; several processes share the images. Returns and writes the table that ``predict`` does."""
    check_map(map_name, protocol)
    network, config, class_names = open_model(checkpoint, **where)
    split = own_split(config, part, class_names)
    return segment(network, config, split, Path(out_dir), True, map_name, protocol, overlays=False, resume=True)


def export_voc_archive(checkpoint: str | Path, names: str, out: str | Path, protocol: str = "ms", **where: Any) -> Path:
    """Branch-S's masks of list ``names`` (``test``), without labels, as archive for VOC's test server, unreachable in
    2026. ``out``: a ``.tgz``; masks stay beside it, a stopped call goes on. Errors: ``DataError``, ``WeightsError``."""
    check_map("branch_s", protocol)
    network, config, class_names = open_model(checkpoint, **where)
    root, out = resolve(config.data_root), Path(out)
    if list(class_names) != VOC_CLASSES:
        raise DataError(f"the test server scores VOC's twenty classes; the model knows {', '.join(class_names)}")
    if Path(names).name != names:
        raise DataError(f"list = {names!r}: needs to be the name of a list in ImageSets/Segmentation")
    if out.suffix != ".tgz":
        raise DataError(f"{out}: the archive needs to be a .tgz")
    photos = root / "JPEGImages"
    images = find(photos, read_list(root / f"ImageSets/Segmentation/{names}.txt", photos), ".jpg")
    split = Split(class_names, tuple(image_paths(images)), np.zeros((len(images), 20), bool), None, tuple(range(21)))
    inside = f"results/VOC2012/Segmentation/comp6_{names}_cls"
    folder = out.with_name(f"{out.stem}_masks") / inside
    segment(network, config, split, folder, True, "branch_s", protocol, overlays=False, resume=True)
    if distributed.rank() == 0:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz") as archive:
            for name in split.names:
                archive.add(folder / f"{name}.png", f"{inside}/{name}.png")
        write_bytes(out, content.getvalue())
    return out
