"""Augmentation and loaders: determinism, and what a crop says of where it is from."""

import numpy as np
import pytest
import torch

from bidir.config import RunConfig
from bidir.data.loader import (
    StepSampler,
    TrainingCrops,
    WholeImages,
    augment,
    collate,
    make_loader,
    same_size_batches,
)
from bidir.data.open import open_split


def gradient(height, width):
    """An image whose red is its row and whose green is its column, so that a crop tells where it is from."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.full_like(rows, 7)]).to(torch.uint8)


def test_crops_keep_image_and_mask_together_and_say_where_the_image_is():
    config = RunConfig(crop_size=64, scale_min=0.4, scale_max=2.5)
    image = gradient(60, 90)
    mask = image[:1] // 10  # a mask made from the rows, so that it can be compared with the image
    sizes = set()
    for seed in range(60):
        crop, cut, box = augment(image, mask, config, np.random.default_rng(seed))
        top, left, bottom, right = box.tolist()
        inside = torch.zeros(64, 64, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert (crop[2][inside] == 7).all()
        assert (crop[2][~inside] == 104).all()
        assert (cut[~inside] == 255).all()
        assert (cut[inside] - crop[0][inside].long() // 10).abs().max() <= 1
        columns = crop[1][inside].view(bottom - top, right - left)[0].int()
        assert columns.diff().min() >= 0 or columns.diff().max() <= 0  # upright or mirrored
        sizes.add((bottom - top, right - left))
    assert (64, 64) in sizes
    assert min(min(s) for s in sizes) < 40


def test_scale_of_a_crop_is_the_one_drawn():
    config = RunConfig(crop_size=50, scale_min=2.0, scale_max=2.0)
    crop, _, _ = augment(gradient(100, 100), None, config, np.random.default_rng(0))
    assert crop[0].float().max() - crop[0].float().min() == pytest.approx(25, abs=2)


def batches(config, workers, start=0):
    split = open_split(config, "train")
    sampler = StepSampler(len(split), config, start)
    return list(make_loader(TrainingCrops(split, config), sampler, workers))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # four workers on two cores are meant
def test_batches_do_not_depend_on_workers_or_where_training_started(quick):
    config = quick.replace(iterations=14, color_jitter=0.3)  # into a second epoch of 48 images
    alone = batches(config, 0)
    torch.manual_seed(99)
    for workers, start in ((1, 0), (4, 0), (0, 5)):
        others = batches(config, workers, start)
        assert len(others) == 14 - start
        for a, b in zip(alone[start:], others, strict=True):
            assert torch.equal(a.image, b.image)
            assert torch.equal(a.index, b.index)
            assert torch.equal(a.box, b.box)
    assert sorted(torch.cat([b.index for b in alone[:12]]).tolist()) == list(range(48))  # each once an epoch


def test_processes_share_the_global_batch(quick):
    whole = list(StepSampler(48, quick))
    shares = [list(StepSampler(48, quick, rank=rank, world=2)) for rank in range(2)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert sorted(first + second) == sorted(batch)
        assert len(first) == len(second)


def test_whole_images_batch_by_size(voc):
    sizes = np.array([[4, 6], [5, 5], [4, 6], [4, 6]])
    assert sorted(map(sorted, same_size_batches(sizes, 2))) == [[0, 2], [1], [3]]
    sample = WholeImages(open_split(voc, "val"), size=100)[0]
    assert sample.image.shape == (1, 3, 80, 100)
    assert sample.mask.shape == (1, 40, 50)


def test_a_sample_is_a_batch_of_one_image_and_collating_joins_them(quick):
    crops = TrainingCrops(open_split(quick, "train"), quick)
    samples = [crops[0, i] for i in (3, 1)]
    assert [len(value) for value in vars(samples[0]).values() if isinstance(value, torch.Tensor)] == [1] * 4
    together = collate(samples)
    assert together.index.tolist() == [3, 1]
    assert together.mask is None
    assert together.most == together.label.sum(1).max()
    assert torch.equal(together.image[1:], samples[1].image)
