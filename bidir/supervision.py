"""The two directions of supervision: pseudo-labels for a batch, and the loss terms made with them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bidir.config import RunConfig
from bidir.data.loader import Batch
from bidir.data.split import IGNORE
from bidir.losses import affinity_loss, classification_loss, dense_loss, foreground_target
from bidir.model.network import DualBranchNetwork, Outputs, resize
from bidir.schedule import Active
from bidir.seeds.affinity import radius_mask
from bidir.seeds.maps import evaluating, multi_scale_maps
from bidir.seeds.propagation import Propagator, segmentation_pseudo_label


class PseudoLabels(NamedTuple):
    """Targets of a step; what no active term uses is None."""

    y_c: Int[Tensor, "B H W"] | None = None  # C teaches S (the mask, for the oracle)
    y_s: Int[Tensor, "B h4 w4"] | None = None  # S teaches C
    tokens: Int[Tensor, "B H W"] | None = None  # PAR pseudo-label, for the affinity


def make_pseudo_labels(network: DualBranchNetwork, batch: Batch, config: RunConfig, on: Active) -> PseudoLabels:
    """The targets that the active terms need, from eval mode; passes that no term needs are not run."""
    y_c, y_s, tokens, logits = batch.mask if on.full else None, None, None, None
    if on.c2s or on.aff:
        background = on.c2s and on.propagation == "bsp"  # Branch-S at all scales; Y_s needs it at scale 1 alone
        decoded = config.seed_scales if background else (1.0,) if on.s2c else ()
        walk = on.c2s and on.propagation == "afa"
        maps = multi_scale_maps(network, batch.image, batch.box, config.seed_scales, decoded, walk)
        propagate = Propagator(maps, batch.image, batch.label, batch.box, config)
        logits = maps.segmentation_logits
        y_c = propagate(on.propagation) if on.c2s else None
        if on.aff:
            tokens = y_c if on.c2s and on.propagation == "par" else propagate("par")
    if on.s2c:
        if logits is None:
            with evaluating(network):
                logits = network(batch.image).segmentation_logits.float()
        y_s = segmentation_pseudo_label(logits, batch.label, batch.box, tuple(batch.image.shape[-2:]), config)
    return PseudoLabels(y_c, y_s, tokens)


def loss_terms(
    outputs: Outputs, batch: Batch, targets: PseudoLabels, config: RunConfig
) -> dict[str, Float[Tensor, ""]]:
    """The active terms by name, unweighted: cls, c2s, s2c, aff."""
    terms = {"cls": classification_loss(outputs.class_logits.float(), batch.label)}
    if targets.y_c is not None:
        logits = resize(outputs.segmentation_logits.float(), targets.y_c.shape[-2:])
        terms["c2s"] = dense_loss(logits, targets.y_c, config.c2s_loss)
    if targets.y_s is not None:
        logits = resize(outputs.cam_logits.float(), targets.y_s.shape[-2:])
        terms["s2c"] = dense_loss(logits, foreground_target(targets.y_s), config.s2c_loss)
    if targets.tokens is not None:
        grid = tuple(outputs.cam_logits.shape[-2:])
        tokens = nearest(targets.tokens, grid).flatten(1)
        terms["aff"] = affinity_loss(outputs.affinity.float(), tokens, radius_mask(*grid, tokens.device))
    return terms


def labelled_shares(targets: PseudoLabels) -> dict[str, Float[Tensor, ""]]:
    """How much each teacher says: the share of pixels that Y_c labels, and that Y_s labels as foreground."""
    shares = {}
    if targets.y_c is not None:
        shares["c2s_share"] = (targets.y_c != IGNORE).float().mean()
    if targets.y_s is not None:
        shares["s2c_share"] = ((targets.y_s > 0) & (targets.y_s != IGNORE)).float().mean()
    return shares


def total_loss(terms: dict[str, Float[Tensor, ""]], config: RunConfig) -> Float[Tensor, ""]:
    """L_cls + lambda_1 L_c2s + lambda_2 L_s2c + lambda_3 L_aff.

    Errors: ``FloatingPointError`` naming the terms that are not finite.
    """
    weights = {"cls": 1.0, "c2s": config.lambda_c2s, "s2c": config.lambda_s2c, "aff": config.lambda_aff}
    total = sum(weights[name] * term for name, term in terms.items())
    if not torch.isfinite(total):
        bad = [f"{name} = {term.item()}" for name, term in terms.items() if not torch.isfinite(term)]
        raise FloatingPointError(f"the loss is not finite: {', '.join(bad)}; lower learning_rate or set grad_clip")
    return total


def nearest(label: Int[Tensor, "B H W"], size: tuple[int, int]) -> Int[Tensor, "B h w"]:
    """Nearest-neighbour resize of class ids."""
    return torch.nn.functional.interpolate(label[:, None].float(), size=size, mode="nearest")[:, 0].long()
