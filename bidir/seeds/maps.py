"""Multi-scale, flipped passes in eval mode: the maps that pseudo-labels are made from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bidir.model.network import DualBranchNetwork, rescale, resize


class SeedMaps(NamedTuple):
    """Maps at half the image's resolution (h2, w2), each channel min-max normalised over the true image."""

    cam: Float[Tensor, "B C h2 w2"]
    segmentation: Float[Tensor, "B S h2 w2"] | None  # over the decoded scales
    segmentation_logits: Float[Tensor, "B S h4 w4"] | None  # scale 1, not flipped, not normalised
    class_logits: Float[Tensor, "B C"]  # scale 1, not flipped
    affinity: Float[Tensor, "B N N"] | None  # of the largest scale, not flipped
    grid: tuple[int, int]  # rows and columns of the tokens of the affinity


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside: no dropout, batch-norm statistics untouched."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)


def multi_scale_maps(
    network: DualBranchNetwork,
    image: Float[Tensor, "B 3 H W"],
    box: Int[Tensor, "B 4"],
    scales: tuple[float, ...],
    decoded: tuple[float, ...] = (),
    affinity: bool = False,
    flip: bool = True,
) -> SeedMaps:
    """CAM: maximum over the flip pair, ReLU, sum over scales. P_s: mean over the pair, sum over scales.

    Args: image RGB in 0..255; ``scales`` with 1 among them; ``decoded`` are those of them at which
    Branch-S is needed too; ``affinity`` says whether it is; ``flip=False`` leaves the mirrored pass out.
    """
    height, width = image.shape[-2:]
    half = (height // 2, width // 2)
    cam = scores = logits = relation = class_logits = None
    grid = (0, 0)

    def pair(maps: Tensor) -> tuple[Tensor, Tensor]:
        """The plain and the mirrored maps, both upright, at half resolution."""
        maps = resize(maps.float(), half)
        return (maps[: len(image)], maps[len(image) :].flip(3)) if flip else (maps, maps)

    with evaluating(network):
        for scale in scales:
            largest = affinity and scale == max(scales)
            scaled = rescale(image, scale)
            views = torch.cat([scaled, scaled.flip(3)]) if flip else scaled
            out = network(views, segmentation=scale in decoded, affinity=largest)
            cam = F.relu(torch.maximum(*pair(out.cam_logits))) + (0 if cam is None else cam)
            if scale in decoded:
                scores = sum(pair(out.segmentation_logits)) / 2 + (0 if scores is None else scores)
            if scale == 1:
                class_logits = out.class_logits[: len(image)].float()
                logits = out.segmentation_logits[: len(image)].float() if scale in decoded else None
            if largest and out.affinity is not None:
                relation, grid = out.affinity[: len(image)].float(), tuple(out.cam_logits.shape[-2:])
        real = box_mask(box, (height, width), half)
        scores = None if scores is None else min_max(scores, real)
        return SeedMaps(min_max(cam, real), scores, logits, class_logits, relation, grid)


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
