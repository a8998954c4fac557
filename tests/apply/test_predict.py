"""Masks of one's own images, and scores by protocol, from the checkpoint of a short run."""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bidir.apply.predict import _predicted_labels, predict, score
from bidir.config import ConfigError, DataError
from bidir.method.network import DualBranchNetwork
from bidir.method.tensors import Batch


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


@pytest.mark.parametrize("name", ["one.png", "ONE.png", "one_overlay.png", "two_Overlay.JPG"])
def test_predict_refuses_names_that_would_overwrite(short, photos, name):
    _, path = short
    Image.new("RGB", (64, 64)).save(photos / name)
    with pytest.raises(DataError, match=r"two images are called .(one|two)"):
        predict(path / "checkpoint.pt", photos, photos / "out")
    assert not (photos / "out").exists()


def test_predict_takes_every_kind_of_picture_and_names_what_it_skips(short, photos, capsys):
    _, path = short
    for name in ("three.TIF", "four.Gif"):
        Image.new("L", (64, 48), 90).save(photos / name)
    (photos / "notes.txt").write_text("no picture")
    (photos / "._one.jpg").write_bytes(b"of another system")
    table = predict(path / "checkpoint.pt", photos, photos / "out")
    assert table["image"].tolist() == ["four", "one", "three", "two"]
    assert "skipped, no pictures: notes.txt\n" in capsys.readouterr().out


def test_a_photograph_is_predicted_as_it_is_shown(short, photos):
    _, path = short
    upright, exif = Image.open(photos / "two.png"), Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(photos / "two.png", exif=exif)
    upright.save(photos / "upright.png")
    predict(path / "checkpoint.pt", [photos / "two.png", photos / "upright.png"], photos / "out")
    for end in ("", "_overlay"):
        assert np.array_equal(read(photos / f"out/two{end}.png")[1], read(photos / f"out/upright{end}.png")[1])


def test_what_is_too_narrow_to_be_evaluated_is_named(short, photos, tmp_path):
    _, path = short
    content = torch.load(path / "checkpoint.pt", weights_only=True)
    content["config"] = json.dumps({**json.loads(content["config"]), "eval_size": 256})
    torch.save(content, tmp_path / "other.pt")
    Image.new("RGB", (600, 2)).save(photos / "one.jpg")
    with pytest.raises(DataError, match=r"one\.jpg: 600 x 2 px, too narrow to be evaluated at eval_size = 256"):
        predict(tmp_path / "other.pt", photos, photos / "out")


def test_a_model_of_one_class_may_find_none(quick, monkeypatch):
    batch = Batch(torch.zeros(2, 3, 64, 64), torch.zeros(2, 1), torch.zeros(2, 4).long(), None, torch.arange(2), 1)
    network = DualBranchNetwork(quick.replace(encoder_weights="random"), 1)
    said = SimpleNamespace(class_logits=torch.tensor([[-1.0], [1.0]]))
    monkeypatch.setattr(network, "forward", lambda image, segmentation: said)
    assert _predicted_labels(network, batch).tolist() == [[0.0], [1.0]]


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
