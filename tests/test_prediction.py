"""Evaluation, prediction on one's own images, and pseudo-masks, from the checkpoint of a short run."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score

from bidir.cli import main
from bidir.config import ConfigError
from bidir.data import DataError, open_split
from bidir.data.loader import WholeImages, collate
from bidir.evaluation import evaluate, mean_scores, multi_scale_logits, predict_maps
from bidir.metrics import ConfusionMatrix
from bidir.overlay import draw_overlay
from bidir.palette import voc_palette
from bidir.prediction import export_pseudo_masks, predict
from bidir.runs import load_network
from bidir.training import fit


@pytest.fixture(scope="module")
def run(quick, workspace):
    config = quick.replace(runs_dir=str(workspace / "short"), iterations=24, eval_every=0)
    return config, fit(config, progress=False)


def test_evaluation_is_the_sum_over_single_images(run):
    """Batched by size and streamed, against one image at a time and scores from the counts by hand."""
    config, path = run
    network, _, classes = load_network(path / "checkpoint.pt")
    split = open_split(config, "val")
    counts = ConfusionMatrix(len(classes))
    for index in range(len(split)):
        batch = collate([WholeImages(split)[index]])
        found = predict_maps(network, batch, config, "raw", {"branch_s"})
        counts.update(found["branch_s"], batch.mask)
    labelled = counts.counts[:, :-1].numpy()
    union = labelled.sum(0) + labelled.sum(1) - labelled.diagonal()
    expected = np.mean((labelled.diagonal() / np.maximum(union, 1))[union > 0])
    scores = evaluate(network, split, split.check(masks=True, progress=False), config, progress=False)
    table = scores.per_class
    assert mean_scores(table)["raw/branch_s"] == pytest.approx(expected, abs=2e-3)  # batched sums round differently
    written = pd.read_csv(path / "per_class.csv")
    pd.testing.assert_frame_equal(written[table.columns], table, check_exact=False, atol=2e-3)
    limited = evaluate(network, split, split.check(True, False), config, {"raw": {"cam"}}, limit=3, progress=False)[0]
    assert limited["images"].unique().tolist() == [3]
    assert limited["map"].unique().tolist() == ["cam"]
    summed = scores.per_image.groupby(["protocol", "map", "class"])[["hit", "true", "predicted"]].sum()
    iou = summed["hit"] / (summed["true"] + summed["predicted"] - summed["hit"])
    whole = table.set_index(["protocol", "map", "class"])["iou"].loc[iou.index]
    np.testing.assert_allclose(iou, whole, rtol=1e-9)  # the images add up to the dataset
    assert set(scores.per_image["image"]) == set(split.names)


def test_agreement_is_the_miou_of_one_branch_against_the_other(run):
    """Against scikit-learn's Jaccard index over all pixels that the mask does not leave out."""
    config, path = run
    network, _, classes = load_network(path / "checkpoint.pt")
    split = open_split(config, "val")
    pairs = []
    for index in range(len(split)):
        batch = collate([WholeImages(split)[index]])
        found = predict_maps(network, batch, config, "raw", {"branch_s", "branch_c"})
        kept = batch.mask != 255
        pairs.append((found["branch_c"][kept].numpy(), found["branch_s"][kept].numpy()))
    truth, prediction = (np.concatenate(side) for side in zip(*pairs, strict=True))
    seen = np.union1d(truth, prediction)
    expected = jaccard_score(truth, prediction, labels=seen, average="macro")
    written = pd.read_csv(path / "per_class.csv").query(
        "protocol == 'raw' and map == 'agreement' and `class` == 'mean'"
    )
    assert written["iou"].item() == pytest.approx(expected, abs=2e-3)  # batched sums round differently
    assert len(classes) + 1 >= len(seen)


def test_evaluation_at_another_size_scores_at_the_masks_own(run):
    config, path = run
    network, _, _ = load_network(path / "checkpoint.pt")
    split = open_split(config, "val")
    sizes = split.check(masks=True, progress=False)
    small = config.replace(eval_size=64)
    counted = evaluate(network, split, sizes, small, {"raw": {"branch_s"}}, progress=False).per_class
    assert len(counted) == 8


def test_multi_scale_logits_take_mean_of_flips_and_maximum_of_scales(run):
    config, path = run
    network, _, _ = load_network(path / "checkpoint.pt")
    image = collate([WholeImages(open_split(config, "val"))[0]]).image
    per_scale = [multi_scale_logits(network, image, (scale,)) for scale in (1.0, 0.5)]
    torch.testing.assert_close(multi_scale_logits(network, image, (1.0, 0.5)), torch.maximum(*per_scale))
    mirrored = multi_scale_logits(network, image.flip(3), (1.0,))
    torch.testing.assert_close(mirrored.flip(3), per_scale[0], rtol=1e-3, atol=1e-3)


def read(path):
    """Mode and pixels of a picture."""
    with Image.open(path) as picture:
        return picture.mode, np.array(picture)


@pytest.fixture
def photos(run, tmp_path):
    """Two images of different size and format."""
    config, _ = run
    split = open_split(config, "val")
    Image.fromarray(split.read_image(0)).save(tmp_path / "one.jpg")
    Image.fromarray(split.read_image(1)[:70, :90]).save(tmp_path / "two.png")
    return tmp_path


@pytest.mark.parametrize("name", ["branch_s", "branch_c", "seed", "cam", "y_c", "y_s"])
def test_predict_writes_palette_masks_and_says_where_labels_come_from(run, photos, name):
    _, path = run
    table = predict(path / "checkpoint.pt", photos, photos / "out", map=name)
    assert table["labels_from"].tolist() == ["predicted"] * 2
    assert table["image"].tolist() == ["one", "two"]
    mode, mask = read(photos / "out" / "two.png")
    assert mode == "P"
    assert mask.shape == (70, 90)
    allowed = {0, 255, *range(1, 7)} if name == "y_s" else set(range(7)) | ({255} if name == "y_c" else set())
    assert set(np.unique(mask)) <= allowed
    assert read(photos / "out" / "two_overlay.png")[0] == "RGB"
    pd.testing.assert_frame_equal(pd.read_csv(photos / "out" / "predictions.csv"), table)


def test_given_labels_bound_the_seed(run, photos):
    _, path = run
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
            {"labels": {"one": ["lion"], "two": ["ram"]}, "map": "branch_s"},
            ConfigError,
            "map = 'branch_s' takes no labels",
        ),
        ({"labels": {"one": ["lion"]}}, DataError, "no labels given for image 'two'"),
        ({"labels": {"one": ["lion"], "two": ["cow"]}}, DataError, "label 'cow'; the model knows hare"),
        ({"map": "saliency"}, ConfigError, "map = 'saliency'"),
        ({"map": "y_s", "protocol": "ms"}, ConfigError, "not y_s"),
        ({"images": "/nowhere/x.jpg"}, DataError, "x.jpg: no image there"),
    ],
)
def test_predict_names_what_is_wrong(run, photos, arguments, error, message):
    _, path = run
    given = {"images": photos, "map": "seed", **arguments}
    with pytest.raises(error, match=message):
        predict(path / "checkpoint.pt", out_dir=photos / "out", **given)
    assert not (photos / "out").exists()


def test_predict_does_not_write_over_its_images(run, photos):
    _, path = run
    with pytest.raises(DataError, match="holds the images themselves"):
        predict(path / "checkpoint.pt", photos, photos)


def test_predict_refuses_names_that_would_overwrite(run, photos):
    _, path = run
    Image.new("RGB", (64, 64)).save(photos / "one.png")
    with pytest.raises(DataError, match="two images are called 'one'"):
        predict(path / "checkpoint.pt", photos, photos / "out")


def test_pseudo_masks_of_a_split_open_no_mask(run, tmp_path, monkeypatch):
    config, path = run
    monkeypatch.setattr("bidir.data.split.Split.read_mask", lambda *_: pytest.fail("a mask was opened"))
    table = export_pseudo_masks(path / "checkpoint.pt", "val", tmp_path)
    assert len(table) == config.scenes_val
    split = open_split(config, "val")
    for index, name in enumerate(split.names):
        present = {0, *(np.flatnonzero(split.labels[index]) + 1)}
        assert set(np.unique(read(tmp_path / f"{name}.png")[1])) <= present


def test_commands(run, photos, capsys, monkeypatch):
    _, path = run
    out = str(photos / "out")
    for arguments in (["predict", path / "checkpoint.pt", photos, out, "--labels", "lion,ram", "--map", "cam"],):
        monkeypatch.setattr("sys.argv", ["bidir", *map(str, arguments)])
        with pytest.raises(SystemExit) as leave:
            main()
        assert leave.value.code == 0
    assert "given" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["bidir", "train", "-p", "seeds=3"])
    with pytest.raises(SystemExit, match="did you mean 'seed'"):
        main()


def test_overlay_colours_contours_and_hatching():
    image = np.full((60, 80, 3), 100, np.uint8)
    mask = np.zeros((60, 80), np.uint8)
    mask[10:30, 10:50] = 2
    mask[40:, :] = 255
    drawn = draw_overlay(image, mask, ("a", "b"), names=False)
    np.testing.assert_array_equal(drawn[5, 5], image[5, 5])
    np.testing.assert_array_equal(drawn[20, 15], np.round(55 + 0.45 * voc_palette()[2]))
    assert (drawn[9, 10:50] == 255).all()  # contour
    assert (drawn[29, 10:50] == 255).all()
    assert 0.2 < (drawn[42:, :, 0] != 100).mean() < 0.5
    assert (draw_overlay(image, mask, ("a", "b")) != drawn).any()  # the name
