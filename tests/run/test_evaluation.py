"""Scores of every map, from the checkpoint of a short run, against single images and scikit-learn."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import jaccard_score

from bidir.data.loader import WholeImages
from bidir.data.open import open_split
from bidir.method.network import DualBranchNetwork
from bidir.method.tensors import Batch
from bidir.run.checkpoint import load_network
from bidir.run.evaluation import MAPS, evaluate, makes, means_by_name, predict_maps
from bidir.run.metrics import confusion


def test_evaluation_is_the_sum_over_single_images(short):
    """Batched by size and streamed, against one image at a time and scores from the counts by hand."""
    config, path = short
    network, _, classes = load_network(path / "checkpoint.pt")
    split = open_split(config, "val")
    counts = 0
    for index in range(len(split)):
        batch = WholeImages(split)[index]
        found = predict_maps(network, batch, config, {"raw": {"branch_s"}})
        counts = counts + confusion(found["raw", "branch_s"], batch.mask, len(classes))[0]
    labelled = counts[:, :-1].numpy()
    union = labelled.sum(0) + labelled.sum(1) - labelled.diagonal()
    expected = np.mean((labelled.diagonal() / np.maximum(union, 1))[union > 0])
    split = split.check(masks=True, progress=False)
    scores = evaluate(network, split, config, progress=False)
    table = scores.per_class
    assert means_by_name(table)["raw/branch_s"] == pytest.approx(expected, abs=2e-3)  # batched sums round differently
    written = pd.read_csv(path / "per_class.csv")
    pd.testing.assert_frame_equal(written[table.columns], table, check_exact=False, atol=2e-3)
    limited = evaluate(network, split.select(split.spread(3)), config, {"raw": {"cam"}}, progress=False).per_class
    assert limited["images"].unique().tolist() == [3]
    assert limited["map"].unique().tolist() == ["cam"]
    summed = scores.per_image.groupby(["protocol", "map", "class"])[["hit", "true", "predicted"]].sum()
    iou = summed["hit"] / (summed["true"] + summed["predicted"] - summed["hit"])
    whole = table.set_index(["protocol", "map", "class"])["iou"].loc[iou.index]
    np.testing.assert_allclose(iou, whole, rtol=1e-9)  # the images add up to the dataset
    assert set(scores.per_image["image"]) == set(split.names)


def test_agreement_is_the_miou_of_one_branch_against_the_other(short):
    """Against scikit-learn's Jaccard index over all pixels that the mask does not leave out."""
    config, path = short
    network, _, classes = load_network(path / "checkpoint.pt")
    split = open_split(config, "val")
    pairs = []
    for index in range(len(split)):
        batch = WholeImages(split)[index]
        found = predict_maps(network, batch, config, {"raw": {"branch_s", "branch_c"}})
        kept = batch.mask != 255
        pairs.append((found["raw", "branch_c"][kept].numpy(), found["raw", "branch_s"][kept].numpy()))
    truth, prediction = (np.concatenate(side) for side in zip(*pairs, strict=True))
    seen = np.union1d(truth, prediction)
    expected = jaccard_score(truth, prediction, labels=seen, average="macro")
    written = pd.read_csv(path / "per_class.csv").query(
        "protocol == 'raw' and map == 'agreement' and `class` == 'mean'"
    )
    assert written["iou"].item() == pytest.approx(expected, abs=2e-3)  # batched sums round differently
    assert len(classes) + 1 >= len(seen)


def test_evaluation_at_another_size_scores_at_the_masks_own(short):
    config, path = short
    network, _, _ = load_network(path / "checkpoint.pt")
    split = open_split(config, "val").check(masks=True, progress=False)
    small = config.replace(eval_size=64)
    counted = evaluate(network, split, small, {"raw": {"branch_s"}}, progress=False).per_class
    assert len(counted) == 8


def test_images_of_any_shape_have_maps(quick):
    """Twenty pixels high: at half the size, less than a Mix Transformer can look at."""
    torch.manual_seed(0)
    config = quick.replace(encoder="mit_b0", encoder_weights="random", propagation="afa", lambda_aff=0.1)
    network = DualBranchNetwork(config, 3).eval()
    image, label = 255 * torch.rand(1, 3, 20, 400), torch.tensor([[1.0, 0.0, 1.0]])
    batch = Batch(image, label, torch.tensor([[0, 0, 20, 400]]), None, torch.tensor([0]), 1)
    for protocol in ("raw", "ms", "crf"):
        found = predict_maps(network, batch, config, {protocol: {"cam", "seed", "y_c", "branch_c", "branch_s"}})
        assert len(found) == (1 if protocol == "crf" else 5)
        assert {tuple(mask.shape) for mask in found.values()} == {(1, 20, 400)}


def test_each_scale_and_flip_passes_once_for_all_maps_and_protocols(quick):
    network, count = DualBranchNetwork(quick, 6), Counter()
    network.register_forward_hook(lambda *_: count.update(["passes"]))
    wanted = {protocol: set(MAPS) for protocol in ("raw", "ms", "crf")}
    found = predict_maps(network, WholeImages(open_split(quick, "val"))[0], quick, wanted)
    assert set(found) == {(protocol, name) for protocol in wanted for name in MAPS if makes(protocol, name)}
    assert count["passes"] == len({*quick.seed_scales, *quick.eval_scales})  # a scale and its flip are one batch


@pytest.mark.parametrize("protocol", ["raw", "ms", "crf"])
def test_a_map_is_the_same_alone_and_among_all(short, protocol):
    config, path = short
    network, _, _ = load_network(path / "checkpoint.pt")
    batch = WholeImages(open_split(config, "val"))[1]
    together = predict_maps(network, batch, config, {each: set(MAPS) for each in ("raw", "ms", "crf")})
    for name in (name for name in MAPS if makes(protocol, name)):
        alone = predict_maps(network, batch, config, {protocol: {name}})
        assert list(alone) == [(protocol, name)]
        assert (alone[protocol, name] != together[protocol, name]).float().mean() < 2e-3  # batched sums round otherwise
