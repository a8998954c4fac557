"""Augmentation and loaders driven by (seed, epoch, index): the same batches for any number of workers."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from bidir.config import Augment, RunConfig
from bidir.data.split import Split, shape_of_evaluated
from bidir.method.tensors import IGNORE, Batch

PADDING = {"mean": (124, 116, 104), "black": (0, 0, 0)}  # the mean is ImageNet's


class TrainingCrops(Dataset):
    """Augmented crops. The mask is opened only if ``masks`` (the oracle trained on masks)."""

    def __init__(self, split: Split, config: RunConfig, masks: bool = False) -> None:
        self.split, self.config, self.masks = split, config, masks

    def __getitem__(self, epoch_index: tuple[int, int]) -> Batch:
        epoch, index = epoch_index
        random = np.random.default_rng((self.config.seed, epoch, index))
        image = torch.from_numpy(self.split.read_image(index)).permute(2, 0, 1)
        mask = torch.from_numpy(self.split.read_mask(index))[None] if self.masks else None
        changed, mask, box = augment(image, mask, self.config, random)
        sample = _single(self.split, index, changed, box, mask)
        if not (self.config.ema_teacher and self.config.color_jitter):
            return sample
        again = np.random.default_rng((self.config.seed, epoch, index))
        return replace(
            sample, clean=augment(image, None, self.config.replace(color_jitter=0.0), again)[0].float()[None]
        )


def augment(
    image: UInt8[Tensor, "3 H W"], mask: UInt8[Tensor, "1 H W"] | None, config: Augment, random: np.random.Generator
) -> tuple[UInt8[Tensor, "3 S S"], Int[Tensor, "S S"] | None, Int[Tensor, "4"]]:
    """Random scale, flip, crop and colour: the crop, its mask, and the box of the true image within it."""
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

    changes = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation) if config.color_jitter else ()
    for change, factor in zip(changes, jitter, strict=False):
        image = change(image, float(factor))
    crop = cut(image, torch.tensor(PADDING[config.padding]), InterpolationMode.BILINEAR)
    if mask is not None:
        mask = cut(mask, torch.tensor([IGNORE]), InterpolationMode.NEAREST)[0].long()
    return crop, mask, torch.tensor([y, x, y + y_size, x + x_size])


def _crop_axis(length: int, scale: float, size: int, u: float) -> tuple[int, int, int, int]:
    """One axis of a random crop of the scaled image, in source and in crop pixels.
    Returns: start and extent in the source, start and extent in the crop."""
    scaled = max(1, round(length * scale))
    if scaled <= size:  # the whole axis, at a random place in the crop
        return 0, length, int(u * (size - scaled + 1)), scaled
    extent = min(length, max(1, round(size / scale)))
    return int(u * (length - extent + 1)), extent, 0, size


class StepSampler:
    """Batches of (epoch, index) for the steps start..iterations; one permutation per epoch.
    Process ``rank`` of ``world`` gets its share of every global batch."""

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
        image = torch.from_numpy(self.split.read_image(index)).permute(2, 0, 1)
        if self.size:
            image = TF.resize(image, list(shape_of_evaluated(tuple(image.shape[-2:]), self.size)), antialias=True)
        mask = torch.from_numpy(self.split.read_mask(index)).long() if self.masks else None
        box = torch.tensor([0, 0, *image.shape[-2:]])
        return _single(self.split, index, image, box, mask)


def _single(
    split: Split, index: int, image: UInt8[Tensor, "3 H W"], box: Int[Tensor, "4"], mask: Int[Tensor, "H2 W2"] | None
) -> Batch:
    """A batch of one image."""
    label, most = torch.from_numpy(split.labels[index]).float(), max(1, int(split.labels[index].sum()))
    mask = None if mask is None else mask[None]
    return Batch(image.float()[None], label[None], box[None], mask, torch.tensor([index]), most)


def same_size_batches(sizes: np.ndarray, batch_size: int) -> list[list[int]]:
    """Indices grouped into batches whose images have one size. ``sizes``: (images, 2)."""
    batches = []
    for size in np.unique(sizes, axis=0):
        same = np.flatnonzero((sizes == size).all(1))
        batches += [same[i : i + batch_size].tolist() for i in range(0, len(same), batch_size)]
    return batches


def collate(samples: list[Batch]) -> Batch:
    """Batches as one."""
    joined = {name: torch.cat([getattr(sample, name) for sample in samples]) for name in samples[0].tensors()}
    return replace(samples[0], **joined, most=max(sample.most for sample in samples))


def make_loader(dataset: Dataset, batches: object, num_workers: int) -> DataLoader:
    """A loader over given batches of keys; no randomness of its own."""
    return DataLoader(
        dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=collate, generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(), persistent_workers=num_workers > 0,
    )  # fmt: skip
