"""Preparation of COCO: a miniature in the published format, the whole way to training."""

import json
import shutil

import numpy as np
import pytest

from bidir.config import DataError, RunConfig
from bidir.data.make.coco import prepare_coco
from bidir.data.make.voc import PUBLISHED
from bidir.data.open import open_split
from bidir.run.training import fit

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_counts_of_the_published_need_no_leave(published_coco, tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "coco", {"train": 2, "val": 1})
    out = prepare_coco(published_coco, tmp_path / "c")
    assert json.loads((out / "manifest.json").read_text())["published"]


def test_counts_are_the_published_ones_unless_told_otherwise(published_coco, tmp_path):
    with pytest.raises(DataError, match="list train holds 2 images, the published one 82081"):
        prepare_coco(published_coco, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_not_made_from_two_sources(published_coco, tmp_path):
    prepare_coco(published_coco, tmp_path / "coco_out", any_count=True)
    edit(published_coco / "annotations" / "instances_val2014.json", lambda c: c["annotations"][0].update(area=1))
    with pytest.raises(DataError, match="was begun from other lists or annotations"):
        prepare_coco(published_coco, tmp_path / "coco_out", any_count=True)


def test_coco_the_whole_way_to_training(published_coco, tiny, tmp_path):
    out = prepare_coco(published_coco, tmp_path / "out", any_count=True)
    config = RunConfig(**tiny, data_root=str(out), runs_dir=str(tmp_path / "runs"))
    train, val = open_split(config, "train"), open_split(config, "val")
    assert train.class_names == ("traffic_light", "train", "toothbrush")  # by category id
    assert train.names == ("COCO_train2014_000000000001", "COCO_train2014_000000000002")
    assert train.labels.tolist() == [[True, False, True], [True, True, False]]
    first, second = np.zeros((48, 64)), np.zeros((48, 64))
    first[:32, :32] = 3
    first[:4, :8] = 1  # the smaller is in front, though it comes first
    second[:, :10] = 2  # the crowd
    second[:10, 5:20] = 1
    assert np.array_equal(train.read_mask(0), first)
    assert np.array_equal(train.read_mask(1), second)
    assert (val.read_mask(0) == 3).sum() == 100
    results = json.loads((fit(config, progress=False) / "run.json").read_text())["results"]
    assert 0 <= results["raw/branch_s"] <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(category_id=12), "annotation 1: category 12 is not among"),
        (lambda c: c["annotations"][0].update(image_id=77), "annotation 1: image 77 is not among"),
        (
            lambda c: c["annotations"][1].update(segmentation=[[1, 2]]),
            "annotation 2: no outline in COCO_train2014_000000000001",
        ),
        (lambda c: c.pop("categories"), "lacks 'categories'"),
        (lambda c: c["annotations"][1].pop("area"), "annotation 2: area = None"),
        (lambda c: c["images"][0].pop("height"), "number 0 of images lacks 'height'"),
        (lambda c: c["annotations"][0].update(area=None), "annotation 1: area = None"),
        (lambda c: c["annotations"][2]["segmentation"].update(size=[64, 48]), "annotation 3: no outline in"),
        (lambda c: c["images"][0].update(width=60), r"000001\.png: mask of .60, 48. pixels for an image of .64, 48."),
        (lambda c: c["categories"].pop(), "train and val name different categories"),
        (lambda c: c["images"][1].update(file_name="other.jpg"), r"other\.jpg: missing"),
    ],
)
def test_what_is_wrong_with_coco_is_named(published_coco, tmp_path, change, message):
    edit(published_coco / "annotations" / "instances_train2014.json", change)
    with pytest.raises(DataError, match=message):
        prepare_coco(published_coco, tmp_path / "out", any_count=True)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_every_bad_outline_is_listed_and_the_masks_made_stay(published_coco, tmp_path):
    path, out = published_coco / "annotations" / "instances_train2014.json", tmp_path / "out"
    whole = path.read_text()

    def spoil(content):
        for number in (1, 3):
            content["annotations"][number]["segmentation"] = [[1, 2]]

    edit(path, spoil)
    with pytest.raises(
        DataError,
        match=r"(?s)annotation 2: .*annotation 4: .*2 annotations cannot be drawn; leave them out by --skip-unusable",
    ):
        prepare_coco(published_coco, out, any_count=True)
    prepare_coco(published_coco, out, any_count=True, skip_unusable=True)
    assert (out / "image_labels.txt").read_text().split()[1:2] == ["traffic_light"]  # its toothbrush is left out
    path.write_text(whole)
    with pytest.raises(DataError, match="was begun from other lists or annotations"):
        prepare_coco(published_coco, out, any_count=True)
    shutil.rmtree(out)
    masks = sorted((prepare_coco(published_coco, out, any_count=True) / "SegmentationClass").iterdir())
    kept = masks[1].stat().st_mtime_ns
    masks[0].unlink()
    prepare_coco(published_coco, out, any_count=True)
    assert masks[0].is_file()
    assert masks[1].stat().st_mtime_ns == kept


def test_a_json_cut_short_is_named(published_coco, tmp_path):
    path = published_coco / "annotations" / "instances_val2014.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(DataError, match="cut short"):
        prepare_coco(published_coco, tmp_path / "out", any_count=True)


def test_coco_2017_by_its_own_names(published_coco, tmp_path):
    for part in ("train", "val"):
        path = published_coco / f"annotations/instances_{part}2014.json"
        path.rename(path.with_name(f"instances_{part}2017.json"))
        (published_coco / f"{part}2014").rename(published_coco / f"{part}2017")
    out = prepare_coco(published_coco, tmp_path / "out", any_count=True)
    assert json.loads((out / "manifest.json").read_text())["dataset"] == "coco2017"
    with pytest.raises(DataError, match="the published one 117266"):
        prepare_coco(published_coco, tmp_path / "other")


def test_more_categories_than_a_mask_has_ids_for(published_coco, tmp_path):
    for part in ("train", "val"):
        more = [{"id": 100 + i, "name": f"thing {i}"} for i in range(253)]
        edit(
            published_coco / f"annotations/instances_{part}2014.json", lambda c, more=more: c["categories"].extend(more)
        )
    with pytest.raises(DataError, match="one more than a mask has ids for"):
        prepare_coco(published_coco, tmp_path / "out", any_count=True)
