"""Counts of what teachers know against loops over pixels; what the loss asks against softmax by hand."""

import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bidir.data.loader import WholeImages, collate
from bidir.data.open import open_split
from bidir.run.checkpoint import load_network
from bidir.run.evaluation import predict_maps
from bidir.run.folder import RunFolder
from bidir.study.mechanism import GROUPS, lessons, over_checkpoints, push


def test_the_loss_moves_foreground_alone():
    """Logits (2, 0), (0, 0), (1, 3), (5, 5); Y_s: class 1, class 2, background, ignored."""
    logits = torch.tensor([[[[2.0, 0.0, 1.0, 5.0]], [[0.0, 0.0, 3.0, 5.0]]]])
    moved = push(logits, torch.tensor([[[1, 2, 0, 255]]]))
    p = 1 / (1 + math.exp(-2))
    expected = torch.tensor([[[[1 - p, -0.5, 0, 0]], [[p - 1, 0.5, 0, 0]]]])
    torch.testing.assert_close(moved, expected)


def test_counts_are_those_of_a_loop_over_pixels(short):
    config, path = short
    network, _, _ = load_network(path / "checkpoint.pt")
    split = open_split(config, "val").select(np.arange(4))
    images, wanted = WholeImages(split, config.eval_size), {}
    for i in range(len(split)):
        batch = collate([images[i]])
        made = predict_maps(network, batch, config, {"raw": {"cam", "y_c", "y_s"}})
        cam, y_c, y_s = (made["raw", name][0, ::4, ::4].numpy().ravel() for name in ("cam", "y_c", "y_s"))
        masks = batch.mask[0, ::4, ::4].numpy()
        with torch.no_grad():
            logits = F.interpolate(network(batch.image).cam_logits, size=masks.shape, mode="bilinear")
        chances = logits.softmax(1)[0].flatten(1).T.numpy()
        for truth, seen, c, s, chance in zip(masks.ravel(), cam, y_c, y_s, chances, strict=True):
            if truth == 255:
                continue
            group = GROUPS[0] if truth == 0 else GROUPS[1] if seen == truth else GROUPS[2]
            for name, counted in {
                "pixels": True, "c_says": c != 255, "s_says": s != 255, "c_right": c == truth, "s_right": s == truth,
                "c_only": c == truth != s, "s_only": s == truth != c, "s_wrong": s not in (truth, 0, 255),
            }.items():  # fmt: skip
                wanted[group, name] = wanted.get((group, name), 0) + int(counted)
            if s not in (0, 255):  # cross-entropy asks for what a softmax lacks of 1
                name = "asks_right" if s == truth else "asks_wrong"
                wanted[group, name] = wanted.get((group, name), 0) + 1 - chance[s - 1]
    table = lessons(network, split, config).set_index("group")
    asked = {key: wanted.pop(key) for key in [*wanted] if key[1] in ("asks_right", "asks_wrong")}
    assert {key: table.loc[key] for key in wanted} == wanted
    assert {key: table.loc[key] for key in asked} == pytest.approx(asked, rel=1e-4)
    assert {name for _, name in asked} == {"asks_right", "asks_wrong"}


def test_every_checkpoint_that_stays_is_looked_at(short, tmp_path):
    run = RunFolder(shutil.copytree(short[1], tmp_path / "run"))
    for step in (short[0].s2c_start - 1, short[0].s2c_start):  # before that S says nothing
        run.keep(step)
    table = over_checkpoints(run, 2)
    assert table["step"].tolist() == [short[0].s2c_start] * len(GROUPS) + [24] * len(GROUPS)
    assert table["group"].tolist() == [*GROUPS] * 2
    assert set(table["run_id"]) == {"run"}
    assert set(table["images"]) == {2}
    table = table[table["step"] == 24]
    assert table["pixels"].sum() == pytest.approx(2 * 24 * 24, rel=0.05)  # few are on a border
