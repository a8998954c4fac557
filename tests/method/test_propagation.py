"""The random walk and the four propagations, against naive loops and formulas by hand."""

import pytest
import torch

from bidir.config import ConfigError
from bidir.method.maps import SeedMaps
from bidir.method.propagation import (
    Present,
    Propagator,
    radius_mask,
    random_walk,
    raw_seed,
    refinement,
    segmentation_pseudo_label,
)
from bidir.method.tensors import Batch


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


def propagator(maps, batch, config):
    return Propagator(maps, batch, config, refinement(batch, config))


def flat_maps(cam, background=None, affinity=None, grid=(0, 0)):
    return SeedMaps(cam, background, affinity, grid)


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
def test_par_propagation_combines_two_thresholds(quick, batch_of, uniform, cam, expected):
    batch = batch_of(uniform, torch.tensor([[0.0, 1.0, 0.0]]))
    propagate = propagator(flat_maps(constant(0.9, cam, 0.9)), batch, quick)
    assert (propagate("par") == expected).all()  # the absent classes 1 and 3 never win
    assert (propagate("par", decided=True) == (2 if cam >= 0.45 else 0)).all()


@pytest.mark.parametrize(
    ("background", "cam", "sigma", "expected"),
    [(0.3, 0.6, 0.5, 2), (0.6, 0.3, 0.5, 0), (0.3, 0.46, 0.5, 2), (0.3, 0.44, 0.5, 255), (0.3, 0.46, 0.55, 255)],
)
def test_bsp_takes_the_background_from_branch_s_and_ignores_below_sigma(
    quick, batch_of, uniform, background, cam, sigma, expected
):
    # 0.46 * 1.01^10 = 0.508 passes sigma_c = 0.5, 0.44 * 1.01^10 = 0.486 does not: as the reference, inflated
    batch = batch_of(uniform, torch.tensor([[0.0, 1.0, 0.0]]))
    maps = flat_maps(constant(0.9, cam, 0.9), constant(background))
    propagate = propagator(maps, batch, quick.replace(sigma_c=sigma))
    assert (propagate("bsp") == expected).all()
    assert (propagate("bsp", decided=True) == (2 if cam > background else 0)).all()
    normalised = propagator(maps, batch, quick.replace(par_normalized=True, sigma_c=0.47))
    assert (normalised("bsp") == (0 if background > cam else 255 if cam < 0.47 else 2)).all()


@pytest.mark.parametrize(
    ("cam", "sigma", "expected"),
    [(0.6, 0.5, 2), (0.46, 0.5, 0), (0.46, 0.61, 255), (0.53, 0.6, 255)],  # 0.54, 0.53 inflated 1.01^10 = 1.105 times
)
def test_complement_is_bsp_with_a_background_that_needs_no_branch_s(quick, batch_of, uniform, cam, sigma, expected):
    batch = batch_of(uniform, torch.tensor([[0.0, 1.0, 0.0]]))
    config = quick.replace(sigma_c=sigma)
    propagate = propagator(flat_maps(constant(0.9, cam, 0.9)), batch, config)  # absent classes do not count
    assert (propagate("complement") == expected).all()
    assert (propagate("complement", decided=True) == (2 if cam > 0.5 else 0)).all()
    as_bsp = propagator(flat_maps(constant(0.9, cam, 0.9), constant(1 - cam)), batch, config)
    assert (propagate("complement") == as_bsp("bsp")).all()


def test_afa_walks_before_it_refines(quick, batch_of, uniform):
    cam = torch.zeros(1, 1, 16, 16)
    cam[..., :8] = 1  # left half
    swap = torch.zeros(1, 4, 4)  # tokens of a 2 x 2 grid: left and right exchange their values
    for i, j in ((0, 1), (1, 0), (2, 3), (3, 2)):
        swap[0, i, j] = 1
    halves = uniform.clone()
    halves[..., 16:] = 30  # an edge that refinement does not cross
    walked = propagator(flat_maps(cam, affinity=swap, grid=(2, 2)), batch_of(halves), quick)("afa")
    assert (walked[:, :, 18:] == 1).all()
    assert (walked[:, :, :14] == 0).all()
    still = propagator(flat_maps(cam), batch_of(halves), quick)("par")
    assert (still[:, :, 18:] == 0).all()
    assert (still[:, :, :14] == 1).all()
    with pytest.raises(ConfigError, match="needs the affinity"):
        propagator(flat_maps(cam), batch_of(uniform), quick)("afa")


def test_padding_is_ignored(quick, batch_of, uniform):
    batch = batch_of(uniform, box=torch.tensor([[0, 8, 32, 32]]))
    label = propagator(flat_maps(constant(0.9)), batch, quick)("par")
    assert (label[:, :, :8] == 255).all()
    assert (label[:, :, 8:] == 1).all()


def test_images_of_a_batch_do_not_mix(quick, batch_of):
    """Each image gives the same pseudo-label alone and in a batch with images of more classes."""
    random = torch.Generator().manual_seed(0)
    image = torch.rand(3, 3, 32, 32, generator=random) * 255
    cam, background = (torch.rand(3, count, 16, 16, generator=random) for count in (5, 1))
    label = torch.tensor([[1.0, 0, 0, 0, 0], [0, 1, 0, 1, 1], [0, 0, 1, 1, 0]])
    for kind in ("par", "bsp", "complement"):
        together = propagator(flat_maps(cam, background), batch_of(image, label), quick)(kind)
        for b in range(3):
            one = slice(b, b + 1)
            single = batch_of(image[one], label[one])
            alone = propagator(flat_maps(cam[one], background[one]), single, quick)(kind)
            assert torch.equal(alone[0], together[b])
            assert set(together[b].unique().tolist()) <= {0, 255, *(label[b].nonzero()[:, 0] + 1).tolist()}


def test_raw_seed_without_any_class_is_background():
    assert (raw_seed(torch.ones(1, 2, 4, 4), Present.of(torch.zeros(1, 2), 1), 0.45, (8, 8)) == 0).all()


def test_y_s_keeps_confident_pixels_of_the_true_image(quick, batch_of):
    logits = torch.full((1, 3, 1, 4), -5.0)
    logits[0, 0, 0, 0] = 0.8  # background, confident
    logits[0, 1, 0, 1] = 0.8
    logits[0, 2, 0, 2] = 0.7  # below sigma_s = 0.75 as a logit
    logits[0, 2, 0, 3] = 0.9
    image, label = torch.zeros(1, 3, 4, 16), torch.tensor([[1.0, 0.0]])

    def y_s(**changes):
        return segmentation_pseudo_label(logits, batch_of(image, label), quick.replace(**changes))[0, 0].tolist()

    assert y_s() == [0, 1, 255, 2]
    assert y_s(mask_s2c_by_labels=True) == [0, 1, 255, 255]
    assert y_s(confidence="probability", sigma_s=0.67) == [0, 1, 255, 2]  # sigmoid(0.7) = 0.668
    assert y_s(confidence="probability", c2s_loss="ce", sigma_s=0.9937) == [0, 1, 255, 2]  # softmax: 0.9933
    padded = batch_of(image, label, torch.tensor([[0, 0, 4, 8]]))
    assert segmentation_pseudo_label(logits, padded, quick)[0, 0, 3] == 255


def padded(maps, box, size):
    """Maps (B, K, h, w) at the place that ``box`` names in a frame of ``size``, 0 elsewhere."""
    frame = torch.zeros(*maps.shape[:2], *size)
    top, left, bottom, right = box
    frame[:, :, top:bottom, left:right] = maps
    return frame


@pytest.mark.parametrize("kind", ["par", "bsp", "afa", "complement"])
def test_padding_takes_no_part_in_y_c(quick, kind):
    """A crop alone and the same crop in a padded frame, its own maps given: one Y_c inside the box, none outside.

    ``afa``: from the walked seed on, so the walk is left out on both sides."""
    config = quick.replace(encoder="mit_b0", encoder_weights="random", propagation="afa", lambda_aff=0.1)
    torch.manual_seed(0)
    height, width, top, left = 56, 72, 10, 22
    image = torch.rand(1, 3, height // 8, width // 8)
    image = 255 * torch.nn.functional.interpolate(image, (height, width))  # blocks of one colour, as objects are
    label, index = torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([0])
    cam, background = torch.rand(1, 3, height // 2, width // 2), torch.rand(1, 1, height // 2, width // 2)
    half = (top // 2, left // 2, (top + height) // 2, (left + width) // 2)
    frame, box = (96, 112), torch.tensor([[top, left, top + height, left + width]])
    alone = Batch(image, label, torch.tensor([[0, 0, height, width]]), None, index, 2)
    inside = Batch(padded(image, box[0].tolist(), frame) + 90, label, box, None, index, 2)
    inside.image[:, :, top : top + height, left : left + width] = image

    def y_c(batch, cam, background):
        maps = SeedMaps(cam, background, None, (1, 1))
        propagate = Propagator(maps, batch, config, refinement(batch, config))
        walked = propagate._two_thresholds((0.55, 0.35), walk=False) if kind == "afa" else propagate(kind)
        return walked[0]

    expected = y_c(alone, cam, background)
    small = (frame[0] // 2, frame[1] // 2)
    found = y_c(inside, padded(cam, half, small), padded(background, half, small))
    assert torch.equal(found[top : top + height, left : left + width], expected)
    assert len(expected.unique()) > 2
    if kind != "afa":
        outside = found.clone()
        outside[top : top + height, left : left + width] = 255
        assert (outside == 255).all()
