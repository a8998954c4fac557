"""What the whole method shares: a batch, the value that nothing counts, boxes of true images, and resizing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORE = 255  # class id of pixels that no loss and no score counts


@dataclass
class Batch:
    """Images as RGB in 0..255, their labels in {0, 1}, and ``box``: top, left, bottom, right of the true image
    within the padded one. ``mask``: at a whole image's own size. ``index``: positions in the split."""

    image: Float[Tensor, "B 3 H W"]
    label: Float[Tensor, "B C"]
    box: Int[Tensor, "B 4"]
    mask: Int[Tensor, "B H2 W2"] | None
    index: Int[Tensor, "B"]  # noqa: F821

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(
            *(value if value is None else value.to(device, non_blocking=True) for value in vars(self).values())
        )

    def parts(self, size: int) -> list[Batch]:
        """The batch in pieces of at most ``size`` images; 0: in one."""
        if not 0 < size < len(self.image):
            return [self]
        pieces = [[None] * -(-len(self.image) // size) if v is None else v.split(size) for v in vars(self).values()]
        return [Batch(*piece) for piece in zip(*pieces, strict=True)]


def resize(maps: Float[Tensor, "B K h w"], size: tuple[int, int]) -> Float[Tensor, "B K h2 w2"]:
    """Bilinear resize to ``size``; no work if the maps have it."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def nearest(label: Int[Tensor, "B H W"], size: tuple[int, int]) -> Int[Tensor, "B h w"]:
    """Nearest-neighbour resize of class ids."""
    return F.interpolate(label[None].to(torch.uint8), size=size, mode="nearest")[0].long()


def rescale(image: Float[Tensor, "B 3 H W"], scale: float = 1.0) -> Float[Tensor, "B 3 H2 W2"]:
    """The image at a scale, no side below 32 pixels: the least that a Mix Transformer takes."""
    height, width = (max(32, round(side * scale)) for side in image.shape[-2:])
    return resize(image, (height, width))


def box_mask(box: Int[Tensor, "B 4"], full: tuple[int, int], size: tuple[int, int]) -> Bool[Tensor, "B h w"]:
    """Which positions of a (h, w) grid over an image of ``full`` pixels have their centre in the box."""
    rows, columns = (
        (torch.arange(n, device=box.device) + 0.5) * whole / n for n, whole in zip(size, full, strict=True)
    )
    top, left, bottom, right = box[:, :, None].unbind(1)
    in_rows, in_columns = (rows > top) & (rows < bottom), (columns > left) & (columns < right)
    return in_rows[:, :, None] & in_columns[:, None, :]


def min_max(maps: Float[Tensor, "B K h w"], real: Bool[Tensor, "B h w"]) -> Float[Tensor, "B K h w"]:
    """Each map to 0..1 over the real pixels; 0 elsewhere, and everywhere if the map is constant."""
    outside = ~real[:, None]
    low = maps.masked_fill(outside, torch.inf).amin((2, 3), keepdim=True)
    high = maps.masked_fill(outside, -torch.inf).amax((2, 3), keepdim=True)
    return ((maps - low) / (high - low).clamp(min=1e-5)).masked_fill(outside, 0)
