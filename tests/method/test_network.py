"""Both branches against their definitions."""

import pytest
import torch
import torch.nn.functional as F
from transformers import SegformerConfig
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from bidir.method.network import AffinityHead, DualBranchNetwork, SegmentationBranch


@pytest.mark.parametrize("encoder", ["tf_efficientnet_lite0", "resnet18", "mit_b0"])
def test_outputs_have_their_shapes(quick, encoder):
    config = quick.replace(encoder=encoder, encoder_weights="random")
    out = DualBranchNetwork(config, 5).eval()(torch.rand(2, 3, 72, 100) * 255, affinity=True)
    assert out.class_logits.shape == (2, 5)
    assert out.cam_logits.shape == (2, 5, 5, 7)
    assert out.segmentation_logits.shape == (2, 6, 18, 25)
    if encoder == "mit_b0":
        assert out.affinity.shape == (2, 35, 35)
        torch.testing.assert_close(out.affinity, out.affinity.transpose(1, 2))
    else:
        assert out.affinity is None


def test_the_cam_explains_the_class_logits(quick):
    """W is shared: max pooling then W, and W at each position, agree where the map is constant."""
    branch = DualBranchNetwork(quick, 4).classification
    feature = torch.rand(2, 320, 1, 1).expand(-1, -1, 3, 3)
    logits, cam = branch(feature)
    torch.testing.assert_close(cam, logits[:, :, None, None].expand(-1, -1, 3, 3))
    peak = torch.zeros(1, 320, 2, 2)
    peak[0, 0, 0, 1], peak[0, 1, 1, 0] = 3.0, 5.0  # maxima at different places are pooled together
    weight = branch.classifier.weight.flatten(1)
    torch.testing.assert_close(branch(peak)[0][0], 3 * weight[:, 0] + 5 * weight[:, 1])


def test_decoder_is_segformers():
    """The level-by-level form says what transformers' head says: resize, concatenate deepest first, 1x1 convolution."""
    torch.manual_seed(0)
    dims, sizes = (8, 12, 16, 20), ((16, 20), (8, 10), (4, 5), (4, 5))
    theirs = SegformerDecodeHead(SegformerConfig(hidden_sizes=list(dims), num_labels=4, decoder_hidden_size=256)).eval()
    theirs.batch_norm.running_mean.normal_()
    ours = SegmentationBranch(dims, 3).eval()
    parts = {"fuse": "linear_fuse", "norm": "batch_norm", "predict": "classifier"}
    parts |= {f"project.{level}": f"linear_projections.{level}.proj" for level in range(4)}
    state = {
        f"{mine}.{name}": value[:, :, None, None] if mine.startswith("project") and value.dim() == 2 else value
        for mine, other in parts.items()
        for name, value in theirs.get_submodule(other).state_dict().items()
    }
    ours.load_state_dict(state)
    features = [torch.rand(2, dim, *size) for dim, size in zip(dims, sizes, strict=True)]
    torch.testing.assert_close(ours(features), theirs(features), rtol=1e-4, atol=1e-5)


def test_object_aware_decoding_multiplies_features_by_the_object_map(quick):
    torch.manual_seed(0)
    network = DualBranchNetwork(quick, 3).eval()
    image = torch.rand(1, 3, 64, 64) * 255
    features, _ = network.encoder(image)
    cam = network.classification(features[-1])[1]
    maps = [F.interpolate(cam, f.shape[-2:], mode="bilinear", align_corners=False).sigmoid() for f in features]
    gated = [f * m.max(1, keepdim=True).values for f, m in zip(features, maps, strict=True)]
    torch.testing.assert_close(network(image).segmentation_logits, network.segmentation(gated))
    network.object_aware_decoding = False
    torch.testing.assert_close(network(image).segmentation_logits, network.segmentation(features))


def test_branch_s_does_not_train_the_classifier_through_the_object_map(quick):
    network = DualBranchNetwork(quick, 3)
    network(torch.rand(1, 3, 64, 64) * 255).segmentation_logits.sum().backward()
    assert network.classification.classifier.weight.grad is None


def test_parameter_groups_hold_every_parameter_once(quick):
    network = DualBranchNetwork(quick.replace(encoder="mit_b0", encoder_weights="random"), 3)
    groups = network.parameter_groups(quick)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in network.parameters())
    assert not any(p.requires_grad for p in groups[1]["params"])
    assert [(g["name"], g["factor"]) for g in groups] == [
        ("encoder", 1.0), ("norm", 0.0), ("branch_c", 10.0), ("branch_s", 10.0)
    ]  # fmt: skip


def test_what_is_not_asked_for_is_not_computed(quick):
    out = DualBranchNetwork(quick.replace(encoder="mit_b0", encoder_weights="random"), 3)(
        torch.rand(1, 3, 64, 64), segmentation=False
    )
    assert out.segmentation_logits is None
    assert out.affinity is None


def test_initial_values_are_the_references(quick):
    """Kaiming normal over the outputs: of the fusing convolution sqrt(2 / 256), of the affinity's mixing sqrt(2 / 6),
    since its slope is sqrt(5)."""
    torch.manual_seed(0)
    fuse = SegmentationBranch((32, 64, 160, 256), 20).fuse.weight
    assert fuse.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.01)
    mixing = torch.cat([AffinityHead(16).mix.weight.flatten() for _ in range(300)])
    assert mixing.std().item() == pytest.approx((2 / 6) ** 0.5, rel=0.05)
    assert mixing.abs().max() > 1.5  # normal, not uniform


def test_branch_s_looked_at_leaves_no_trace(quick):
    """Observed, not trained: eval mode, no gradient, statistics untouched; the rest of the pass trains on."""
    torch.manual_seed(0)
    network, image = DualBranchNetwork(quick, 3).train(), torch.rand(2, 3, 64, 64) * 255
    before = network.segmentation.norm.running_mean.clone()
    out = network(image, observed=True)
    assert torch.equal(network.segmentation.norm.running_mean, before)
    assert not out.segmentation_logits.requires_grad
    assert out.class_logits.requires_grad
    assert network.segmentation.training
    again = network(image, observed=True).segmentation_logits
    assert torch.equal(out.segmentation_logits, again)  # no dropout
