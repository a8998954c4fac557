"""Dense CRF (Krähenbühl & Koltun, NeurIPS 2011) with the reference's test settings, by pydensecrf."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bidir.config import ConfigError, RunConfig

ITERATIONS = 10
POSITION = {"sxy": 3, "compat": 3}  # smoothness: standard deviation in pixels, weight
BILATERAL = {"sxy": 64, "srgb": 5, "compat": 4}  # appearance: in pixels and in colour values 0..255, weight


def probabilities(logits: Float[Tensor, "B S h w"], config: RunConfig) -> Float[Tensor, "B S h w"]:
    """P_s as a distribution over the classes: softmax, as the reference, or the sigmoids over their sum.
    ``crf_probabilities = loss``: softmax if trained with ``ce``, else sigmoid."""
    kind = config.crf_probabilities
    if kind == "softmax" or (kind == "loss" and config.c2s_loss == "ce"):
        return logits.softmax(1)
    each = logits.sigmoid()
    return each / each.sum(1, keepdim=True).clamp(min=1e-6)


def load_crf() -> tuple[Any, Any]:
    """pydensecrf's field and its unary from probabilities. Errors: ``ConfigError`` if it is not installed."""
    try:
        from pydensecrf.densecrf import DenseCRF2D
        from pydensecrf.utils import unary_from_softmax
    except ImportError as error:
        raise ConfigError("protocol = 'crf' needs pydensecrf: pip install 'bidir[crf]' (builds with g++)") from error
    return DenseCRF2D, unary_from_softmax


def dense_crf(image: Float[Tensor, "B 3 H W"], scores: Float[Tensor, "B S H W"]) -> Int[Tensor, "B H W"]:
    """Class ids after mean-field inference. Args: image RGB in 0..255, scores that sum to 1 over S.
    Errors: ``ConfigError`` if pydensecrf is not installed."""
    (field_of, unary_of), refined = load_crf(), []
    for photo, score in zip(image, scores, strict=True):
        classes, height, width = score.shape
        field = field_of(width, height, classes)
        field.setUnaryEnergy(np.ascontiguousarray(unary_of(score.float().cpu().numpy())))
        field.addPairwiseGaussian(**POSITION)
        pixels = np.ascontiguousarray(photo.round().byte().permute(1, 2, 0).cpu().numpy())
        field.addPairwiseBilateral(**BILATERAL, rgbim=pixels)
        energy = np.array(field.inference(ITERATIONS)).reshape(classes, height, width)
        refined.append(torch.from_numpy(energy.argmax(0)))
    return torch.stack(refined).to(image.device)
