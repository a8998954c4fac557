"""The generated dataset: fixed by its seed, whole on disk, and true to its knobs."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from bidir.config import DataError
from bidir.data.make.scenes import SCENE_CLASSES, prepare_scenes, render_scene
from bidir.data.open import open_split


def test_scenes_are_fixed_by_seed_and_index(quick):
    first, again = render_scene(quick, 5), render_scene(quick, 5)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], render_scene(quick.replace(scenes_seed=1), 5)[0])
    assert not np.array_equal(first[0], render_scene(quick, 6)[0])


def test_scenes_are_in_voc_layout_with_true_checksums(quick):
    root = prepare_scenes(quick, Path(quick.data_root))
    assert prepare_scenes(quick, Path(quick.data_root)) == root  # written once
    split = open_split(quick, "train")
    assert len(split) == quick.scenes_train
    assert split.class_names == SCENE_CLASSES
    for index in range(8):
        image, mask = render_scene(quick, index)
        np.testing.assert_array_equal(split.read_mask(index), mask)
        assert np.abs(split.read_image(index).astype(int) - image).mean() < 4  # JPEG
        present = {SCENE_CLASSES[i - 1] for i in np.unique(mask) if i not in (0, 255)}
        assert present == {n for n, there in zip(SCENE_CLASSES, split.labels[index], strict=True) if there}
        assert present
    for line in (root / "checksums.md5").read_text().splitlines():
        digest, name = line.split(maxsplit=1)
        assert hashlib.md5((root / name).read_bytes()).hexdigest() == digest
    assert json.loads((root / "knobs.json").read_text())["scenes_size"] == quick.scenes_size


def test_knobs_do_what_they_say(quick):
    def area(**changes):
        return sum((render_scene(quick.replace(**changes), i)[1] > 0).sum() for i in range(12))

    assert area(scenes_part_size=2.0) > 1.03 * area(scenes_part_size=1.0) > 1.03 * area(scenes_part_size=0.3)


def test_a_half_written_dataset_is_named(quick, tmp_path):
    small = quick.replace(scenes_train=2, scenes_val=1)
    root = prepare_scenes(small, tmp_path)
    (root / "DONE").unlink()
    with pytest.raises(DataError, match="delete the folder"):
        prepare_scenes(small, tmp_path)
