"""Pseudo-masks of a whole list, and the archive for VOC's test server."""

import dataclasses
import json
import tarfile

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bidir.apply.masks import export_pseudo_masks, export_voc_archive
from bidir.config import DataError, RunConfig
from bidir.data.folders import VOC_CLASSES
from bidir.data.make.voc import prepare_voc
from bidir.data.open import open_split
from bidir.method.network import DualBranchNetwork
from bidir.run.checkpoint import save_checkpoint
from bidir.run.training import fit


def test_pseudo_masks_of_a_split_open_no_mask(short, tmp_path, monkeypatch):
    config, path = short
    monkeypatch.setattr("bidir.data.split.Split.read_mask", lambda *_: pytest.fail("a mask was opened"))
    table = export_pseudo_masks(path / "checkpoint.pt", "val", tmp_path)
    assert len(table) == config.scenes_val
    split = open_split(config, "val")
    for index, name in enumerate(split.names):
        present = {0, *(np.flatnonzero(split.labels[index]) + 1)}
        assert set(np.unique(np.array(Image.open(tmp_path / f"{name}.png")))) <= present


def test_pseudo_masks_go_on_where_they_stopped_and_are_not_mixed(short, tmp_path):
    _, path = short
    before = export_pseudo_masks(path / "checkpoint.pt", "val", tmp_path)
    gone, kept = (tmp_path / f"{name}.png" for name in before["image"][:2])
    content, time = gone.read_bytes(), kept.stat().st_mtime_ns
    gone.unlink()
    after = export_pseudo_masks(path / "checkpoint.pt", "val", tmp_path)
    assert gone.read_bytes() == content
    assert kept.stat().st_mtime_ns == time
    pd.testing.assert_frame_equal(before, after)
    for changes in ({"map_name": "y_c"}, {"eval_size": 64}, {"part": "train"}):
        with pytest.raises(DataError, match="masks of another model, dataset, map"):
            export_pseudo_masks(path / "checkpoint.pt", **{"part": "val", "out_dir": tmp_path, **changes})
    (tmp_path / "made_by.json").unlink()
    with pytest.raises(DataError, match="masks of another model"):  # who knows whose
        export_pseudo_masks(path / "checkpoint.pt", "val", tmp_path)


def test_pseudo_masks_of_some_classes_train_a_second_model(published_voc, tiny, tmp_path):
    """They carry the dataset's own ids: cat is 8 and dog 12, whatever their place among the model's classes."""
    out = prepare_voc(published_voc[0], tmp_path / "out", published_voc[1], any_count=True)
    config = RunConfig(**tiny, data_root=str(out), train_list="train_aug", classes=("dog", "cat"),
                       runs_dir=str(tmp_path / "runs"))  # fmt: skip
    first = fit(config, progress=False)
    export_pseudo_masks(first / "checkpoint.pt", "train", tmp_path / "pseudo", "cam")
    ids = {path.stem: {*np.unique(np.array(Image.open(path)))} for path in (tmp_path / "pseudo").glob("*.png")}
    assert ids.keys() == {"t1", "t2", "s1", "s3"}
    assert {i for found in ids.values() for i in found} <= {0, 8, 12}
    assert 8 in ids["s1"]
    assert 12 not in ids["s1"]  # its image label says cat
    for path in (tmp_path / "pseudo").glob("*.png"):
        target = out / "SegmentationClass" / path.name
        target.unlink()
        path.rename(target)
    second = fit(config.replace(supervision="full"), progress=False)
    assert (second / "DONE").is_file()


def test_the_archive_for_the_test_server(quick, tmp_path):
    """Palette PNGs at the images' own sizes, in the folder that VOC's development kit names; no labels, no masks."""
    torch.manual_seed(0)
    model = DualBranchNetwork(quick, 20).state_dict()
    told = {"config": json.dumps(dataclasses.asdict(quick)), "classes": VOC_CLASSES, "step": 0}
    save_checkpoint(tmp_path / "voc.pt", {"model": model, **told})
    root = tmp_path / "VOC2012"
    sizes = {"2008_000006": (70, 96), "2008_000011": (96, 64)}
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "test.txt").write_text("\n".join(sizes) + "\n")
    for (name, size), suffix in zip(sizes.items(), (".jpg", ".PNG"), strict=True):
        Image.new("RGB", size, "green").save(root / "JPEGImages" / f"{name}{suffix}")
    out = export_voc_archive(tmp_path / "voc.pt", "test", tmp_path / "results.tgz", "raw", data_root=str(root))
    with tarfile.open(out) as archive:
        names = [f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png" for name in sizes]
        assert archive.getnames() == names
        for name, size in zip(names, sizes.values(), strict=True):
            with Image.open(archive.extractfile(name)) as picture:
                assert (picture.mode, picture.size) == ("P", size)
                assert np.array(picture).max() <= 20
    with pytest.raises(DataError, match="the archive needs to be a"):
        export_voc_archive(tmp_path / "voc.pt", "test", tmp_path / "results.zip", data_root=str(root))


def test_the_archive_takes_vocs_classes_alone(short, tmp_path):
    with pytest.raises(DataError, match="VOC's twenty classes; the model knows hare"):
        export_voc_archive(short[1] / "checkpoint.pt", "test", tmp_path / "results.tgz")
