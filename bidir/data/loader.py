"""Augmentation and loaders driven by (seed, epoch, index): the same batches for any number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from bidir.config import RunConfig
from bidir.data.split import IGNORE, Split

PADDING = (124, 116, 104)  # mean colour of ImageNet


@dataclass
class Batch:
    """``image`` (B, 3, H, W) float RGB in 0..255; ``label`` (B, C) float in {0, 1}; ``box`` (B, 4) int
    top, left, bottom, right of the true image (the rest is padding); ``mask`` (B, H, W) int64 or None."""

    image: Tensor
    label: Tensor
    box: Tensor
    mask: Tensor | None
    index: Tensor  # (B,) position in the split

    def to(self, device: torch.device) -> Batch:
        values = (self.image, self.label, self.box, self.mask, self.index)
        return Batch(*(value if value is None else value.to(device, non_blocking=True) for value in values))

    def parts(self, size: int) -> list[Batch]:
        """The batch in pieces of at most ``size`` images; 0: in one."""
        if not 0 < size < len(self.image):
            return [self]
        values = (self.image, self.label, self.box, self.mask, self.index)
        pieces = [[None] * -(-len(self.image) // size) if value is None else value.split(size) for value in values]
        return [Batch(*piece) for piece in zip(*pieces, strict=True)]


class TrainingCrops(Dataset):
    """Augmented crops. The mask is opened only if ``masks`` (the oracle trained on masks)."""

    def __init__(self, split: Split, config: RunConfig, masks: bool = False) -> None:
        self.split, self.config, self.masks = split, config, masks

    def __getitem__(self, epoch_index: tuple[int, int]) -> Batch:
        epoch, index = epoch_index
        random = np.random.default_rng((self.config.seed, epoch, index))
        image = torch.from_numpy(self.split.read_image(index)).permute(2, 0, 1)
        mask = torch.from_numpy(self.split.read_mask(index))[None] if self.masks else None
        image, mask, box = augment(image, mask, self.config, random)
        label = torch.from_numpy(self.split.labels[index]).float()
        return Batch(image.float(), label, box, mask, torch.tensor(index))


def augment(
    image: Tensor, mask: Tensor | None, config: RunConfig, random: np.random.Generator
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Random scale, flip, crop and colour.

    Args: image (3, H, W) uint8; mask (1, H, W) uint8 or None. Returns: crop (3, S, S) uint8, mask
    (S, S) int64 or None, box (4,) int64 of the true image within the crop.
    """
    size, (height, width) = config.crop_size, image.shape[-2:]
    scale = random.uniform(config.scale_min, config.scale_max)
    flip, spot = random.random() < 0.5, random.random(2)
    jitter = 1 + config.color_jitter * random.uniform(-1, 1, 3)
    axes = [_crop_axis(length, scale, size, u) for length, u in zip((height, width), spot, strict=True)]
    (top, rows, y, y_size), (left, columns, x, x_size) = axes

    def cut(pixels: Tensor, fill: Tensor, mode: InterpolationMode) -> Tensor:
        part = TF.resized_crop(pixels, top, left, rows, columns, [y_size, x_size], mode, antialias=True)
        crop = fill.to(pixels.dtype)[:, None, None].repeat(1, size, size)
        crop[:, y : y + y_size, x : x + x_size] = TF.horizontal_flip(part) if flip else part
        return crop

    if config.color_jitter:
        image = TF.adjust_brightness(image, float(jitter[0]))
        image = TF.adjust_contrast(image, float(jitter[1]))
        image = TF.adjust_saturation(image, float(jitter[2]))
    crop = cut(image, torch.tensor(PADDING), InterpolationMode.BILINEAR)
    if mask is not None:
        mask = cut(mask, torch.tensor([IGNORE]), InterpolationMode.NEAREST)[0].long()
    return crop, mask, torch.tensor([y, x, y + y_size, x + x_size])


def _crop_axis(length: int, scale: float, size: int, u: float) -> tuple[int, int, int, int]:
    """One axis of a random crop of the scaled image, in source and in crop pixels.

    Returns: start and extent in the source, start and extent in the crop.
    """
    scaled = max(1, round(length * scale))
    if scaled <= size:  # the whole axis, at a random place in the crop
        return 0, length, int(u * (size - scaled + 1)), scaled
    extent = min(length, max(1, round(size / scale)))
    return int(u * (length - extent + 1)), extent, 0, size


class StepSampler:
    """Batches of (epoch, index) for the steps start..iterations; one permutation per epoch.

    Process ``rank`` of ``world`` gets its share of every global batch.
    """

    def __init__(self, images: int, config: RunConfig, start: int = 0, rank: int = 0, world: int = 1) -> None:
        self.images, self.config, self.start, self.rank, self.world = images, config, start, rank, world

    def __len__(self) -> int:
        return self.config.iterations - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size, epoch, order = self.config.batch_size, -1, np.empty(0, int)
        for step in range(self.start, self.config.iterations):
            batch = []
            for position in range(step * size, (step + 1) * size):
                if position // self.images != epoch:
                    epoch = position // self.images
                    order = np.random.default_rng((self.config.seed, epoch)).permutation(self.images)
                batch.append((epoch, int(order[position % self.images])))
            yield batch[self.rank :: self.world]


class WholeImages(Dataset):
    """Images as they are, or with the longest side resized to ``size``; masks at the image's own size."""

    def __init__(self, split: Split, size: int = 0, masks: bool = True) -> None:
        self.split, self.size, self.masks = split, size, masks

    def __getitem__(self, index: int) -> Batch:
        pixels = self.split.read_image(index)
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        if self.size:
            image = TF.resize(image, list(_fit(pixels.shape[:2], self.size)), antialias=True)
        mask = torch.from_numpy(self.split.read_mask(index)).long() if self.masks else None
        box = torch.tensor([0, 0, *image.shape[-2:]])
        return Batch(image.float(), torch.from_numpy(self.split.labels[index]).float(), box, mask, torch.tensor(index))


def _fit(shape: tuple[int, int], longest: int) -> tuple[int, int]:
    scale = longest / max(shape)
    return round(shape[0] * scale), round(shape[1] * scale)


def same_size_batches(sizes: np.ndarray, batch_size: int) -> list[list[int]]:
    """Indices grouped into batches whose images have one size. ``sizes``: (images, 2)."""
    batches = []
    for size in np.unique(sizes, axis=0):
        same = np.flatnonzero((sizes == size).all(1))
        batches += [same[i : i + batch_size].tolist() for i in range(0, len(same), batch_size)]
    return batches


def collate(samples: list[Batch]) -> Batch:
    """Stack single samples to a batch."""
    masks = None if samples[0].mask is None else torch.stack([s.mask for s in samples])
    stacked = [torch.stack([getattr(s, name) for s in samples]) for name in ("image", "label", "box")]
    return Batch(*stacked, masks, torch.stack([s.index for s in samples]))


def make_loader(dataset: Dataset, batches: object, num_workers: int) -> DataLoader:
    """A loader over given batches of keys; no randomness of its own."""
    return DataLoader(
        dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=collate, generator=torch.Generator()
    )
