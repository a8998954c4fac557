"""One frozen configuration for a run: every axis of the study, checked before any work starts."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A parameter that does not exist, has the wrong type, or has a value that cannot work."""


@dataclass(frozen=True)
class RunConfig:
    """Settings of one run. The parameters cell of ``10_train`` is this list, word for word."""

    # --- data
    dataset: str = "scenes"  # scenes (generated) | voc (VOC layout) | folder (images + labels.csv)
    data_root: str = "results/data"  # the dataset's folder; for scenes, where it is written
    classes: tuple = ()  # names of the classes to use; (): all
    train_list: str = "train"  # split to train on (voc: a file in ImageSets/Segmentation)
    val_list: str = "val"  # split to evaluate on
    label_source: str = "file"  # image labels of voc: xml (Annotations) | file | masks
    labels_file: str = "image_labels.txt"  # lines "name class class ...", relative to data_root
    holdout: float = 0.0  # fraction of train kept out of training and used in place of val
    scenes_train: int = 800  # generated training images
    scenes_val: int = 200  # generated validation images
    scenes_size: int = 160  # side of a generated image, pixels
    scenes_part_size: float = 1.0  # size of the part that tells the classes apart; 1: normal
    scenes_similarity: float = 0.5  # 1: all classes share one body, 0: each has its own colours
    scenes_context: float = 0.5  # chance that a scene shows the habitat of its main class
    scenes_seed: int = 0  # seed of the generated dataset

    # --- augmentation
    crop_size: int = 160  # side of a training crop, pixels
    scale_min: float = 1.0  # random scale, drawn uniformly from
    scale_max: float = 2.0  # scale_min .. scale_max
    color_jitter: float = 0.0  # brightness, contrast and saturation changed by up to this share

    # --- model
    encoder: str = "tf_efficientnet_lite0"  # mit_b0 .. mit_b5, or a timm feature extractor
    encoder_weights: str = "imagenet"  # imagenet | random | path of a state dict
    encoder_norm: str = "frozen"  # frozen (as in the paper: learning rate 0) | trained

    # --- supervision and interaction: the axes of the study
    supervision: str = "both"  # none | c2s | s2c | both | full (masks: the upper bound)
    object_aware_decoding: bool = True  # C -> S in operation: decoder sees f_k * object map
    propagation: str = "bsp"  # par | afa | bsp: how the CAM becomes the pseudo-label Y_c
    c2s_loss: str = "bce"  # bce | ce: Branch-S against Y_c
    s2c_loss: str = "ce"  # ce | bce: Branch-C against Y_s
    lambda_c2s: float = 0.7  # weight of the c2s loss (lambda_1)
    lambda_s2c: float = 0.1  # weight of the s2c loss (lambda_2)
    lambda_aff: float = 0.0  # weight of the affinity loss (lambda_3); needs a mit encoder
    c2s_start: int = 100  # first iteration with the c2s (and affinity) loss
    s2c_start: int = 150  # first iteration with the s2c loss
    propagation_start: int = 150  # par before this iteration, `propagation` from it on
    sigma_c: float = 0.5  # bsp ignores pixels whose largest value is below this
    sigma_s: float = 0.75  # Y_s ignores pixels whose largest value is below this
    confidence: str = "logit"  # sigma_s is compared with: logit (reference) | probability
    par_normalized: bool = False  # divide the PAR weights by their sum 1.01
    mask_s2c_by_labels: bool = False  # drop classes from Y_s that the image label excludes
    threshold_high: float = 0.55  # par and afa: foreground where it beats this background score
    threshold_low: float = 0.35  # and background where it loses to this one; ignored between
    threshold_cam: float = 0.45  # background score when a raw CAM is evaluated
    seed_scales: tuple = (1.0, 0.5, 1.5)  # scales of the multi-scale CAM, each with its flip

    # --- optimisation
    iterations: int = 350  # optimiser steps
    batch_size: int = 8  # images per step, over all processes together
    learning_rate: float = 0.0002  # AdamW, encoder
    head_lr_factor: float = 10.0  # both branches and the affinity head learn this much faster
    weight_decay: float = 0.01  # AdamW, all but the encoder's norms
    warmup_iterations: int = 50  # linear warm-up, then poly decay with power 1
    warmup_lr: float = 0.000001  # learning rate at iteration 0
    grad_clip: float = 10.0  # largest gradient norm; 0: no clipping
    mixed_precision: str = "no"  # no | bf16 | fp16

    # --- evaluation and logging
    eval_every: int = 150  # iterations between validations; 0: only at the end
    eval_images: int = 64  # images of a validation on the way; the final one takes all
    eval_size: int = 256  # longest side of an evaluated image, pixels; 0: as it is
    eval_scales: tuple = (1.0, 0.5, 0.75)  # scales of the multi-scale + flip protocol
    log_every: int = 10  # iterations between rows of metrics.jsonl
    checkpoint_every: int = 100  # iterations between checkpoints
    seed: int = 0  # initial weights, order of images, augmentation, dropout

    # --- machine: does not change what is computed, so not part of the run's name
    runs_dir: str = "results/runs"  # where the run's folder is made
    device: str = "auto"  # auto | cpu | cuda
    processes: int = 1  # GPUs (or CPU processes) that share every batch; leave 1 under torchrun
    images_per_pass: int = 0  # images a process takes through the network at once, to save memory; 0: its whole share
    num_workers: int = 0  # loader processes; any number gives the same batches
    tensorboard: bool = False  # also write TensorBoard events

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        _check_values(self)

    @classmethod
    def from_parameters(cls, parameters: dict[str, Any], preset: str = "study") -> RunConfig:
        """A configuration from a preset and overriding parameters.

        Errors: ``ConfigError`` for an unknown preset or parameter, a wrong type or value.
        """
        if preset not in PRESETS:
            raise ConfigError(f"preset = {preset!r}: choose one of {', '.join(PRESETS)}")
        names = [field.name for field in dataclasses.fields(cls)]
        for name in parameters:
            _require_known(name, names)
        return cls(**{**PRESETS[preset], **parameters})

    @classmethod
    def from_namespace(cls, namespace: dict[str, Any], names_before: set[str]) -> RunConfig:
        """The configuration a notebook's parameters cells have defined.

        ``names_before`` are the names known before those cells. Errors: ``ConfigError``.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        reject_unknown(namespace, names_before, fields)
        return cls.from_parameters({name: namespace[name] for name in fields if name in namespace})

    def replace(self, **changes: Any) -> RunConfig:
        """A copy with some fields changed, checked again."""
        return self.from_parameters({**dataclasses.asdict(self), **changes})

    def identity(self) -> dict[str, Any]:
        """The fields that decide what a run computes: all but those of the machine."""
        fields = dataclasses.asdict(self)
        split = {"images_per_pass": self.images_per_pass} if self.images_per_pass else {}  # means are then over a pass
        return {k: v for k, v in fields.items() if k not in MACHINE_FIELDS} | split

    def run_id(self, manifest: str) -> str:
        """Readable slug + hash of the configuration and of the dataset's manifest (hex digest)."""
        canonical = json.dumps([self.identity(), manifest], sort_keys=True)
        operation = self.propagation + ("-oad" if self.object_aware_decoding else "")
        slug = f"{self.dataset}-{self.supervision}-{operation}-seed{self.seed}"
        return f"{slug}-{hashlib.sha256(canonical.encode()).hexdigest()[:10]}"


LITERALS = (str, int, float, list, tuple, dict, type(None))
MACHINE_FIELDS = frozenset(
    "data_root runs_dir device processes images_per_pass num_workers tensorboard checkpoint_every".split()
)

PRESETS: dict[str, dict[str, Any]] = {
    "study": {},
    "quick": {  # seconds on a CPU: for tests and for trying things out
        "scenes_train": 48, "scenes_val": 16, "scenes_size": 96, "scenes_similarity": 0.8,
        "scenes_context": 0.7, "crop_size": 96, "scale_min": 0.75, "scale_max": 1.5, "eval_size": 0,
        "iterations": 40, "batch_size": 4, "warmup_iterations": 5, "c2s_start": 10,
        "s2c_start": 20, "propagation_start": 20, "eval_every": 20, "eval_images": 8,
        "log_every": 1, "checkpoint_every": 10,
    },
    "photos": {  # a thousand photographs in VOC layout on a CPU; tuned on a tenth held out of training
        "dataset": "voc", "data_root": "data/photos", "crop_size": 192, "scale_min": 0.4,
        "scale_max": 1.0, "c2s_loss": "ce", "iterations": 500, "eval_size": 288, "eval_images": 48,
    },
    "voc": {  # the reference's settings for VOC 2012
        "dataset": "voc", "data_root": "data/VOC2012", "train_list": "train_aug", "encoder": "mit_b1",
        "crop_size": 512, "scale_min": 0.5, "scale_max": 2.0, "iterations": 20000, "batch_size": 4,
        "learning_rate": 6e-5, "warmup_iterations": 1500, "lambda_aff": 0.1, "c2s_start": 2000, "s2c_start": 2000,
        "propagation_start": 4000, "eval_every": 2000, "eval_images": 0, "eval_size": 512,
        "log_every": 50, "checkpoint_every": 1000, "num_workers": 4, "grad_clip": 0.0,
    },
}  # fmt: skip
COCO = {"data_root": "data/COCO2014", "train_list": "train", "eval_images": 1000}
PRESETS["coco"] = {**PRESETS["voc"], **COCO}  # the reference's own settings for COCO are unknown to us

CHOICES = {
    "dataset": ("scenes", "voc", "folder"),
    "label_source": ("xml", "file", "masks"),
    "encoder_norm": ("frozen", "trained"),
    "supervision": ("none", "c2s", "s2c", "both", "full"),
    "propagation": ("par", "afa", "bsp"),
    "c2s_loss": ("bce", "ce"),
    "s2c_loss": ("ce", "bce"),
    "confidence": ("logit", "probability"),
    "device": ("auto", "cpu", "cuda"),
    "mixed_precision": ("no", "bf16", "fp16"),
}

AT_LEAST = {
    "scenes_train": 1, "scenes_val": 1, "scenes_size": 64, "crop_size": 32, "iterations": 1,
    "batch_size": 1, "scale_min": 0.05, "log_every": 1, "checkpoint_every": 1, "learning_rate": 0,
    "head_lr_factor": 0, "weight_decay": 0, "warmup_iterations": 0, "warmup_lr": 0, "grad_clip": 0,
    "lambda_c2s": 0, "lambda_s2c": 0, "lambda_aff": 0, "c2s_start": 0, "s2c_start": 0,
    "propagation_start": 0, "eval_every": 0, "eval_images": 0, "eval_size": 0, "num_workers": 0,
    "scenes_part_size": 0.1, "seed": 0, "scenes_seed": 0, "processes": 1, "images_per_pass": 0,
}  # fmt: skip


def has_attention(encoder: str) -> bool:
    """Whether an encoder gives the attention that the affinity head reads (Mix Transformers do)."""
    return encoder.startswith("mit_")


def resolve(path: str | Path) -> Path:
    """A path as given if absolute, else below the project (the nearest folder with notebooks/ and bidir/)."""
    here = Path.cwd()
    roots = (p for p in (here, *here.parents) if (p / "notebooks").is_dir() and (p / "bidir").is_dir())
    return next(roots, here) / Path(path).expanduser()


def reject_unknown(namespace: dict[str, Any], names_before: set[str], parameters: list[str]) -> None:
    """Raise ``ConfigError`` if a literal has appeared in a notebook that is none of its ``parameters``.

    A misspelt papermill parameter is then an error, not a default in use. Objects (figures, tables)
    are left alone, so cells may be run again by hand.
    """
    for name, value in namespace.items():
        if name not in names_before and not name.startswith("_") and isinstance(value, LITERALS):
            _require_known(name, parameters)


def _require_known(name: str, names: list[str]) -> None:
    if name not in names:
        match = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {match[0]!r}?" if match else f"; there are {', '.join(names)}"
        raise ConfigError(f"no parameter is called {name!r}{hint}")


def _checked(field: dataclasses.Field, value: Any) -> Any:
    """``value`` if it has the field's type (int passes for float, list for tuple), else an error."""
    wanted = {"str": str, "int": int, "float": float, "bool": bool, "tuple": tuple}[field.type]
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is tuple and type(value) is list:
        value = tuple(value)
    if type(value) is not wanted:
        hint = ""
        if type(value) is str and wanted in (int, float, bool):
            hint = "; write it without quotes, and 1e-4 as 1.0e-4 (YAML reads the first as a string)"
        raise ConfigError(f"{field.name} = {value!r} is a {type(value).__name__}, needs a {wanted.__name__}{hint}")
    if wanted is tuple:
        inner = str if field.name == "classes" else float
        value = tuple(float(v) if type(v) is int else v for v in value)
        if not all(type(v) is inner for v in value):
            raise ConfigError(f"{field.name} = {value!r}: every entry needs to be a {inner.__name__}")
    return value


def _check_values(config: RunConfig) -> None:
    for name, choices in CHOICES.items():
        if getattr(config, name) not in choices:
            raise ConfigError(f"{name} = {getattr(config, name)!r}: choose one of {', '.join(choices)}")
    for name, least in AT_LEAST.items():
        if not getattr(config, name) >= least:  # also catches NaN
            raise ConfigError(f"{name} = {getattr(config, name)!r}: needs to be at least {least}")
    for name in ("scenes_similarity", "scenes_context", "holdout", "color_jitter"):
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"{name} = {getattr(config, name)!r}: needs to lie in 0..1")
    if config.scale_max < config.scale_min:
        raise ConfigError(f"scale_max = {config.scale_max} is below scale_min = {config.scale_min}")
    if config.threshold_low > config.threshold_high:
        raise ConfigError(f"threshold_low = {config.threshold_low} is above threshold_high = {config.threshold_high}")
    for name in ("seed_scales", "eval_scales"):
        if 1.0 not in getattr(config, name) or min(getattr(config, name)) <= 0:
            raise ConfigError(f"{name} = {getattr(config, name)}: needs positive scales, 1.0 among them")
    if config.propagation == "afa" and has_attention(config.encoder) and config.lambda_aff == 0:
        raise ConfigError("propagation = 'afa' walks over the affinity, which lambda_aff = 0 leaves untrained; set 0.1")
    smallest = config.crop_size * min(config.seed_scales)
    if has_attention(config.encoder) and smallest < 32:
        raise ConfigError(
            f"crop_size = {config.crop_size} is {smallest:.0f} px at the smallest of seed_scales; mit_* needs 32"
        )
    if not has_attention(config.encoder):
        for name, used in (("propagation", config.propagation == "afa"), ("lambda_aff", config.lambda_aff > 0)):
            if used:
                raise ConfigError(
                    f"{name} = {getattr(config, name)!r} needs attention, which encoder = {config.encoder!r} "
                    "does not have; use a mit_* encoder, or propagation par | bsp with lambda_aff 0"
                )
