"""PAR against a naive loop and by hand."""

import math

import numpy as np
import torch

from bidir.method.par import PAR


def whole(image):
    """The box of images without padding."""
    return torch.tensor([[0, 0, *image.shape[-2:]]] * len(image))


def naive_par(image, mask, iterations):
    """PAR of one image (3, h, w) and one mask (h, w), pixel by pixel, from the formula of the paper."""
    _, height, width = image.shape
    offsets = [(y * d, x * d) for d in (1, 2, 4, 8, 12, 24) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]

    def clamp(y, x):
        return min(max(y, 0), height - 1), min(max(x, 0), width - 1)

    def softmax(values):
        powers = np.exp(values - values.max())
        return powers / powers.sum()

    distance = np.array([math.hypot(*o) for o in offsets])
    position = softmax(-((distance / (distance.std(ddof=1) + 1e-8) / 0.3) ** 2))
    for _ in range(iterations):
        refined = np.zeros_like(mask)
        for y in range(height):
            for x in range(width):
                near = [clamp(y + dy, x + dx) for dy, dx in offsets]
                term = np.zeros(48)
                for channel in image:
                    values = np.array([channel[n] for n in near])
                    term -= (np.abs(values - channel[y, x]) / (values.std(ddof=1) + 1e-8) / 0.3) ** 2 / 3
                weight = softmax(term) + 0.01 * position
                refined[y, x] = sum(w * mask[n] for w, n in zip(weight, near, strict=True))
        mask = refined
    return mask


def test_par_is_the_naive_loop():
    random = np.random.default_rng(0)
    image, masks = random.uniform(0, 255, (2, 3, 9, 11)), random.uniform(0, 1, (2, 2, 9, 11))
    image[1, :, :, 5:] = 90  # flat regions: standard deviation 0
    fast = PAR(torch.tensor(image), whole(torch.tensor(image)))(torch.tensor(masks), iterations=2)
    for b in range(2):
        for k in range(2):
            np.testing.assert_allclose(fast[b, k], naive_par(image[b], masks[b, k], 2), rtol=1e-6, atol=1e-9)


def test_par_weights_sum_to_1_01_unless_normalised():
    image = torch.rand(1, 3, 20, 20) * 255
    ones = torch.ones(1, 1, 20, 20)
    torch.testing.assert_close(PAR(image, whole(image))(ones), ones * 1.01**10, rtol=1e-4, atol=0)
    torch.testing.assert_close(PAR(image, whole(image), normalized=True)(ones), ones, rtol=1e-4, atol=0)


def test_par_follows_the_colours():
    image = torch.zeros(1, 3, 24, 24)
    image[..., 12:] = 200
    image += torch.rand(1, 3, 24, 24)
    mask = torch.zeros(1, 1, 24, 24)
    mask[..., 8:20, 14:18] = 1  # part of the right half
    refined = PAR(image, whole(image))(mask)[0, 0]
    assert refined[:, 12:].mean() > 5 * refined[:, :12].mean()


def test_par_sees_nothing_outside_the_box():
    """In a frame of noise the crop's result is that of the naive loop on the crop alone."""
    random = np.random.default_rng(1)
    crop, mask = random.uniform(0, 255, (3, 7, 9)), random.uniform(0, 1, (7, 9))
    image, masks = random.uniform(0, 255, (1, 3, 14, 16)), random.uniform(5, 9, (1, 1, 14, 16))
    image[0, :, 3:10, 5:14], masks[0, 0, 3:10, 5:14] = crop, mask
    box = torch.tensor([[3, 5, 10, 14]])
    refined = PAR(torch.tensor(image), box)(torch.tensor(masks), iterations=3)[0, 0]
    np.testing.assert_allclose(refined[3:10, 5:14], naive_par(crop, mask, 3), rtol=1e-6, atol=1e-9)
    assert torch.equal(refined[:3, 5:14], refined[3:4, 5:14].expand(3, -1))  # and goes on as at its edge
