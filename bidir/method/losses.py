"""The loss terms of BMP, each exactly 0 with zero gradient when nothing qualifies.

Where several processes train, means are over the pixels of all: gradients are averaged over processes afterwards."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bidir.method.distributed import count, total
from bidir.method.tensors import IGNORE


def classification_loss(class_logits: Float[Tensor, "B C"], label: Float[Tensor, "B C"]) -> Float[Tensor, ""]:
    """L_cls: multi-label soft margin, mean over images and classes."""
    return F.multilabel_soft_margin_loss(class_logits, label)


def dense_loss(logits: Float[Tensor, "B K h w"], target: Int[Tensor, "B h w"], kind: str) -> Float[Tensor, ""]:
    """Mean loss over the pixels whose target is not 255; 0 if there is none.
    ``ce``: cross-entropy over the K channels. ``bce``: binary cross-entropy of each channel against
    the one-hot target, mean over channels."""
    valid = target != IGNORE
    safe = target.masked_fill(~valid, 0)
    if kind == "ce":
        loss = -logits.log_softmax(1).gather(1, safe[:, None]).squeeze(1)
    else:
        one_hot = torch.zeros_like(logits).scatter_(1, safe[:, None], 1)
        loss = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").mean(1)
    pixels = total(valid.sum()).clamp(min=1) / count()
    return torch.where(valid, loss, 0).sum() / pixels


def foreground_target(pseudo_label: Int[Tensor, "B h w"]) -> Int[Tensor, "B h w"]:
    """Y_s for Branch-C: class 1..C becomes channel 0..C-1; background is ignored."""
    foreground = (pseudo_label != 0) & (pseudo_label != IGNORE)
    return torch.where(foreground, pseudo_label - 1, IGNORE)


def affinity_loss(
    affinity: Float[Tensor, "B N N"], token_label: Int[Tensor, "B N"], near: Bool[Tensor, "N N"]
) -> Float[Tensor, ""]:
    """L_aff: mean of 1 - a over pairs of equal label and of a over unequal, each count + 1, halved.
    Pairs farther apart than ``near`` allows, or with an ignored token, are left out."""
    known = token_label != IGNORE
    pairs = near & known[:, :, None] & known[:, None, :]
    equal = token_label[:, :, None] == token_label[:, None, :]
    positive, negative = pairs & equal, pairs & ~equal
    pairs_of = (total(torch.stack([positive.sum(), negative.sum()])) + 1) / count()
    attract = ((1 - affinity) * positive).sum() / pairs_of[0]
    repel = (affinity * negative).sum() / pairs_of[1]
    return 0.5 * (attract + repel)
