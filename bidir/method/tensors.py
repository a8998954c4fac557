"""What the whole method shares: a batch, the value that nothing counts, boxes of true images, and resizing."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from bidir.config import IGNORE as IGNORE


@dataclass
class Batch:
    """Images as RGB in 0..255, their labels in {0, 1}, and ``box``: top, left, bottom, right of the true image
    within the padded one. ``mask``: at a whole image's own size. ``index``: positions in the split. ``most``: as many
    classes as any image shows, at least 1, known without asking the device."""

    image: Float[Tensor, "B 3 H W"]
    label: Float[Tensor, "B C"]
    box: Int[Tensor, "B 4"]
    mask: Int[Tensor, "B H2 W2"] | None
    index: Int[Tensor, "B"]  # noqa: F821
    most: int
    clean: Float[Tensor, "B 3 H W"] | None = None  # the images before a change of colour, for a teacher

    def tensors(self) -> dict[str, Shaped[Tensor, "B ..."]]:
        """Those of its fields that are tensors."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in self.tensors().items()})

    def pin_memory(self) -> "Batch":
        """The batch in memory from which a GPU copies while it computes; the loader asks for it."""
        return replace(self, **{name: value.pin_memory() for name, value in self.tensors().items()})

    def parts(self, size: int) -> list["Batch"]:
        """The batch in pieces of at most ``size`` images; 0: in one."""
        if not 0 < size < len(self.image):
            return [self]
        starts = range(0, len(self.image), size)
        return [replace(self, **{name: value[i : i + size] for name, value in self.tensors().items()}) for i in starts]


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
    return resize(image, tuple(max(32, int(side * scale)) for side in image.shape[-2:]))


def box_on_grid(box: Int[Tensor, "B 4"], full: tuple[int, int], size: tuple[int, int]) -> Int[Tensor, "B 4"]:
    """The positions of a grid over an image of ``full`` pixels whose centre is in the box: a box too, never empty."""
    edges = []
    for side, whole, low, high in zip(size, full, box[:, :2].unbind(1), box[:, 2:].unbind(1), strict=True):
        first = (low * (side / whole) + 0.5).floor().clamp(max=side - 1)
        edges.append((first, torch.maximum((high * (side / whole) - 0.5).ceil().clamp(max=side), first + 1)))
    (top, bottom), (left, right) = edges
    return torch.stack([top, left, bottom, right], 1).long()


def box_mask(box: Int[Tensor, "B 4"], full: tuple[int, int], size: tuple[int, int]) -> Bool[Tensor, "B h w"]:
    """Which positions of a grid lie in ``box_on_grid``."""
    rows, columns = (torch.arange(side, device=box.device) for side in size)
    top, left, bottom, right = box_on_grid(box, full, size)[:, :, None].unbind(1)
    return ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]


def min_max(maps: Float[Tensor, "B K h w"], real: Bool[Tensor, "B h w"]) -> Float[Tensor, "B K h w"]:
    """Each map to 0..1 over the real pixels; 0 elsewhere, and everywhere if the map is constant."""
    outside = ~real[:, None]
    low = maps.masked_fill(outside, torch.inf).amin((2, 3), keepdim=True)
    high = maps.masked_fill(outside, -torch.inf).amax((2, 3), keepdim=True)
    return ((maps - low) / (high - low).clamp(min=1e-5)).masked_fill(outside, 0)


def extend(maps: Float[Tensor, "B K h w"], box: Int[Tensor, "B 4"], margin: int = 0) -> Float[Tensor, "B K H W"]:
    """The maps with ``margin`` more positions on each side, where all outside a box is as the nearest inside it."""
    top, left, bottom, right = box[:, :, None].unbind(1)
    rows, columns = (torch.arange(-margin, side + margin, device=box.device) for side in maps.shape[-2:])
    rows = torch.minimum(torch.maximum(rows, top), bottom - 1)[:, None, :, None]
    columns = torch.minimum(torch.maximum(columns, left), right - 1)[:, None, None, :]
    maps = maps.gather(2, rows.expand(-1, maps.shape[1], -1, maps.shape[3]))
    return maps.gather(3, columns.expand(-1, maps.shape[1], maps.shape[2], -1))
