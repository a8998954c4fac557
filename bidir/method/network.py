"""The dual-branch network: one encoder, a classification and a segmentation branch (method of BMP)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bidir.checked import CLASSES
from bidir.config import ConfigError, RunConfig
from bidir.method.distributed import SynchronisedNorm
from bidir.method.encoders import make_encoder
from bidir.method.tensors import resize

WIDTH = 256  # channels of the decoder
NORMS = (nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside: no dropout, batch-norm statistics untouched."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


class Outputs(NamedTuple):
    """What the network says about a batch; C foreground classes, S = C + 1 with background first.
    h4, w4 and h16, w16 are the image's size over 4 and 16, rounded up; N = h16 * w16 tokens."""

    class_logits: Float[Tensor, "B C"]
    cam_logits: Float[Tensor, "B C h16 w16"]
    segmentation_logits: Float[Tensor, "B S h4 w4"] | None
    affinity: Float[Tensor, "B N N"] | None  # in 0..1, symmetric


class ClassificationBranch(nn.Module):
    """Branch-C: global max pooling and a bias-free linear map; the same map at each position is the CAM."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(dim, num_classes, 1, bias=False)

    def forward(self, feature: Float[Tensor, "B D h w"]) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C h w"]]:
        return self.classifier(feature.amax((2, 3), keepdim=True)).flatten(1), self.classifier(feature)


class SegmentationBranch(nn.Module):
    """Branch-S: SegFormer's all-MLP decoder.
    The fusing 1x1 convolution over the concatenated levels is applied level by level before resizing:
    the two commute, and most of the work is then done at the levels' own low resolution."""

    def __init__(self, dims: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(dim, WIDTH, 1) for dim in dims)
        self.fuse = nn.Conv2d(WIDTH * len(dims), WIDTH, 1, bias=False)
        nn.init.kaiming_normal_(self.fuse.weight, mode="fan_out", nonlinearity="relu")
        self.norm = SynchronisedNorm(WIDTH)
        self.dropout = nn.Dropout2d(0.1)
        self.predict = nn.Conv2d(WIDTH, num_classes + 1, 1)

    def forward(self, features: list[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B S h4 w4"]:
        """Features f1..f4 to logits at the resolution of f1."""
        size = features[0].shape[-2:]
        # as in the reference, the deepest level comes first in the concatenation
        weights = reversed(self.fuse.weight.split(WIDTH, dim=1))
        levels = zip(self.project, features, weights, strict=True)
        fused = sum(resize(F.conv2d(project(feature), weight), size) for project, feature, weight in levels)
        return self.predict(self.dropout(F.relu(self.norm(fused))))


class AffinityHead(nn.Module):
    """Attention before scale and softmax, symmetrised, mixed over heads by a learned 1x1 convolution, sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, 1, 1)
        nn.init.kaiming_normal_(self.mix.weight, a=5**0.5, mode="fan_out")

    def forward(self, attention: Float[Tensor, "B heads N N"]) -> Float[Tensor, "B N N"]:
        return self.mix(attention + attention.transpose(2, 3)).squeeze(1).sigmoid()


class DualBranchNetwork(nn.Module):
    """Encoder, Branch-C, Branch-S and, where the encoder has attention, the affinity head."""

    def __init__(self, config: RunConfig, num_classes: int) -> None:
        super().__init__()
        if not 1 <= num_classes <= CLASSES:
            raise ConfigError(f"{num_classes} classes: there can be 1 to {CLASSES}; choose among them with classes")
        self.encoder = make_encoder(config)
        self.classification = ClassificationBranch(self.encoder.dims[-1], num_classes)
        self.segmentation = SegmentationBranch(self.encoder.dims, num_classes)
        channels = self.encoder.attention_channels
        self.affinity = AffinityHead(channels) if channels else None
        self.object_aware_decoding = config.object_aware_decoding
        self.norm_frozen = config.encoder_norm == "frozen"
        for parameter in self._norm_parameters():
            parameter.requires_grad_(not self.norm_frozen)  # so that they take no part in gradient clipping

    def forward(
        self, image: Float[Tensor, "B 3 H W"], segmentation: bool = True, affinity: bool = False, observed: bool = False
    ) -> Outputs:
        """image: RGB in 0..255. What is not asked for is not computed and stays None. ``observed``: Branch-S only to be
        looked at, by no loss: in eval mode, without gradient."""
        features, attention = self.encoder(image, attention=affinity and self.affinity is not None)
        class_logits, cam_logits = self.classification(features[-1])
        if segmentation and self.object_aware_decoding:
            features = [feature * object_map(cam_logits, feature.shape[-2:]) for feature in features]
        segmentation_logits = self.segmentation(features) if segmentation and not observed else None
        if segmentation and observed:
            with evaluating(self.segmentation):
                segmentation_logits = self.segmentation([feature.detach() for feature in features])
        relation = None if attention is None else self.affinity(attention)
        return Outputs(class_logits, cam_logits, segmentation_logits, relation)

    def train(self, mode: bool = True) -> "DualBranchNetwork":
        """Train mode; a frozen encoder norm keeps its statistics too."""
        super().train(mode)
        for module in self.encoder.modules() if self.norm_frozen else ():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def _norm_parameters(self) -> list[nn.Parameter]:
        return [p for m in self.encoder.modules() if isinstance(m, NORMS) for p in m.parameters()]

    def parameter_groups(self, config: RunConfig) -> list[dict]:
        """AdamW's four groups: encoder, its norms, Branch-C (with affinity head), Branch-S."""
        norms = self._norm_parameters()
        known = {id(p) for p in norms}
        body = [p for p in self.encoder.parameters() if id(p) not in known]
        head_c = [*self.classification.parameters(), *(self.affinity.parameters() if self.affinity else ())]
        heads = {"factor": config.head_lr_factor, "weight_decay": config.weight_decay}
        return [
            {"name": "encoder", "params": body, "factor": 1.0, "weight_decay": config.weight_decay},
            {"name": "norm", "params": norms, "factor": 0.0 if self.norm_frozen else 1.0, "weight_decay": 0.0},
            {"name": "branch_c", "params": head_c, **heads},
            {"name": "branch_s", "params": list(self.segmentation.parameters()), **heads},
        ]


def object_map(cam_logits: Float[Tensor, "B C h w"], size: torch.Size) -> Float[Tensor, "B 1 H W"]:
    """How likely any class is at each position: P_c, detached and resized, sigmoid, maximum over classes."""
    return resize(cam_logits.detach(), size).sigmoid().amax(1, keepdim=True)
