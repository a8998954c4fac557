"""Encoders: an image in 0..255 -> features at strides 4, 8, 16, 16, normalised as each was trained."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from bidir.config import ConfigError, RunConfig
from bidir.model.mix_transformer import VARIANTS, MixTransformer
from bidir.model.weights import load_encoder_weights

STRIDES = [4, 8, 16, 16]


class TimmEncoder(nn.Module):
    """A feature extractor of timm with strides 4, 8, 16, 16. Has no attention."""

    attention_channels = 0

    def __init__(self, name: str, pretrained: bool) -> None:
        super().__init__()
        try:
            probe = timm.create_model(name, features_only=True, output_stride=16)
            indices = probe.feature_info.out_indices[-4:]
            self.body = timm.create_model(
                name, features_only=True, output_stride=16, out_indices=indices, pretrained=pretrained
            )
        except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
            raise ConfigError(
                f"encoder = {name!r}: {', '.join(VARIANTS)}, or a timm feature extractor ({error})"
            ) from error
        if self.body.feature_info.reduction() != STRIDES:
            raise ConfigError(f"encoder = {name!r} has strides {self.body.feature_info.reduction()}, needs {STRIDES}")
        self.dims = tuple(self.body.feature_info.channels())
        settings = timm.data.resolve_data_config({}, model=self.body)
        self.register_buffer("mean", 255 * torch.tensor(settings["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(settings["std"]).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor, attention: bool = False) -> tuple[list[Tensor], None]:
        """image (B, 3, H, W) -> f1..f4."""
        return self.body((image - self.mean) / self.std), None


def make_encoder(config: RunConfig) -> MixTransformer | TimmEncoder:
    """The encoder that the configuration names, with its weights loaded.

    Errors: ``ConfigError`` for an unknown encoder, ``WeightsError`` for weights that do not fit.
    """
    if config.encoder in VARIANTS:
        encoder = MixTransformer(*VARIANTS[config.encoder])
    else:
        offline = config.encoder == "tf_efficientnet_lite0"
        encoder = TimmEncoder(config.encoder, config.encoder_weights == "imagenet" and not offline)
    load_encoder_weights(encoder, config.encoder, config.encoder_weights)
    return encoder
