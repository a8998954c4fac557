"""Who teaches whom when: what is on at an iteration, its targets, the loss terms made with them, and their total."""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bidir.config import Supervision
from bidir.method.losses import affinity_loss, classification_loss, dense_loss, feedback_loss
from bidir.method.maps import mixed, multi_scale_pass, needed, seed_maps
from bidir.method.network import DualBranchNetwork, Outputs
from bidir.method.propagation import Propagator, radius_mask, refinement, segmentation_pseudo_label
from bidir.method.tensors import IGNORE, Batch, box_mask, min_max, nearest, resize


class Active(NamedTuple):
    """The supervision at work at an iteration."""

    c2s: bool
    s2c: bool
    aff: bool
    full: bool
    propagation: str  # how Y_c is made now
    warm: bool  # whether Branch-S is decoded with weight 0


def active(config: Supervision, step: int) -> Active:
    """Which terms are on at iteration ``step``; a term of weight 0 is off."""
    late, seeded = step >= config.propagation_start, step >= config.c2s_start
    c2s = config.supervision in ("c2s", "both") and config.lambda_c2s > 0
    return Active(
        c2s=c2s and seeded,
        s2c=config.supervision in ("s2c", "both") and step >= config.s2c_start and config.lambda_s2c > 0,
        aff=config.lambda_aff > 0 and config.supervision != "full" and seeded,
        full=config.supervision == "full",
        propagation=config.propagation if late else "par",
        warm=c2s and config.warm_branch_s and not seeded,
    )


def taught_by_training_pass(config: Supervision) -> bool:
    """Whether the training pass itself is the teacher: one scale, not mirrored, of the weights themselves."""
    return config.teacher_scales == (1.0,) and not config.teacher_flip and not config.ema_teacher


def forward(model: torch.nn.Module, batch: Batch, config: Supervision, on: Active) -> Outputs:
    """The training pass: what the active terms need of it, and their teachers if it is these too."""
    trained, cheap = on.c2s or on.full or on.warm, taught_by_training_pass(config)
    walked = cheap and on.c2s and on.propagation == "afa"
    observed = cheap and on.s2c and not trained
    return model(batch.image, segmentation=trained or observed, affinity=on.aff or walked, observed=observed)


class Targets(NamedTuple):
    """What a step learns from; what no active term uses is None."""

    y_c: Int[Tensor, "B H W"] | None = None  # C teaches S (the mask, for the oracle)
    y_s: Int[Tensor, "B h4 w4"] | None = None  # S teaches C
    background: Float[Tensor, "B 1 h4 w4"] | None = None  # P_s's logit beside Y_s
    tokens: Int[Tensor, "B H W"] | None = None  # PAR pseudo-label, for the affinity


def make_targets(
    teacher: DualBranchNetwork, outputs: Outputs, batch: Batch, config: Supervision, on: Active
) -> Targets:
    """The targets that the active terms need, from ``outputs`` of the training pass where that teaches, else from
    passes of ``teacher`` in eval mode; what no term needs is not computed."""
    batch = batch if batch.clean is None else replace(batch, image=batch.clean)
    scales, flip = config.teacher_scales if on.c2s or on.aff else (), config.teacher_flip
    if taught_by_training_pass(config):
        passes = {1.0: Outputs(*(value if value is None else value.detach() for value in outputs))}
    else:
        asked = needed(scales, flip, on.propagation if on.c2s else "")
        passes = multi_scale_pass(teacher, batch.image, asked | needed((), False, branch_s=(1.0,) if on.s2c else ()))
    y_c, y_s, background, tokens = batch.mask if on.full else None, None, None, None
    if scales:
        maps, par = seed_maps(passes, batch, scales, flip), refinement(batch, config)
        propagate = Propagator(maps, batch, config, par)
        if on.c2s and on.propagation == "bsp" and config.seed_share:
            shared = mixed(maps, passes[1.0].segmentation_logits[: len(batch.image)].float(), batch, config)
            y_c = Propagator(shared, batch, config, par)("bsp")
        elif on.c2s:
            y_c = propagate(on.propagation)
        if on.aff:
            tokens = y_c if on.c2s and on.propagation == "par" else propagate("par")
    if on.s2c:
        logits = passes[1.0].segmentation_logits[: len(batch.image)].float()
        y_s, background = segmentation_pseudo_label(logits, batch, config), logits[:, :1]
    return Targets(y_c, y_s, background, tokens)


def loss_terms(
    outputs: Outputs, batch: Batch, targets: Targets, config: Supervision, on: Active
) -> dict[str, Float[Tensor, ""]]:
    """The active terms by name, unweighted: cls, c2s, s2c, aff, warm."""
    terms = {"cls": classification_loss(outputs.class_logits.float(), batch.label)}
    if targets.y_c is not None:
        logits = resize(outputs.segmentation_logits.float(), targets.y_c.shape[-2:])
        terms["c2s"] = dense_loss(logits, targets.y_c, config.c2s_loss, config.c2s_balance)
    if targets.y_s is not None:
        logits = resize(outputs.cam_logits.float(), targets.y_s.shape[-2:])
        normalised = None
        if config.s2c_loss == "cam":
            real = box_mask(batch.box, tuple(batch.image.shape[-2:]), tuple(logits.shape[-2:]))
            normalised = min_max(F.relu(logits), real) * batch.label[:, :, None, None]
        terms["s2c"] = feedback_loss(logits, targets.y_s, targets.background, normalised, config.s2c_loss)
    if targets.tokens is not None:
        grid = tuple(outputs.cam_logits.shape[-2:])
        tokens = nearest(targets.tokens, grid).flatten(1)
        terms["aff"] = affinity_loss(outputs.affinity.float(), tokens, radius_mask(*grid, tokens.device))
    if on.warm:
        terms["warm"] = outputs.segmentation_logits.float().mean()
    return terms


def labelled_shares(targets: Targets) -> dict[str, Float[Tensor, ""]]:
    """How much each teacher says: the share of pixels that Y_c labels, and that Y_s labels as foreground."""
    y_c, y_s = targets.y_c, targets.y_s
    shares = {} if y_c is None else {"c2s_share": (y_c != IGNORE).float().mean()}
    return shares if y_s is None else {**shares, "s2c_share": ((y_s > 0) & (y_s != IGNORE)).float().mean()}


def total_loss(terms: dict[str, Float[Tensor, ""]], config: Supervision) -> Float[Tensor, ""]:
    """L_cls + lambda_1 L_c2s + lambda_2 L_s2c + lambda_3 L_aff; a term that warms Branch-S has weight 0."""
    weights = {"cls": 1.0, "c2s": config.lambda_c2s, "s2c": config.lambda_s2c, "aff": config.lambda_aff, "warm": 0.0}
    return sum(weights[name] * term for name, term in terms.items())
