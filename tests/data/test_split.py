"""A split: what is opened, what is read of it, what is wrong with it, and its digest."""

import shutil

import numpy as np
import pytest
from PIL import Image

from bidir.config import DataError
from bidir.data.loader import TrainingCrops
from bidir.data.open import open_split
from bidir.data.split import Split


def test_masks_are_mapped_to_the_subset(voc):
    split = open_split(voc.replace(classes=["dog"]), "train")
    mask = split.read_mask(0)
    assert (mask[10:20, 20:30] == 1).all()  # dog, VOC's 12
    assert (mask[10:20, :10] == 255).all()  # cat: a known class outside the subset
    assert (mask[0] == 255).all()
    assert (mask[25:] == 0).all()


def test_training_opens_no_mask(voc, tmp_path):
    shutil.rmtree(tmp_path / "SegmentationClass")
    crops = TrainingCrops(open_split(voc, "train"), voc)
    assert crops[0, 0].mask is None
    with pytest.raises(DataError, match="no masks"):
        open_split(voc, "val").check(masks=True)


def test_check_lists_every_problem(voc, tmp_path):
    whole = tmp_path / "JPEGImages" / "b.jpg"
    whole.write_bytes(whole.read_bytes()[:400])
    (tmp_path / "JPEGImages" / "a.jpg").write_bytes(b"not a picture")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8))
    noise.save(tmp_path / "c.png")
    start, _, rest = (tmp_path / "c.png").read_bytes().partition(b"IDAT")
    broken = start + b"IDAT" + rest.replace(b"IDAT", bytes(4))  # Pillow raises SyntaxError
    (tmp_path / "JPEGImages" / "c.jpg").write_bytes(broken)
    with pytest.raises(DataError) as error:
        open_split(voc, "train").check(masks=False, progress=False)
    assert all(f"{name}.jpg: the image cannot be read" in str(error.value) for name in "abc")


def test_manifest_tells_datasets_apart(voc, tmp_path):
    split = open_split(voc, "train")
    assert split.manifest() == open_split(voc, "train").manifest()
    assert isinstance(split, Split)
    (tmp_path / "labels.txt").write_text("a cat\nb cat\nc person\n")
    assert split.manifest() != open_split(voc, "train").manifest()
