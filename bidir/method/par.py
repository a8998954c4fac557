"""Pixel-adaptive refinement (PAR, from AFA, CVPR 2022), as one fused gather-and-sum per iteration."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

DILATIONS = (1, 2, 4, 8, 12, 24)
OFFSETS = [(dy * d, dx * d) for d in DILATIONS for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
COLOUR_SCALE, POSITION_WEIGHT = 0.3, 0.01


class PAR:
    """PAR for a batch of images, at their resolution.

    Colour term: -((|n - i| / (std over the 48 neighbours + 1e-8)) / 0.3)^2, averaged over RGB, softmax
    over the neighbours; plus 0.01 times the softmax of the same form on pixel distance. The weights sum
    to 1.01, so ten iterations raise values by 1.01^10, unless ``normalized`` divides it out.
    """

    def __init__(self, image: Float[Tensor, "B 3 h w"], normalized: bool = False) -> None:
        batch, _, self.height, self.width = image.shape
        index = _neighbours(self.height, self.width, image.device)  # (h * w, 48)
        pixels = image.flatten(2)
        near = pixels[:, :, index]  # (B, 3, h * w, 48)
        std = near.std(-1, keepdim=True)
        colour = -(((near - pixels[..., None]) / (std + 1e-8) / COLOUR_SCALE) ** 2).mean(1)
        distance = torch.tensor(OFFSETS, dtype=image.dtype, device=image.device).norm(dim=1)
        position = -((distance / (distance.std() + 1e-8) / COLOUR_SCALE) ** 2)
        weight = colour.softmax(-1) + POSITION_WEIGHT * position.softmax(-1)
        self.weight = (weight / (1 + POSITION_WEIGHT) if normalized else weight).flatten(0, 1)
        start = torch.arange(batch, device=image.device) * self.height * self.width
        self.index = (index + start[:, None, None]).flatten(0, 1)  # (B * h * w, 48) rows of the flat batch

    def __call__(self, masks: Float[Tensor, "B K h w"], iterations: int = 10) -> Float[Tensor, "B K h w"]:
        """masks <- sum over the neighbours of weight * mask, ``iterations`` times."""
        flat = masks.permute(0, 2, 3, 1).flatten(0, 2).to(self.weight.dtype)  # (B * h * w, K)
        for _ in range(iterations):
            flat = F.embedding_bag(self.index, flat, per_sample_weights=self.weight, mode="sum")
        return flat.unflatten(0, (-1, self.height, self.width)).permute(0, 3, 1, 2)


@lru_cache(maxsize=4)  # one entry per image size
def _neighbours(height: int, width: int, device: torch.device) -> Int[Tensor, "hw 48"]:
    """Flat positions of each pixel's neighbours; beyond the border the nearest pixel."""
    dy, dx = torch.tensor(OFFSETS, device=device).unbind(1)
    rows = (torch.arange(height, device=device)[:, None] + dy).clamp(0, height - 1)  # (h, 48)
    columns = (torch.arange(width, device=device)[:, None] + dx).clamp(0, width - 1)  # (w, 48)
    return (rows[:, None] * width + columns).flatten(0, 1)
