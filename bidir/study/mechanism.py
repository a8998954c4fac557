"""What each teacher could tell the other, and what S's loss does: counted against masks, pixel by pixel."""

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bidir.config import RunConfig
from bidir.data.loader import WholeImages, collate
from bidir.data.open import open_split
from bidir.data.split import Split
from bidir.method.losses import feedback_loss
from bidir.method.maps import multi_scale_pass, needed
from bidir.method.network import DualBranchNetwork
from bidir.method.tensors import IGNORE, Batch, nearest, resize
from bidir.run.checkpoint import load_network
from bidir.run.evaluation import predict_maps
from bidir.run.folder import RunFolder

GROUPS = ("background", "found object", "missed object")  # by the mask; objects where the CAM is right, where not


def push(logits: Float[Tensor, "B C h w"], y_s: Int[Tensor, "B h w"]) -> Float[Tensor, "B C h w"]:
    """How the paper's L_s2c moves each class's CAM at each pixel: minus its gradient there, times the pixels that Y_s
    labels as foreground. 1: up as hard as it can; -1: down; 0 where Y_s is background or ignored."""
    logits = logits.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(feedback_loss(logits, y_s, torch.zeros_like(logits[:, :1]), None, "ce"), logits)
    return -gradient * ((y_s > 0) & (y_s != IGNORE)).sum()


def lessons(network: DualBranchNetwork, split: Split, config: RunConfig) -> pd.DataFrame:
    """Over the images of ``split``, one pass each, at a quarter of their resolution: a row for each of ``GROUPS``, with
    how many pixels, how many each teacher labels (says), rightly (right), rightly where the other does not (only), of
    these where the other labels wrongly (corrects), of those labelled how many its pupil's own map has right (pupil),
    how many Y_s labels as a class that they are not (wrong). What L_s2c asks of the CAM (``push``), summed: of the
    class that Y_s names, where that is right and where not (``asks_right``, ``asks_wrong``); of the image's classes
    (``asks_label``). On objects, neither ``s_right`` nor ``s_wrong``: background to Y_s, or ignored. Never to train."""
    images, device = WholeImages(split, config.eval_size), next(network.parameters()).device
    parts = [_lessons(network, collate([images[i]]).to(device), config) for i in range(len(split))]
    return pd.concat(parts).groupby("group", sort=False).sum().reset_index()


def _lessons(network: DualBranchNetwork, batch: Batch, config: RunConfig) -> pd.DataFrame:
    names = "cam", "y_c", "y_s", "branch_c", "branch_s"
    made = predict_maps(network, batch, config, {"raw": {*names}})
    logits = multi_scale_pass(network, batch.image, needed((1.0,), False))[1.0].cam_logits.float()
    size, classes = tuple(-(-side // 4) for side in batch.image.shape[-2:]), batch.label[..., None, None]
    truth, *maps = (nearest(mask, size) for mask in (batch.mask, *(made["raw", name] for name in names)))
    cam, y_c, y_s, branch_c, branch_s = maps
    named, objects, rows = (y_s > 0) & (y_s != IGNORE), (truth > 0) & (truth != IGNORE), []
    moved = push(resize(logits, size), y_s)
    asked = moved.gather(1, torch.where(named, y_s - 1, 0)[:, None])[:, 0]
    asks = {"right": asked * (y_s == truth), "wrong": asked * (y_s != truth), "label": (moved * classes).sum(1)}
    for name, group in zip(GROUPS, (truth == 0, objects & (cam == truth), objects & (cam != truth)), strict=True):
        row = {"group": name, "pixels": int(group.sum()), "s_wrong": int((group & named & (y_s != truth)).sum())}
        for who, own, other, pupil in (("c", y_c, y_s, branch_s), ("s", y_s, y_c, branch_c)):
            right, says = group & (own == truth), group & (own != IGNORE)
            counts = {"says": says, "right": right, "only": right & (other != truth), "pupil": says & (pupil == truth)}
            counts["corrects"] = counts["only"] & (other != IGNORE)
            row |= {f"{who}_{what}": int(where.sum()) for what, where in counts.items()}
        rows.append(row | {f"asks_{what}": float(where[group].sum()) for what, where in asks.items()})
    return pd.DataFrame(rows)


def over_checkpoints(run: RunFolder, images: int, rules: dict[str, dict] | None = None, **where: str) -> pd.DataFrame:
    """``lessons`` on so many validation images, of the weights that are scored, at each checkpoint that a finished run
    kept since its S -> C began and at its last: columns run_id, step, images beside. Of the last also as if Y_s were
    made by other settings, ``rules`` by name: column y_s, "as trained" else. ``where``: the machine's settings."""
    config = RunConfig.from_stored(run.facts()["config"]).replace(**where)
    split = open_split(config, "val")
    split = split.select(split.spread(images))
    every = sorted({**run.kept(), config.iterations: run.checkpoint}.items())
    every = [({"step": step, "y_s": "as trained"}, path, {}) for step, path in every if step >= config.s2c_start]
    every += [({**every[-1][0], "y_s": name}, every[-1][1], rule) for name, rule in (rules or {}).items()]
    tables = [lessons(load_network(path)[0], split, config.replace(**rule)).assign(**of) for of, path, rule in every]
    return pd.concat(tables).assign(run_id=run.run_id, images=images)
