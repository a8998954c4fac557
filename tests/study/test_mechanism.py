"""Counts of what teachers know against loops over pixels; what the loss asks against softmax by hand."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bidir.data.loader import WholeImages, collate
from bidir.data.open import open_split
from bidir.data.overlay import save_palette_png
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


def test_counts_are_those_of_a_loop_over_pixels(short, tmp_path):
    """Bands of four rows have in turn the image's own mask, what Y_s says and the class after it: all cases occur."""
    config, path = short
    network, _, _ = load_network(path / "checkpoint.pt")
    split = open_split(config, "val").select(np.arange(4))
    masks = []
    for i, image in enumerate(WholeImages(split, config.eval_size)):
        y_s = predict_maps(network, collate([image]), config, {"raw": {"y_s"}})["raw", "y_s"][0].numpy()
        cycled = np.where((y_s > 0) & (y_s < 255), y_s % len(split.class_names) + 1, y_s)
        band = (np.arange(len(y_s)) // 4 % 3)[:, None]
        ids = np.append(split.mask_ids, [255] * 255)[np.choose(band, [split.read_mask(i), y_s, cycled])]
        save_palette_png(ids.astype(np.uint8), tmp_path / f"{i}.png")
        masks.append(tmp_path / f"{i}.png")
    split = replace(split, masks=tuple(masks))
    images, wanted = WholeImages(split, config.eval_size), {}
    for i in range(len(split)):
        batch = collate([images[i]])
        names = ("cam", "y_c", "y_s", "branch_c", "branch_s")
        made = predict_maps(network, batch, config, {"raw": {*names}})
        maps = [made["raw", name][0, ::4, ::4].numpy().ravel() for name in names]
        shown = batch.label[0].numpy().astype(bool)
        truths = batch.mask[0, ::4, ::4].numpy()
        with torch.no_grad():
            logits = F.interpolate(network(batch.image).cam_logits, size=truths.shape, mode="bilinear")
        chances = logits.softmax(1)[0].flatten(1).T.numpy()
        for truth, seen, c, s, branch_c, branch_s, chance in zip(truths.ravel(), *maps, chances, strict=True):
            if truth == 255:
                continue
            group = GROUPS[0] if truth == 0 else GROUPS[1] if seen == truth else GROUPS[2]
            for name, counted in {
                "pixels": True, "c_says": c != 255, "s_says": s != 255, "c_right": c == truth, "s_right": s == truth,
                "c_only": c == truth != s, "s_only": s == truth != c, "s_wrong": s not in (truth, 0, 255),
                "c_corrects": c == truth and s not in (truth, 255), "s_corrects": s == truth and c not in (truth, 255),
                "c_pupil": c != 255 and branch_s == truth, "s_pupil": s != 255 and branch_c == truth,
            }.items():  # fmt: skip
                wanted[group, name] = wanted.get((group, name), 0) + int(counted)
            if s not in (0, 255):  # cross-entropy asks for what a softmax lacks of 1
                name = "asks_right" if s == truth else "asks_wrong"
                wanted[group, name] = wanted.get((group, name), 0) + 1 - chance[s - 1]
                # and takes from each class what it gives it, but for the one named
                moved = shown[s - 1] - chance[shown].sum()
                wanted[group, "asks_label"] = wanted.get((group, "asks_label"), 0) + moved
    table = lessons(network, split, config).set_index("group")
    asked = {key: wanted.pop(key) for key in [*wanted] if key[1].startswith("asks_")}
    assert {key: table.loc[key] for key in wanted} == wanted
    assert {key: table.loc[key] for key in asked} == pytest.approx(asked, rel=1e-4)
    assert {(GROUPS[1], "asks_right"), (GROUPS[2], "asks_wrong")} <= set(asked)  # as the bands have it


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


def test_another_rule_for_y_s_is_looked_at_beside(short):
    """With sigma_s above every value Y_s says nothing; all else is as trained, at the last checkpoint alone."""
    table = over_checkpoints(RunFolder(short[1]), 2, {"silent": {"sigma_s": 20.0}})
    trained, silent = (table[table["y_s"] == name].set_index("group") for name in ("as trained", "silent"))
    assert set(silent["step"]) == {24}
    trained = trained[trained["step"] == 24]
    assert trained["s_says"].sum() > 0
    assert not silent[["s_says", "s_right", "s_wrong", "asks_right", "asks_wrong"]].to_numpy().any()
    assert (silent[["pixels", "c_says", "c_right"]] == trained[["pixels", "c_says", "c_right"]]).all().all()
