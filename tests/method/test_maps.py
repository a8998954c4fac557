"""The one pass over scales and flips, and the maps fused from it."""

import pytest
import torch

from bidir.data.loader import WholeImages
from bidir.data.open import open_split
from bidir.method.maps import SeedMaps, best_logits, mixed, multi_scale_pass, needed, seed_maps
from bidir.method.network import DualBranchNetwork


def test_what_is_needed_adds_up():
    """Branch-S at all scales for BSP, the affinity at the largest for AFA, and what others ask for beside it."""
    cam, bsp, afa = (needed((1.0, 0.5), True, propagation) for propagation in ("par", "bsp", "afa"))
    assert cam == ({1.0, 0.5}, {1.0, 0.5}, set(), set())
    assert bsp == ({1.0, 0.5}, {1.0, 0.5}, {1.0, 0.5}, set())
    assert afa == ({1.0, 0.5}, {1.0, 0.5}, set(), {1.0})
    assert afa | needed((), False, branch_s=(1.0, 2.0)) == ({1.0, 0.5, 2.0}, {1.0, 0.5}, {1.0, 2.0}, {1.0})


def test_multi_scale_maps_are_the_passes_combined(quick, batch_of):
    """Against a direct transcription: per scale max (CAM) or mean (P_s) of the flip pair, then the sum."""
    torch.manual_seed(0)
    network = DualBranchNetwork(quick, 3).train()
    image = torch.rand(2, 3, 64, 64) * 255
    passes = multi_scale_pass(network, image, needed((1.0, 0.5), True, "bsp"))
    maps = seed_maps(passes, batch_of(image), (1.0, 0.5), flip=True)
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
    for found, summed in ((maps.cam, cam), (maps.background, scores[:, :1])):
        low, high = summed.amin((2, 3), keepdim=True), summed.amax((2, 3), keepdim=True)
        torch.testing.assert_close(found, (summed - low) / (high - low).clamp(min=1e-5), rtol=1e-3, atol=1e-3)


def test_pseudo_labels_leave_the_network_untouched(quick, batch_of):
    """Eval mode: no dropout, no statistics updated, no random number drawn."""
    network = DualBranchNetwork(quick.replace(encoder_norm="trained"), 3).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image, asked = torch.rand(2, 3, 64, 64) * 255, needed((1.0, 0.5), True, "bsp")
    state = torch.get_rng_state()
    first, second = (multi_scale_pass(network, image, asked) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[scale].segmentation_logits, second[scale].segmentation_logits) for scale in first)
    maps = [seed_maps(passes, batch_of(image), (1.0, 0.5), flip=True) for passes in (first, second)]
    assert torch.equal(maps[0].background, maps[1].background)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_multi_scale_logits_take_mean_of_flips_and_maximum_of_scales(quick):
    torch.manual_seed(0)
    network = DualBranchNetwork(quick, 6).eval()
    image = WholeImages(open_split(quick, "val"))[0].image

    def logits(image, scales):
        return best_logits(multi_scale_pass(network, image, needed((), True, branch_s=scales)), image, scales)

    per_scale = [logits(image, (scale,)) for scale in (1.0, 0.5)]
    torch.testing.assert_close(logits(image, (1.0, 0.5)), torch.maximum(*per_scale))
    mirrored = logits(image.flip(3), (1.0,))
    torch.testing.assert_close(mirrored.flip(3), per_scale[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_a_mixed_cam_is_the_mean_of_the_cam_and_what_branch_s_sees(quick, batch_of, mean):
    """Softmax over all classes, each min-max normalised over the true image, pixel by pixel."""
    torch.manual_seed(0)
    box = torch.tensor([[0, 0, 8, 6]])
    batch = batch_of(torch.zeros(1, 3, 8, 8), torch.ones(1, 2), box)
    logits, cam = torch.randn(1, 3, 4, 4), torch.rand(1, 2, 4, 4)
    config = quick.replace(seed_share=0.3, seed_mean=mean)
    made = mixed(SeedMaps(cam, None, None, (4, 4)), logits, batch, config)
    for k in range(2):
        seen = logits[0].exp()[k + 1] / logits[0].exp().sum(0)
        low, high = seen[:, :3].min(), seen[:, :3].max()
        for y in range(4):
            for x in range(4):
                s = (seen[y, x] - low) / (high - low) if x < 3 else torch.tensor(0.0)
                c = cam[0, k, y, x]
                expected = 0.7 * c + 0.3 * s if mean == "arithmetic" else c**0.7 * s**0.3
                assert made.cam[0, k, y, x].item() == pytest.approx(expected.item(), abs=1e-5)
    assert made.background is None
