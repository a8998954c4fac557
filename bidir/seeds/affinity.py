"""The affinity between tokens: its neighbourhood, and one step of a random walk over it (AFA)."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

RADIUS = 8  # tokens, in each direction


@lru_cache(maxsize=4)  # one entry per image size
def radius_mask(height: int, width: int, device: torch.device) -> Bool[Tensor, "N N"]:
    """Which pairs of tokens lie at most ``RADIUS`` rows and ``RADIUS`` columns apart; N = height * width."""
    rows = torch.arange(height, device=device).repeat_interleave(width)
    columns = torch.arange(width, device=device).repeat(height)
    near_rows = (rows[:, None] - rows).abs() <= RADIUS
    return near_rows & ((columns[:, None] - columns).abs() <= RADIUS)


def random_walk(seed: Float[Tensor, "B K h w"], affinity: Float[Tensor, "B N N"]) -> Float[Tensor, "B K h w"]:
    """seed @ T, T the squared affinity within the radius, each column divided by (its sum + 0.1)."""
    transition = affinity**2 * radius_mask(*seed.shape[-2:], seed.device)
    transition = transition / (transition.sum(1, keepdim=True) + 0.1)
    return (seed.flatten(2) @ transition).view_as(seed)
