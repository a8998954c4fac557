"""PAR, the random walk, normalisation and the three propagations, against naive loops and formulas by hand."""

import math

import numpy as np
import pytest
import torch

from bidir.model.network import DualBranchNetwork
from bidir.seeds.affinity import radius_mask, random_walk
from bidir.seeds.maps import SeedMaps, box_mask, min_max, multi_scale_maps
from bidir.seeds.par import PAR
from bidir.seeds.propagation import Propagator, raw_seed, segmentation_pseudo_label


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
    fast = PAR(torch.tensor(image))(torch.tensor(masks), iterations=2)
    for b in range(2):
        for k in range(2):
            np.testing.assert_allclose(fast[b, k], naive_par(image[b], masks[b, k], 2), rtol=1e-6, atol=1e-9)


def test_par_weights_sum_to_1_01_unless_normalised():
    image = torch.rand(1, 3, 20, 20) * 255
    ones = torch.ones(1, 1, 20, 20)
    torch.testing.assert_close(PAR(image)(ones), ones * 1.01**10, rtol=1e-4, atol=0)
    torch.testing.assert_close(PAR(image, normalized=True)(ones), ones, rtol=1e-4, atol=0)


def test_par_follows_the_colours():
    image = torch.zeros(1, 3, 24, 24)
    image[..., 12:] = 200
    image += torch.rand(1, 3, 24, 24)
    mask = torch.zeros(1, 1, 24, 24)
    mask[..., 8:20, 14:18] = 1  # part of the right half
    refined = PAR(image)(mask)[0, 0]
    assert refined[:, 12:].mean() > 5 * refined[:, :12].mean()


def test_random_walk_is_the_naive_loop():
    height, width = 3, 12
    affinity = torch.rand(2, 36, 36, dtype=torch.float64)
    seed = torch.rand(2, 3, height, width, dtype=torch.float64)
    expected = torch.zeros(2, 3, 36, dtype=torch.float64)
    for b in range(2):
        transition = torch.zeros(36, 36, dtype=torch.float64)
        for i in range(36):
            for j in range(36):
                if abs(i // width - j // width) <= 8 and abs(i % width - j % width) <= 8:
                    transition[i, j] = affinity[b, i, j] ** 2
        for j in range(36):
            transition[:, j] /= transition[:, j].sum() + 0.1
        expected[b] = seed[b].reshape(3, 36) @ transition
    torch.testing.assert_close(random_walk(seed, affinity).flatten(2), expected)
    assert not radius_mask(height, width, torch.device("cpu"))[0, 9]


def test_min_max_sees_only_the_true_image():
    maps = torch.tensor([[[[0.0, 2.0], [4.0, 99.0]]]])
    real = torch.tensor([[[True, True], [True, False]]])
    torch.testing.assert_close(min_max(maps, real), torch.tensor([[[[0.0, 0.5], [1.0, 0.0]]]]))
    assert (min_max(torch.full((1, 1, 2, 2), 3.0), real) == 0).all()


def test_box_mask_takes_positions_whose_centre_is_inside():
    mask = box_mask(torch.tensor([[0, 4, 8, 12]]), (8, 16), (2, 4))
    assert mask.tolist() == [[[False, True, True, False]] * 2]


def flat_maps(cam, segmentation=None, affinity=None, grid=(0, 0)):
    return SeedMaps(cam, segmentation, None, torch.zeros(len(cam), cam.shape[1]), affinity, grid)


@pytest.fixture
def uniform():
    """A flat grey image: PAR then only averages and, with constant maps, multiplies by 1.01^10."""
    return torch.full((1, 3, 32, 32), 128.0)


def constant(*values):
    return torch.tensor(values).view(1, -1, 1, 1).expand(-1, -1, 16, 16)


@pytest.mark.parametrize(
    ("cam", "expected"),
    [(0.7, 2), (0.46, 255), (0.2, 0)],  # above high; between; below low
)
def test_par_propagation_combines_two_thresholds(quick, uniform, cam, expected):
    label, box = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0, 0, 32, 32]])
    propagate = Propagator(flat_maps(constant(0.9, cam, 0.9)), uniform, label, box, quick)
    assert (propagate("par") == expected).all()  # the absent classes 1 and 3 never win
    assert (propagate("par", decided=True) == (2 if cam >= 0.45 else 0)).all()


@pytest.mark.parametrize(
    ("background", "cam", "sigma", "expected"),
    [(0.3, 0.6, 0.5, 2), (0.6, 0.3, 0.5, 0), (0.3, 0.46, 0.5, 2), (0.3, 0.44, 0.5, 255), (0.3, 0.46, 0.55, 255)],
)
def test_bsp_takes_the_background_from_branch_s_and_ignores_below_sigma(
    quick, uniform, background, cam, sigma, expected
):
    # 0.46 * 1.01^10 = 0.508 passes sigma_c = 0.5, 0.44 * 1.01^10 = 0.486 does not: as the reference, inflated
    label, box = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0, 0, 32, 32]])
    maps = flat_maps(constant(0.9, cam, 0.9), constant(background, 0.99, 0.99, 0.99))
    propagate = Propagator(maps, uniform, label, box, quick.replace(sigma_c=sigma))
    assert (propagate("bsp") == expected).all()
    assert (propagate("bsp", decided=True) == (2 if cam > background else 0)).all()
    normalised = Propagator(maps, uniform, label, box, quick.replace(par_normalized=True, sigma_c=0.47))
    assert (normalised("bsp") == (0 if background > cam else 255 if cam < 0.47 else 2)).all()


def test_afa_walks_before_it_refines(quick, uniform):
    cam = torch.zeros(1, 1, 16, 16)
    cam[..., :8] = 1  # left half
    swap = torch.zeros(1, 4, 4)  # tokens of a 2 x 2 grid: left and right exchange their values
    for i, j in ((0, 1), (1, 0), (2, 3), (3, 2)):
        swap[0, i, j] = 1
    label, box = torch.ones(1, 1), torch.tensor([[0, 0, 32, 32]])
    halves = uniform.clone()
    halves[..., 16:] = 30  # an edge that refinement does not cross
    walked = Propagator(flat_maps(cam, affinity=swap, grid=(2, 2)), halves, label, box, quick)("afa")
    assert (walked[:, :, 18:] == 1).all()
    assert (walked[:, :, :14] == 0).all()
    still = Propagator(flat_maps(cam), halves, label, box, quick)("par")
    assert (still[:, :, 18:] == 0).all()
    assert (still[:, :, :14] == 1).all()
    with pytest.raises(ValueError, match="needs the affinity"):
        Propagator(flat_maps(cam), uniform, label, box, quick)("afa")


def test_padding_is_ignored(quick, uniform):
    box = torch.tensor([[0, 8, 32, 32]])
    label = Propagator(flat_maps(constant(0.9)), uniform, torch.ones(1, 1), box, quick)("par")
    assert (label[:, :, :8] == 255).all()
    assert (label[:, :, 8:] == 1).all()


def test_images_of_a_batch_do_not_mix(quick):
    """Each image gives the same pseudo-label alone and in a batch with images of more classes."""
    random = torch.Generator().manual_seed(0)
    image = torch.rand(3, 3, 32, 32, generator=random) * 255
    cam, scores = torch.rand(3, 5, 16, 16, generator=random), torch.rand(3, 6, 16, 16, generator=random)
    label = torch.tensor([[1.0, 0, 0, 0, 0], [0, 1, 0, 1, 1], [0, 0, 1, 1, 0]])
    box = torch.tensor([[0, 0, 32, 32]] * 3)
    for kind in ("par", "bsp"):
        together = Propagator(flat_maps(cam, scores), image, label, box, quick)(kind)
        for b in range(3):
            one = slice(b, b + 1)
            alone = Propagator(flat_maps(cam[one], scores[one]), image[one], label[one], box[one], quick)(kind)
            assert torch.equal(alone[0], together[b])
            assert set(together[b].unique().tolist()) <= {0, 255, *(label[b].nonzero()[:, 0] + 1).tolist()}


def test_raw_seed_without_any_class_is_background():
    assert (raw_seed(torch.ones(1, 2, 4, 4), torch.zeros(1, 2), 0.45, (8, 8)) == 0).all()


def test_y_s_keeps_confident_pixels_of_the_true_image(quick):
    logits = torch.full((1, 3, 1, 4), -5.0)
    logits[0, 0, 0, 0] = 0.8  # background, confident
    logits[0, 1, 0, 1] = 0.8
    logits[0, 2, 0, 2] = 0.7  # below sigma_s = 0.75 as a logit
    logits[0, 2, 0, 3] = 0.9
    label, box = torch.tensor([[1.0, 0.0]]), torch.tensor([[0, 0, 4, 16]])

    def y_s(**changes):
        return segmentation_pseudo_label(logits, label, box, (4, 16), quick.replace(**changes))[0, 0].tolist()

    assert y_s() == [0, 1, 255, 2]
    assert y_s(mask_s2c_by_labels=True) == [0, 1, 255, 255]
    assert y_s(confidence="probability", sigma_s=0.67) == [0, 1, 255, 2]  # sigmoid(0.7) = 0.668
    assert y_s(confidence="probability", c2s_loss="ce", sigma_s=0.9937) == [0, 1, 255, 2]  # softmax: 0.9933
    assert segmentation_pseudo_label(logits, label, torch.tensor([[0, 0, 4, 8]]), (4, 16), quick)[0, 0, 3] == 255


def test_multi_scale_maps_are_the_passes_combined(quick):
    """Against a direct transcription: per scale max (CAM) or mean (P_s) of the flip pair, then the sum."""
    torch.manual_seed(0)
    network = DualBranchNetwork(quick, 3).train()
    image, box = torch.rand(2, 3, 64, 64) * 255, torch.tensor([[0, 0, 64, 64]] * 2)
    maps = multi_scale_maps(network, image, box, (1.0, 0.5), decoded=(1.0, 0.5))
    assert network.training
    network.eval()

    def up(x):
        return torch.nn.functional.interpolate(x, size=(32, 32), mode="bilinear", align_corners=False)

    cam, scores = 0, 0
    with torch.no_grad():
        for size in (64, 32):
            scaled = torch.nn.functional.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)
            plain, mirrored = network(scaled), network(scaled.flip(3))
            cam = cam + torch.maximum(up(plain.cam_logits), up(mirrored.cam_logits).flip(3)).relu()
            scores = scores + (up(plain.segmentation_logits) + up(mirrored.segmentation_logits).flip(3)) / 2
    for found, summed in ((maps.cam, cam), (maps.segmentation, scores)):
        low, high = summed.amin((2, 3), keepdim=True), summed.amax((2, 3), keepdim=True)
        torch.testing.assert_close(found, (summed - low) / (high - low).clamp(min=1e-5), rtol=1e-3, atol=1e-3)


def test_pseudo_labels_leave_the_network_untouched(quick):
    """Eval mode: no dropout, no statistics updated, no random number drawn."""
    network = DualBranchNetwork(quick.replace(encoder_norm="trained"), 3).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image, box = torch.rand(2, 3, 64, 64) * 255, torch.tensor([[0, 0, 64, 64]] * 2)
    state = torch.get_rng_state()
    first, second = (multi_scale_maps(network, image, box, (1.0, 0.5), (1.0,)) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.segmentation, second.segmentation)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
