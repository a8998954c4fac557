"""Evaluation, prediction on one's own images, and pseudo-masks, from the checkpoint of a short run."""

import dataclasses
import json
import re
import sys
import tarfile

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score

from bidir.cli import main
from bidir.config import ConfigError
from bidir.crf import dense_crf, probabilities
from bidir.data import DataError, open_split
from bidir.data.loader import Batch, WholeImages, collate
from bidir.data.voc import VOC_CLASSES
from bidir.evaluation import evaluate, mean_scores, multi_scale_logits, predict_maps
from bidir.metrics import ConfusionMatrix
from bidir.model.network import DualBranchNetwork
from bidir.overlay import draw_overlay
from bidir.palette import voc_palette
from bidir.prediction import export_pseudo_masks, export_voc_archive, predict, score
from bidir.runs import load_network, save_checkpoint
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
    drawn = draw_overlay(image, mask, ())
    np.testing.assert_array_equal(drawn[5, 5], image[5, 5])
    np.testing.assert_array_equal(drawn[20, 15], np.round(55 + 0.45 * voc_palette()[2]))
    assert (drawn[9, 10:50] == 255).all()  # contour
    assert (drawn[29, 10:50] == 255).all()
    assert 0.2 < (drawn[42:, :, 0] != 100).mean() < 0.5
    assert (draw_overlay(image, mask, ("a", "b")) != drawn).any()  # the name


def test_pseudo_masks_go_on_where_they_stopped_and_are_not_mixed(run, tmp_path):
    _, path = run
    before = export_pseudo_masks(path / "checkpoint.pt", "val", tmp_path)
    gone, kept = (tmp_path / f"{name}.png" for name in before["image"][:2])
    content, time = gone.read_bytes(), kept.stat().st_mtime_ns
    gone.unlink()
    after = export_pseudo_masks(path / "checkpoint.pt", "val", tmp_path)
    assert gone.read_bytes() == content
    assert kept.stat().st_mtime_ns == time
    pd.testing.assert_frame_equal(before, after)
    for changes in ({"map": "y_c"}, {"eval_size": 64}, {"part": "train"}):
        with pytest.raises(DataError, match="masks of another model, dataset, map"):
            export_pseudo_masks(path / "checkpoint.pt", **{"part": "val", "out_dir": tmp_path, **changes})
    (tmp_path / "made_by.json").unlink()
    with pytest.raises(DataError, match="masks of another model"):  # who knows whose
        export_pseudo_masks(path / "checkpoint.pt", "val", tmp_path)


def test_the_crf_follows_the_edges_of_the_image():
    """Two flat halves, a fifth of the scores wrong at random: the field finds the halves."""
    random = np.random.default_rng(0)
    truth = np.zeros((40, 60), int)
    truth[:, 25:] = 1
    image = torch.tensor(np.where(truth, 200.0, 40.0), dtype=torch.float32).expand(1, 3, 40, 60)
    noisy = np.where(random.random(truth.shape) < 0.2, 1 - truth, truth)
    scores = torch.tensor(np.stack([0.3 + 0.4 * (noisy == k) for k in (0, 1)]), dtype=torch.float32)[None]
    assert (scores.argmax(1)[0].numpy() != truth).mean() > 0.15
    np.testing.assert_array_equal(dense_crf(image, scores)[0].numpy(), truth)


def test_images_of_any_shape_have_maps(quick):
    """Twenty pixels high: at half the size, less than a Mix Transformer can look at."""
    torch.manual_seed(0)
    config = quick.replace(encoder="mit_b0", encoder_weights="random", propagation="afa", lambda_aff=0.1)
    network = DualBranchNetwork(config, 3).eval()
    image, label = 255 * torch.rand(1, 3, 20, 400), torch.tensor([[1.0, 0.0, 1.0]])
    batch = Batch(image, label, torch.tensor([[0, 0, 20, 400]]), None, torch.tensor([0]))
    for protocol in ("raw", "ms", "crf"):
        found = predict_maps(network, batch, config, protocol, {"cam", "seed", "y_c", "branch_c", "branch_s"})
        assert {tuple(mask.shape) for mask in found.values()} == {(1, 20, 400)}


def test_probabilities_follow_the_loss(quick):
    logits = torch.tensor([2.0, 0.0, -1.0]).view(1, 3, 1, 1)
    sigmoids = np.array([1 / (1 + np.exp(-v)) for v in (2, 0, -1)])
    exponentials = np.exp([2, 0, -1])
    found = {kind: probabilities(logits, quick.replace(c2s_loss=kind)).flatten().numpy() for kind in ("bce", "ce")}
    np.testing.assert_allclose(found["bce"], sigmoids / sigmoids.sum(), rtol=1e-5)
    np.testing.assert_allclose(found["ce"], exponentials / exponentials.sum(), rtol=1e-5)


def test_scores_by_protocol(run, tmp_path, monkeypatch):
    _, path = run
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
    for name, size in sizes.items():
        Image.new("RGB", size, "green").save(root / "JPEGImages" / f"{name}.jpg")
    out = export_voc_archive(tmp_path / "voc.pt", "test", tmp_path / "results.tgz", "raw", data_root=str(root))
    with tarfile.open(out) as archive:
        names = [f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png" for name in sizes]
        assert archive.getnames() == names
        for name, size in zip(names, sizes.values(), strict=True):
            with Image.open(archive.extractfile(name)) as picture:
                assert (picture.mode, picture.size) == ("P", size)
                assert np.array(picture).max() <= 20
    with pytest.raises(DataError, match="the archive is a"):
        export_voc_archive(tmp_path / "voc.pt", "test", tmp_path / "results.zip", data_root=str(root))


def test_the_archive_takes_vocs_classes_alone(run, tmp_path):
    with pytest.raises(DataError, match="VOC's twenty classes; the model knows hare"):
        export_voc_archive(run[1] / "checkpoint.pt", "test", tmp_path / "results.tgz")
