"""One confusion matrix over the whole dataset, and what is read off it."""

from __future__ import annotations

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from bidir.data.split import IGNORE


class ConfusionMatrix:
    """Counts of pixels by true class (rows 0..C) and predicted class (columns 0..C, then "ignored")."""

    def __init__(self, num_classes: int) -> None:
        self.size = num_classes + 1
        self.counts = torch.zeros(self.size, self.size + 1, dtype=torch.int64)

    def update(self, prediction: Int[Tensor, "..."], truth: Int[Tensor, "..."]) -> None:
        """Count a batch. Pixels whose truth is 255 do not count; a predicted 255 counts as ignored."""
        valid = truth != IGNORE
        predicted = torch.where(prediction[valid] == IGNORE, self.size, prediction[valid]).long()
        flat = truth[valid].long() * (self.size + 1) + predicted
        self.counts += torch.bincount(flat, minlength=self.counts.numel()).view_as(self.counts).cpu()

    def pixels(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels per class, each (C + 1,): right, true and predicted; ignored predictions count in none."""
        labelled = self.counts[:, :-1].double()
        return labelled.diagonal(), labelled.sum(1), labelled.sum(0)

    def table(self, class_names: tuple[str, ...]) -> pd.DataFrame:
        """One row per class (background first), then ``mean``; iou, precision, recall, coverage in 0..1.

        Ignored pixels count for coverage alone: precision, recall and IoU are over the labelled pixels.
        A class that is neither there nor predicted has IoU NaN and is left out of the mean (mIoU).
        """
        hit, true, predicted = self.pixels()
        table = pd.DataFrame(
            {
                "class": ["background", *class_names],
                "iou": hit / (true + predicted - hit),
                "precision": hit / predicted,
                "recall": hit / true,
                "coverage": true / self.counts.sum(1),
            }
        )
        mean = {"class": "mean", **table.drop(columns="class").mean().to_dict()}
        mean["coverage"] = float(true.sum() / self.counts.sum())
        return pd.concat([table, pd.DataFrame([mean])], ignore_index=True)
