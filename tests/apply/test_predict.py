"""Masks of one's own images, and scores by protocol, from the checkpoint of a short run."""

import re
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bidir.apply.predict import predict, score
from bidir.config import ConfigError, DataError


def read(path):
    """Mode and pixels of a picture."""
    with Image.open(path) as picture:
        return picture.mode, np.array(picture)


@pytest.mark.parametrize("name", ["branch_s", "branch_c", "seed", "cam", "y_c", "y_s"])
def test_predict_writes_palette_masks_and_says_where_labels_come_from(short, photos, name):
    _, path = short
    table = predict(path / "checkpoint.pt", photos, photos / "out", map_name=name)
    assert table["labels_from"].tolist() == ["predicted"] * 2
    assert table["image"].tolist() == ["one", "two"]
    mode, mask = read(photos / "out" / "two.png")
    assert mode == "P"
    assert mask.shape == (70, 90)
    allowed = {0, 255, *range(1, 7)} if name == "y_s" else set(range(7)) | ({255} if name == "y_c" else set())
    assert set(np.unique(mask)) <= allowed
    assert read(photos / "out" / "two_overlay.png")[0] == "RGB"
    pd.testing.assert_frame_equal(pd.read_csv(photos / "out" / "predictions.csv"), table)


def test_given_labels_bound_the_seed(short, photos):
    _, path = short
    labels = {"one": ["lion"], "two": ["ram", "hare"]}
    table = predict(path / "checkpoint.pt", photos, photos / "out", labels, "seed", "ms", overlays=False)
    assert table["labels_from"].tolist() == ["given"] * 2
    assert table["labels"].tolist() == ["lion", "hare ram"]
    assert set(np.unique(read(photos / "out" / "one.png")[1])) <= {0, 3}
    assert set(np.unique(read(photos / "out" / "two.png")[1])) <= {0, 1, 4}
    assert not list((photos / "out").glob("*_overlay.png"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"labels": {"one": ["lion"], "two": ["ram"]}, "map_name": "branch_s"},
            ConfigError,
            "map = 'branch_s' takes no labels",
        ),
        ({"labels": {"one": ["lion"]}}, DataError, "no labels given for image 'two'"),
        ({"labels": {"one": ["lion"], "two": ["cow"]}}, DataError, "label 'cow'; the model knows hare"),
        ({"map_name": "saliency"}, ConfigError, "map = 'saliency'"),
        ({"map_name": "y_s", "protocol": "ms"}, ConfigError, "not y_s"),
        ({"images": "/nowhere/x.jpg"}, DataError, "x.jpg: no image there"),
    ],
)
def test_predict_names_what_is_wrong(short, photos, arguments, error, message):
    _, path = short
    given = {"images": photos, "map_name": "seed", **arguments}
    with pytest.raises(error, match=message):
        predict(path / "checkpoint.pt", out_dir=photos / "out", **given)
    assert not (photos / "out").exists()


def test_predict_does_not_write_over_its_images(short, photos):
    _, path = short
    with pytest.raises(DataError, match="holds the images themselves"):
        predict(path / "checkpoint.pt", photos, photos)


def test_predict_refuses_names_that_would_overwrite(short, photos):
    _, path = short
    Image.new("RGB", (64, 64)).save(photos / "one.png")
    with pytest.raises(DataError, match="two images are called 'one'"):
        predict(path / "checkpoint.pt", photos, photos / "out")


def test_scores_by_protocol(short, tmp_path, monkeypatch):
    _, path = short
    written = pd.read_csv(path / "per_class.csv")
    found = score(path / "checkpoint.pt", ("raw", "crf")).per_class
    raw = found[found["protocol"] == "raw"].reset_index(drop=True)
    expected = written[written["protocol"] == "raw"].reset_index(drop=True)
    pd.testing.assert_frame_equal(raw, expected[raw.columns], check_exact=False, atol=1e-4)
    assert found.loc[found["protocol"] == "crf", "map"].unique().tolist() == ["branch_s"]
    with pytest.raises(ConfigError, match="protocol = 'tta': choose of raw, ms, crf"):
        score(path / "checkpoint.pt", ("tta",))
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'bidir[crf]'")):
        score(path / "checkpoint.pt", ("crf",))
