"""One confusion matrix over the whole dataset, and what is read off it."""

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from bidir.method.tensors import IGNORE


def confusion(prediction: Int[Tensor, "N H W"], truth: Int[Tensor, "N H W"], num_classes: int) -> Int[Tensor, "N S S1"]:
    """Pixels of each image by true class (rows 0..C) and predicted class (columns 0..C, then "ignored").
    Pixels whose truth is 255 do not count; a predicted 255 counts as ignored."""
    size, images = num_classes + 1, len(truth)
    cells = size * (size + 1) + 1  # the last is for pixels that do not count
    cell = truth * (size + 1) + torch.where(prediction == IGNORE, size, prediction)
    cell = torch.where(truth == IGNORE, cells - 1, cell).flatten(1)
    counts = torch.zeros(images, cells, dtype=torch.int64, device=truth.device)
    return counts.scatter_add_(1, cell, torch.ones_like(cell))[:, :-1].reshape(images, size, size + 1)


def pixels(counts: Int[Tensor, "*N S S1"]) -> tuple[Int[Tensor, "*N S"], Int[Tensor, "*N S"], Int[Tensor, "*N S"]]:
    """Pixels per class: right, true and predicted; ignored predictions count in none."""
    labelled = counts[..., :-1]
    return labelled.diagonal(dim1=-2, dim2=-1), labelled.sum(-1), labelled.sum(-2)


def score_table(counts: Int[Tensor, "S S1"], class_names: tuple[str, ...]) -> pd.DataFrame:
    """One row per class (background first), then ``mean``; iou, precision, recall, coverage in 0..1.
    Ignored pixels count for coverage alone: precision, recall and IoU are over the labelled pixels.
    A class that is neither there nor predicted has IoU NaN and is left out of the mean (mIoU)."""
    hit, true, predicted = (values.double() for values in pixels(counts))
    table = pd.DataFrame({
        "class": ["background", *class_names], "iou": hit / (true + predicted - hit), "precision": hit / predicted,
        "recall": hit / true, "coverage": true / counts.sum(1),
    })  # fmt: skip
    mean = {"class": "mean", **table.drop(columns="class").mean().to_dict()}
    mean["coverage"] = float(true.sum() / counts.sum())
    return pd.concat([table, pd.DataFrame([mean])], ignore_index=True)
