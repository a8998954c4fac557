"""What is on at an iteration: the learning rate, and the terms of the loss."""

from __future__ import annotations

from typing import NamedTuple

from bidir.config import RunConfig


def learning_rate(config: RunConfig, step: int) -> float:
    """Learning rate of the encoder at iteration ``step``: linear warm-up, then poly with power 1."""
    decayed = config.learning_rate * (1 - step / config.iterations)
    if step >= config.warmup_iterations:
        return decayed
    return config.warmup_lr + (config.learning_rate - config.warmup_lr) * step / config.warmup_iterations


class Active(NamedTuple):
    """The supervision at work at an iteration."""

    c2s: bool
    s2c: bool
    aff: bool
    full: bool
    propagation: str  # how Y_c is made now


def active(config: RunConfig, step: int) -> Active:
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
