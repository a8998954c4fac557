"""Pixel-adaptive refinement (PAR, from AFA, CVPR 2022), as shifted views of the images and of the maps."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bidir.method.tensors import extend

DILATIONS = (1, 2, 4, 8, 12, 24)
AROUND = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
OFFSETS = [(dy * d, dx * d) for d in DILATIONS for dy, dx in AROUND]
COLOUR_SCALE, POSITION_WEIGHT = 0.3, 0.01


class PAR:
    """PAR for a batch of images, at their resolution; what lies outside an image's ``box`` takes no part.
    Colour term: ``-((|n - i| / (std over the 48 neighbours + 1e-8)) / 0.3)^2``, averaged over RGB, softmax
    over the neighbours; plus 0.01 times the softmax of the same form on pixel distance. A neighbour beyond the true
    image is its nearest pixel. Weights sum to 1.01: ten iterations raise values by 1.01^10, unless ``normalized``."""

    def __init__(self, image: Float[Tensor, "B 3 h w"], box: Int[Tensor, "B 4"], normalized: bool = False) -> None:
        self.box = box
        distance = torch.tensor(OFFSETS, dtype=image.dtype, device=image.device).norm(dim=1)
        position = -((distance / (distance.std() + 1e-8) / COLOUR_SCALE) ** 2)
        self.weight = _colour(image, box).softmax(1)  # (B, 48, h, w)
        self.weight += POSITION_WEIGHT * position.softmax(-1)[:, None, None]
        if normalized:
            self.weight /= 1 + POSITION_WEIGHT

    def __call__(self, masks: Float[Tensor, "B K h w"], iterations: int = 10) -> Float[Tensor, "B K h w"]:
        """masks <- sum over the neighbours of weight * mask, ``iterations`` times; outside the box as at its edge."""
        for _ in range(iterations):
            refined = torch.zeros_like(masks)
            for k, neighbour in enumerate(_neighbours(masks, self.box)):
                refined.addcmul_(self.weight[:, k : k + 1], neighbour)
            masks = refined
        return extend(masks, self.box)


def _colour(image: Float[Tensor, "B 3 h w"], box: Int[Tensor, "B 4"]) -> Float[Tensor, "B 48 h w"]:
    """The colour term of every neighbour."""
    squares = [(neighbour - image) for neighbour in _neighbours(image, box)]
    total, square = torch.zeros_like(image), torch.zeros_like(image)
    for difference in squares:
        total += difference
        square += difference.square_()
    count = len(OFFSETS)
    std = ((square - total.square() / count).clamp(min=0) / (count - 1)).sqrt()
    scale = -1 / ((std + 1e-8) * COLOUR_SCALE).square() / 3
    return torch.stack([difference.mul_(scale).sum(1) for difference in squares], 1)


def _neighbours(maps: Float[Tensor, "B K h w"], box: Int[Tensor, "B 4"]) -> Iterator[Float[Tensor, "B K h w"]]:
    """The maps as each of the 48 neighbours has them: views of one copy, extended beyond the boxes."""
    margin, (height, width) = max(DILATIONS), maps.shape[-2:]
    padded = extend(maps, box, margin)
    for dy, dx in OFFSETS:
        yield padded[:, :, margin + dy : margin + dy + height, margin + dx : margin + dx + width]
