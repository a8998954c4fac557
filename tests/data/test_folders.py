"""VOC layout and a folder with a CSV: the labels of each source, and every kind of bad input."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bidir.config import ConfigError, DataError, RunConfig
from bidir.data.open import open_split
from bidir.data.overlay import save_palette_png


@pytest.mark.parametrize("source", ["file", "xml", "masks"])
def test_voc_labels_are_the_same_from_each_source(voc, source):
    split = open_split(voc.replace(label_source=source, classes=["dog", "cat"]), "train")
    assert split.class_names == ("dog", "cat")
    assert split.names == ("a", "b")  # c holds neither
    assert split.labels.tolist() == [[False, True], [True, True]]


def test_folder_reads_the_csv(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    Image.new("L", (40, 40)).save(tmp_path / "y.jpg")  # grey: converted
    table = pd.DataFrame({"file": ["x.png", "y.jpg"], "labels": ["zebra ant", "ant"], "split": ["train", "val"]})
    table.to_csv(tmp_path / "labels.csv", index=False)
    config = RunConfig(dataset="folder", data_root=str(tmp_path))
    split = open_split(config, "train")
    assert split.class_names == ("ant", "zebra")
    assert split.labels.tolist() == [[True, True]]
    assert open_split(config, "val").read_image(0).shape == (40, 40, 3)
    assert open_split(config, "val").class_names == ("ant", "zebra")  # also where val holds no zebra
    with pytest.raises(ConfigError, match="part = 'test'"):
        open_split(config, "test")
    (tmp_path / "a").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "a" / "x.png")
    twins = pd.DataFrame({"file": ["x.png", "a/x.png"], "labels": ["ant", "ant"], "split": ["train", "train"]})
    twins.to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(DataError, match="a second image is called 'x'"):
        open_split(config, "train")
    table.drop(columns="split").to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(DataError, match="set holdout"):
        open_split(config, "val")
    assert len(open_split(config.replace(holdout=0.5), "val")) == 1


def break_list(root):
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\nghost\n")


def break_labels(root):
    (root / "labels.txt").write_text("a cat\nb cat unicorn\nc person\n")


def truncate_jpeg(root):
    path = root / "JPEGImages" / "b.jpg"
    path.write_bytes(path.read_bytes()[:400])


def shrink_mask(root):
    save_palette_png(np.zeros((20, 25), np.uint8), root / "SegmentationClass" / "d.png")


def unknown_id(root):
    save_palette_png(np.full((40, 50), 77, np.uint8), root / "SegmentationClass" / "d.png")


def colour_mask(root):
    Image.new("RGB", (50, 40)).save(root / "SegmentationClass" / "d.png")


def look(config):
    """Decode all that a run would."""
    open_split(config, "train").check(masks=False, progress=False)
    open_split(config, "val").check(masks=True, progress=False)


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (lambda root: None, {"data_root": "/nowhere"}, "data_root = '/nowhere'"),
        (lambda root: shutil.rmtree(root / "JPEGImages"), {}, "no folder JPEGImages"),
        (lambda root: (root / "ImageSets/Segmentation/train.txt").write_text(""), {}, "names no image"),
        (lambda root: None, {"train_list": "trian"}, "lists in that folder: train, val"),
        (break_list, {}, "ghost.jpg: missing, named in"),
        (break_labels, {}, "image 'b' has label 'unicorn'; known: aeroplane"),
        (lambda root: (root / "labels.txt").write_text("a cat\n"), {}, "no line for image 'b'"),
        (lambda root: (root / "labels.txt").unlink(), {}, "labels.txt'"),
        (lambda root: None, {"classes": ["catt"]}, "['catt'] not in the class list"),
        (lambda root: None, {"classes": ["bus"]}, "no image with any of the classes bus"),
        (lambda root: None, {"holdout": 0.01}, "leaves one side empty"),
        (truncate_jpeg, {}, "b.jpg: the image cannot be read"),
        (shrink_mask, {}, "mask of (25, 20) pixels for an image of (50, 40)"),
        (unknown_id, {}, "unknown ids [77]"),
        (colour_mask, {}, "a mask needs one channel"),
        (unknown_id, {"label_source": "masks"}, "d.png: unknown ids [77]; known: 0..20"),
        (lambda root: (root / "SegmentationClass/b.png").unlink(), {"label_source": "masks"}, "b.png: the mask cannot"),
        (lambda root: (root / "SegmentationClass/d.png").unlink(), {}, "d.png: the mask cannot be read"),
    ],
)  # fmt: skip
def test_bad_datasets_are_named(voc, tmp_path, damage, changes, message):
    damage(tmp_path)
    config = voc.replace(**changes)
    with pytest.raises(DataError) as error:
        look(config)
    assert message in str(error.value)
