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


def dense_loss(
    logits: Float[Tensor, "B K h w"], target: Int[Tensor, "B h w"], kind: str, balance: bool = False
) -> Float[Tensor, ""]:
    """Mean loss over the pixels whose target is not 255; 0 if there is none; ``balance`` as ``labelled_mean``.
    ``ce``: cross-entropy over the K channels. ``bce``: binary cross-entropy of each channel against
    the one-hot target, mean over channels."""
    valid = target != IGNORE
    safe = target.masked_fill(~valid, 0)
    if kind == "ce":
        loss = -logits.log_softmax(1).gather(1, safe[:, None]).squeeze(1)
    else:
        one_hot = torch.zeros_like(logits).scatter_(1, safe[:, None], 1)
        loss = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").mean(1)
    return labelled_mean(loss, target, balance)


def labelled_mean(
    loss: Float[Tensor, "B h w"], target: Int[Tensor, "B h w"], balance: bool = False
) -> Float[Tensor, ""]:
    """Mean over the pixels whose target is not 255; ``balance``: half that over background (0), half over the rest."""
    valid = target != IGNORE
    parts = [valid & (target == 0), valid & (target != 0)] if balance else [valid]
    pixels = total(torch.stack([part.sum() for part in parts])).clamp(min=1) / count()
    return sum(torch.where(part, loss, 0).sum() / n for part, n in zip(parts, pixels, strict=True)) / len(parts)


def foreground_target(pseudo_label: Int[Tensor, "B h w"]) -> Int[Tensor, "B h w"]:
    """Y_s for Branch-C: class 1..C becomes channel 0..C-1; background is ignored."""
    return torch.where((pseudo_label != 0) & (pseudo_label != IGNORE), pseudo_label - 1, IGNORE)


def feedback_loss(
    cam_logits: Float[Tensor, "B C h w"],
    y_s: Int[Tensor, "B h w"],
    background: Float[Tensor, "B 1 h w"],
    normalised: Float[Tensor, "B C h w"] | None,
    kind: str,
) -> Float[Tensor, ""]:
    """L_s2c, Branch-C against Y_s (0 = background, 255 = ignored). ``ce`` and ``bce``: the paper's, over the foreground
    alone. Those that hold background too: ``cosa``, binary cross-entropy of sigmoid(ReLU(P_c)) over all classes (CoSA,
    ECCV 2024); ``csrm``, cross-entropy beside ``background``, P_s's logit, detached; ``cam``, cross-entropy of the
    CAM ``normalised`` to 0..1 (0 for absent classes; no other kind reads it) beside 1 - its maximum, halves alike."""
    if kind in ("ce", "bce"):
        return dense_loss(cam_logits, foreground_target(y_s), kind)
    if kind == "csrm":
        return dense_loss(torch.cat([background, cam_logits], 1), y_s, "ce")
    if kind == "cam":
        scores = torch.cat([1 - normalised.amax(1, keepdim=True), normalised], 1)
        return dense_loss(scores.clamp(min=1e-3).log(), y_s, "ce", balance=True)
    shown = F.one_hot(y_s.masked_fill(y_s == IGNORE, 0), cam_logits.shape[1] + 1)[..., 1:].movedim(3, 1)
    loss = F.binary_cross_entropy_with_logits(F.relu(cam_logits), shown.float(), reduction="none").mean(1)
    return labelled_mean(loss, y_s)


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
