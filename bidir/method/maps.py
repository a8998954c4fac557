"""The one pass over an image at several scales and mirrored, and the maps that are fused from it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bidir.config import Supervision
from bidir.method.network import DualBranchNetwork, Outputs, evaluating
from bidir.method.tensors import Batch, box_mask, min_max, rescale, resize

Passes = dict[float, Outputs]  # by scale; of 2 B images where the mirrored ones follow


class Needed(NamedTuple):
    """What is asked of the passes over a batch, as scales; joined by ``|``."""

    scales: frozenset[float] = frozenset()
    mirrored: frozenset[float] = frozenset()  # those at which the flip is needed too
    decoded: frozenset[float] = frozenset()  # those at which Branch-S is
    walked: frozenset[float] = frozenset()  # those at which the affinity is

    def __or__(self, other: "Needed") -> "Needed":
        return Needed(*(mine | its for mine, its in zip(self, other, strict=True)))


def needed(scales: tuple[float, ...], flip: bool, propagation: str = "", branch_s: tuple[float, ...] = ()) -> Needed:
    """The passes for a CAM at ``scales``, for its propagation (``bsp`` reads Branch-S at them, ``afa`` the affinity at
    the largest; "": none), and for Branch-S at the scales ``branch_s``."""
    decoded = frozenset(branch_s) | frozenset(scales if propagation == "bsp" else ())
    every = frozenset(scales) | decoded
    walked = frozenset({max(scales)} if propagation == "afa" else ())
    return Needed(every, every if flip else frozenset(), decoded, walked)


def multi_scale_pass(network: DualBranchNetwork, image: Float[Tensor, "B 3 H W"], asked: Needed) -> Passes:
    """The network's outputs in eval mode, at every scale that is asked for. ``image``: RGB in 0..255."""
    passes = {}
    with evaluating(network):
        for scale in sorted(asked.scales, key=lambda scale: (scale != 1, scale)):
            scaled = rescale(image, scale)
            views = torch.cat([scaled, scaled.flip(3)]) if scale in asked.mirrored else scaled
            passes[scale] = network(views, scale in asked.decoded, scale in asked.walked)
    return passes


class SeedMaps(NamedTuple):
    """Maps at half the image's resolution (h2, w2), each channel min-max normalised over the true image."""

    cam: Float[Tensor, "B C h2 w2"]
    background: Float[Tensor, "B 1 h2 w2"] | None  # of Branch-S, where it was decoded at every scale
    affinity: Float[Tensor, "B N N"] | None  # of the largest scale, not flipped
    grid: tuple[int, int]  # rows and columns of the affinity's tokens


def seed_maps(passes: Passes, batch: Batch, scales: tuple[float, ...], flip: bool) -> SeedMaps:
    """CAM: maximum over the flip pair, ReLU, sum over ``scales``. Background of P_s: mean over the pair, sum.
    Source: BMP (TNNLS 2024); without ``flip`` the mirrored halves of the passes are not looked at."""
    height, width = batch.image.shape[-2:]
    half, count = (height // 2, width // 2), len(batch.image)

    def pair(maps: Float[Tensor, "B2 K h w"]) -> tuple[Float[Tensor, "B K h2 w2"], Float[Tensor, "B K h2 w2"]]:
        """The plain and the mirrored maps, both upright, at half resolution."""
        maps = resize(maps[: count * (1 + flip)].float(), half)
        return (maps[:count], maps[count:].flip(3)) if flip else (maps, maps)

    largest, real = passes[max(scales)], box_mask(batch.box, (height, width), half)
    cam = sum(F.relu(torch.maximum(*pair(passes[scale].cam_logits))) for scale in scales)
    decoded = all(passes[scale].segmentation_logits is not None for scale in scales)
    background = None
    if decoded:
        background = min_max(sum(sum(pair(passes[s].segmentation_logits[:, :1])) / 2 for s in scales), real)
    affinity = None if largest.affinity is None else largest.affinity[:count].float()
    return SeedMaps(min_max(cam, real), background, affinity, tuple(largest.cam_logits.shape[-2:]))


def mixed(maps: SeedMaps, logits: Float[Tensor, "B S h4 w4"], batch: Batch, config: Supervision) -> SeedMaps:
    """The maps with a CAM that holds ``seed_share`` of P_s's softmax, min-max normalised as the CAM is: where
    Branch-S sees more of a class the mean extends the CAM, where it sees less it trims it."""
    size = tuple(maps.cam.shape[-2:])
    seen = min_max(resize(logits.softmax(1)[:, 1:], size), box_mask(batch.box, tuple(batch.image.shape[-2:]), size))
    if config.seed_mean == "geometric":
        return maps._replace(cam=maps.cam ** (1 - config.seed_share) * seen**config.seed_share)
    return maps._replace(cam=torch.lerp(maps.cam, seen, config.seed_share))


def best_logits(
    passes: Passes, image: Float[Tensor, "B 3 H W"], scales: tuple[float, ...]
) -> Float[Tensor, "B S h4 w4"]:
    """Branch-S as it is tested at several scales: mean over the flip pair, maximum over scales, at 1/4 resolution."""
    quarter = tuple(-(-side // 4) for side in image.shape[-2:])
    per_scale = []
    for scale in scales:
        plain, mirrored = resize(passes[scale].segmentation_logits.float(), quarter).chunk(2)
        per_scale.append((plain + mirrored.flip(3)) / 2)
    return torch.stack(per_scale).amax(0)
