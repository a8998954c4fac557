"""From maps to pseudo-labels: ``par``, ``afa``, ``bsp``, ``complement`` (Y_c), and Branch-S's own (Y_s)."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bidir.config import ConfigError, Supervision
from bidir.method.maps import SeedMaps
from bidir.method.par import PAR
from bidir.method.tensors import IGNORE, Batch, box_mask, box_on_grid, resize

RADIUS = 8  # tokens, in each direction


def radius_mask(height: int, width: int, device: torch.device) -> Bool[Tensor, "N N"]:
    """Which pairs of tokens lie at most ``RADIUS`` rows and ``RADIUS`` columns apart; N = height * width."""
    rows = torch.arange(height, device=device).repeat_interleave(width)
    columns = torch.arange(width, device=device).repeat(height)
    return ((rows[:, None] - rows).abs() <= RADIUS) & ((columns[:, None] - columns).abs() <= RADIUS)


def random_walk(seed: Float[Tensor, "B K h w"], affinity: Float[Tensor, "B N N"]) -> Float[Tensor, "B K h w"]:
    """seed @ T, T the squared affinity within the radius, each column divided by (its sum + 0.1)."""
    transition = affinity**2 * radius_mask(*seed.shape[-2:], seed.device)
    transition = transition / (transition.sum(1, keepdim=True) + 0.1)
    return (seed.flatten(2) @ transition).view_as(seed)


class Present(NamedTuple):
    """The classes present in each image, packed: K is the largest number in the batch, K1 = K + 1."""

    index: Int[Tensor, "B K"]  # class in 0..C-1
    filled: Bool[Tensor, "B K"]  # False where an image has fewer than K

    @classmethod
    def of(cls, label: Float[Tensor, "B C"], count: int) -> "Present":
        """``count``: K, as many classes as an image of the batch shows at most."""
        filled, index = label.sort(dim=1, descending=True, stable=True)
        return cls(index[:, :count], filled[:, :count] > 0)

    def take(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K h w"]:
        """The maps of the present classes, so that those of absent ones are never computed with."""
        return maps.gather(1, self.index[:, :, None, None].expand(-1, -1, *maps.shape[2:]))

    def decide(self, scores: Float[Tensor, "B K1 H W"]) -> tuple[Float[Tensor, "B H W"], Int[Tensor, "B H W"]]:
        """Largest value over background and present classes, and its class in 0..C."""
        known = torch.cat([torch.ones_like(self.filled[:, :1]), self.filled], 1)
        value, slot = scores.masked_fill(~known[:, :, None, None], -torch.inf).max(1)
        classes = torch.cat([torch.zeros_like(self.index[:, :1]), self.index + 1], 1)
        return value, classes.gather(1, slot.flatten(1)).view_as(slot)


def refinement(batch: Batch, config: Supervision) -> PAR:
    """PAR for a batch, at half its resolution."""
    full = tuple(batch.image.shape[-2:])
    half = (full[0] // 2, full[1] // 2)
    return PAR(resize(batch.image, half), box_on_grid(batch.box, full, half), config.par_normalized)


class Propagator:
    """Makes Y_c for a batch from its maps; the work that the propagations share is done once."""

    def __init__(self, maps: SeedMaps, batch: Batch, config: Supervision, par: PAR) -> None:
        self.maps, self.config, self.par, self.size = maps, config, par, tuple(batch.image.shape[-2:])
        self.present = Present.of(batch.label, batch.most)
        self.cam, self.shown = self.present.take(maps.cam), self.present.filled[:, :, None, None]
        self.outside = ~box_mask(batch.box, self.size, self.size)
        self.made = {}  # kind -> largest value and its class, made once however many thresholds look at them

    def __call__(self, kind: str, decided: bool = False) -> Int[Tensor, "B H W"]:
        """Pseudo-label 0..C, 255 = ignore. ``decided`` leaves no pixel of the true image ignored:
        no sigma_c, and the one threshold for raw CAMs in place of high and low."""
        if kind in ("bsp", "complement"):
            label = self._background_aware(kind, 0.0 if decided else self.config.sigma_c)
        else:
            high, low = self.config.threshold_high, self.config.threshold_low
            label = self._two_thresholds((self.config.threshold_cam,) if decided else (high, low), kind == "afa")
        return label.masked_fill(self.outside, IGNORE)

    def _background_aware(self, kind: str, sigma: float) -> Int[Tensor, "B H W"]:
        """Branch-S's background map (``complement``: 1 - the CAM's maximum), the CAM, PAR, argmax, ``sigma``."""
        if kind not in self.made:
            background = self.maps.background if kind == "bsp" else 1 - (self.cam * self.shown).amax(1, keepdim=True)
            scores = self.par(torch.cat([background, self.cam], 1))
            self.made[kind] = self.present.decide(resize(scores, self.size))
        value, label = self.made[kind]
        return label.masked_fill(value < sigma, IGNORE)

    def _two_thresholds(self, thresholds: tuple[float, ...], walk: bool) -> Int[Tensor, "B H W"]:
        """``par`` and ``afa``: a constant background score, softmax, (walk,) PAR, argmax, per threshold.
        Foreground where the first threshold says so, background where all do, ignored between."""
        seeds = torch.cat([self._softmax(t) for t in thresholds], 1)
        if walk:
            if self.maps.affinity is None:
                raise ConfigError("propagation = 'afa' needs the affinity; use an encoder with attention (mit_*)")
            seeds = resize(random_walk(resize(seeds, self.maps.grid), self.maps.affinity), self.cam.shape[-2:])
        refined = resize(self.par(seeds), self.size).chunk(len(thresholds), 1)
        labels = [self.present.decide(scores)[1] for scores in refined]
        first, background = labels[0], torch.stack(labels).amax(0) == 0
        return first if len(labels) == 1 else first.masked_fill((first == 0) & ~background, IGNORE)

    def _softmax(self, threshold: float) -> Float[Tensor, "B K1 h w"]:
        """Softmax over the background score and the CAM of the present classes."""
        background = torch.full_like(self.cam[:, :1], threshold)
        return torch.cat([background, self.cam.masked_fill(~self.shown, -torch.inf)], 1).softmax(1)


def raw_seed(cam: Float[Tensor, "B C h w"], present: Present, threshold: float, size: tuple) -> Int[Tensor, "B H W"]:
    """The CAM itself as a segmentation: the strongest present class, background below ``threshold``."""
    scores = resize(present.take(cam), size)
    return present.decide(torch.cat([torch.full_like(scores[:, :1], threshold), scores], 1))[1]


def segmentation_pseudo_label(
    logits: Float[Tensor, "B S h w"], batch: Batch, config: Supervision
) -> Int[Tensor, "B h w"]:
    """Y_s: argmax of P_s where its largest value reaches sigma_s; 255 below it and on padding.
    Background keeps its 0: the paper's s2c loss leaves it out, evaluation counts it. For losses that hold background:
    argmax of the softmax over background and the classes present, csrm where it is above 0.5."""
    allowed = torch.cat([torch.ones_like(batch.label[:, :1]), batch.label], 1) > 0
    least = {"cosa": 0.0, "cam": 0.0, "csrm": 0.5}.get(config.s2c_loss)
    values = logits
    if least is not None:
        values = logits.masked_fill(~allowed[:, :, None, None], -torch.inf).softmax(1)
    elif config.confidence == "probability":
        values = logits.softmax(1) if config.c2s_loss == "ce" else logits.sigmoid()
    value, pseudo_label = values.max(1)
    real = box_mask(batch.box, tuple(batch.image.shape[-2:]), tuple(logits.shape[-2:]))
    ignored = (value < (config.sigma_s if least is None else least)) | ~real
    if config.mask_s2c_by_labels:
        ignored |= ~allowed.gather(1, pseudo_label.flatten(1)).view_as(pseudo_label)
    return pseudo_label.masked_fill(ignored, IGNORE)
