"""Who teaches whom when: what is on at an iteration, its targets, the loss terms made with them, and their total."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bidir.config import Supervision
from bidir.method.losses import affinity_loss, classification_loss, dense_loss, foreground_target
from bidir.method.maps import multi_scale_pass, needed, seed_maps
from bidir.method.network import DualBranchNetwork, Outputs
from bidir.method.propagation import Propagator, radius_mask, segmentation_pseudo_label
from bidir.method.tensors import IGNORE, Batch, nearest, resize


class Active(NamedTuple):
    """The supervision at work at an iteration."""

    c2s: bool
    s2c: bool
    aff: bool
    full: bool
    propagation: str  # how Y_c is made now


def active(config: Supervision, step: int) -> Active:
    """Which terms are on at iteration ``step``; a term of weight 0 is off."""
    late = step >= config.propagation_start
    seeded = config.supervision in ("c2s", "both") and step >= config.c2s_start
    return Active(
        c2s=seeded and config.lambda_c2s > 0,
        s2c=config.supervision in ("s2c", "both") and step >= config.s2c_start and config.lambda_s2c > 0,
        aff=config.lambda_aff > 0 and config.supervision != "full" and step >= config.c2s_start,
        full=config.supervision == "full",
        propagation=config.propagation if late else "par",
    )


class Targets(NamedTuple):
    """What a step learns from; what no active term uses is None."""

    y_c: Int[Tensor, "B H W"] | None = None  # C teaches S (the mask, for the oracle)
    y_s: Int[Tensor, "B h4 w4"] | None = None  # S teaches C
    tokens: Int[Tensor, "B H W"] | None = None  # PAR pseudo-label, for the affinity


def make_targets(network: DualBranchNetwork, batch: Batch, config: Supervision, on: Active) -> Targets:
    """The targets that the active terms need, from eval mode; passes that no term needs are not run."""
    scales = config.seed_scales if on.c2s or on.aff else ()
    asked = needed(scales, True, on.propagation if on.c2s else "")
    if on.s2c:
        asked |= needed((), False, branch_s=(1.0,))
    passes = multi_scale_pass(network, batch.image, asked)
    y_c, y_s, tokens = batch.mask if on.full else None, None, None
    if scales:
        propagate = Propagator(seed_maps(passes, batch, scales, flip=True), batch, config)
        y_c = propagate(on.propagation) if on.c2s else None
        if on.aff:
            tokens = y_c if on.c2s and on.propagation == "par" else propagate("par")
    if on.s2c:
        logits = passes[1.0].segmentation_logits[: len(batch.image)].float()
        y_s = segmentation_pseudo_label(logits, batch, config)
    return Targets(y_c, y_s, tokens)


def loss_terms(outputs: Outputs, batch: Batch, targets: Targets, config: Supervision) -> dict[str, Float[Tensor, ""]]:
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


def labelled_shares(targets: Targets) -> dict[str, Float[Tensor, ""]]:
    """How much each teacher says: the share of pixels that Y_c labels, and that Y_s labels as foreground."""
    shares = {}
    if targets.y_c is not None:
        shares["c2s_share"] = (targets.y_c != IGNORE).float().mean()
    if targets.y_s is not None:
        shares["s2c_share"] = ((targets.y_s > 0) & (targets.y_s != IGNORE)).float().mean()
    return shares


def total_loss(terms: dict[str, Float[Tensor, ""]], config: Supervision) -> Float[Tensor, ""]:
    """L_cls + lambda_1 L_c2s + lambda_2 L_s2c + lambda_3 L_aff.

    Errors: ``FloatingPointError`` naming the terms that are not finite.
    """
    weights = {"cls": 1.0, "c2s": config.lambda_c2s, "s2c": config.lambda_s2c, "aff": config.lambda_aff}
    total = sum(weights[name] * term for name, term in terms.items())
    if not torch.isfinite(total):
        bad = [f"{name} = {term.item()}" for name, term in terms.items() if not torch.isfinite(term)]
        raise FloatingPointError(f"the loss is not finite: {', '.join(bad)}; lower learning_rate or set grad_clip")
    return total
