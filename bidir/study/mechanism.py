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
    how many pixels, how many of them each teacher labels (says), labels rightly (right), and rightly where the other
    does not (only); how many Y_s labels as a class that they are not (wrong). ``asks_right`` and ``asks_wrong``: what
    L_s2c asks of the CAM for the class that Y_s names (``push``), where that is right and where not, summed. On objects
    what is not ``s_right`` or ``s_wrong`` is background to Y_s, or ignored. Opens masks: to look at, never to train."""
    images, device = WholeImages(split, config.eval_size), next(network.parameters()).device
    parts = [_lessons(network, collate([images[i]]).to(device), config) for i in range(len(split))]
    return pd.concat(parts).groupby("group", sort=False).sum().reset_index()


def _lessons(network: DualBranchNetwork, batch: Batch, config: RunConfig) -> pd.DataFrame:
    made = predict_maps(network, batch, config, {"raw": {"cam", "y_c", "y_s"}})
    logits = multi_scale_pass(network, batch.image, needed((1.0,), False))[1.0].cam_logits.float()
    size = tuple(-(-side // 4) for side in batch.image.shape[-2:])
    masks = batch.mask, *(made["raw", name] for name in ("cam", "y_c", "y_s"))
    truth, cam, y_c, y_s = (nearest(mask, size) for mask in masks)
    named, objects, rows = (y_s > 0) & (y_s != IGNORE), (truth > 0) & (truth != IGNORE), []
    asked = push(resize(logits, size), y_s).gather(1, torch.where(named, y_s - 1, 0)[:, None])[:, 0]
    for name, group in zip(GROUPS, (truth == 0, objects & (cam == truth), objects & (cam != truth)), strict=True):
        row = {"group": name, "pixels": int(group.sum()), "s_wrong": int((group & named & (y_s != truth)).sum())}
        for who, own, other in (("c", y_c, y_s), ("s", y_s, y_c)):
            right = group & (own == truth)
            counts = {"says": group & (own != IGNORE), "right": right, "only": right & (other != truth)}
            row |= {f"{who}_{what}": int(where.sum()) for what, where in counts.items()}
        for what, where in {"right": y_s == truth, "wrong": y_s != truth}.items():
            row[f"asks_{what}"] = float(asked[group & named & where].sum())
        rows.append(row)
    return pd.DataFrame(rows)


def over_checkpoints(run: RunFolder, images: int, rules: dict[str, dict] | None = None, **where: str) -> pd.DataFrame:
    """``lessons`` on so many validation images, of the weights that are scored, at each checkpoint that a finished run
    kept since its S -> C began and at its last: columns run_id, step, images beside. Of the last also as if Y_s were
    made by other settings, ``rules`` by name: column y_s, "as trained" else. ``where``: the machine's settings."""
    config = RunConfig.from_stored(run.facts()["config"]).replace(**where)
    split = open_split(config, "val")
    split = split.select(split.spread(images))
    every = sorted({**run.kept(), config.iterations: run.checkpoint}.items())
    every = [(step, path, "as trained", {}) for step, path in every if step >= config.s2c_start]
    every += [(*every[-1][:2], *rule) for rule in (rules or {}).items()]
    tables = []
    for step, path, name, rule in every:
        tables.append(lessons(load_network(path)[0], split, config.replace(**rule)).assign(step=step, y_s=name))
    return pd.concat(tables).assign(run_id=run.run_id, images=images)
