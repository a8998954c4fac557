"""What can be set: groups of settings, each value checked where it stands, and the one configuration made of them."""

import dataclasses
import hashlib
import json
from typing import Any, Literal

from bidir.atomic import content_digest
from bidir.atomic import resolve as resolve
from bidir.checked import ConfigError, DataError, Names, Scales, Text, WeightsError, at, settings, shown, unknown_name  # noqa: F401
from bidir.presets import PRESETS

Loss = Literal["bce", "ce"]
MOST = 1_000_000  # iterations, or generated images


@settings
class Data:
    """data"""

    dataset: Literal["scenes", "voc", "folder"] = at("scenes", "generated, VOC layout, images + labels.csv")
    classes: Names = at((), "names of the classes to use; (): all")
    train_list: Text = at("train", "split to train on (voc: a file in ImageSets/Segmentation)")
    val_list: Text = at("val", "split to evaluate on")
    label_source: Literal["xml", "file", "masks"] = at("file", "where the image labels of voc come from")
    labels_file: Text = at("image_labels.txt", 'lines "name class class ...", relative to data_root')
    holdout: float = at(0.0, "fraction of train kept out of training and used in place of val", ge=0, lt=1)


@settings
class Supervision:
    """supervision and interaction: the axes of the study"""

    supervision: Literal["none", "c2s", "s2c", "both", "full"] = at("both", "who teaches; full: masks")
    object_aware_decoding: bool = at(True, "C -> S in operation: decoder sees f_k * object map")
    propagation: Literal["par", "afa", "bsp", "complement"] = at("bsp", "how the CAM becomes the pseudo-label Y_c")
    c2s_loss: Loss = at("bce", "Branch-S against Y_c")
    s2c_loss: Literal["ce", "bce", "cosa", "csrm", "cam"] = at("ce", "Branch-C against Y_s; ce: the paper's")
    lambda_c2s: float = at(0.7, "weight of the c2s loss (lambda_1)", ge=0, le=1000)
    lambda_s2c: float = at(0.1, "weight of the s2c loss (lambda_2)", ge=0, le=1000)
    lambda_aff: float = at(0.0, "weight of the affinity loss (lambda_3); needs a mit encoder", ge=0, le=1000)
    c2s_start: int = at(100, "first iteration with the c2s (and affinity) loss", ge=0, le=MOST)
    s2c_start: int = at(150, "first iteration with the s2c loss", ge=0, le=MOST)
    propagation_start: int = at(150, "par before this iteration, `propagation` from it on", ge=0, le=MOST)
    sigma_c: float = at(0.5, "bsp and complement ignore pixels whose largest value is below this", ge=0, le=1)
    sigma_s: float = at(0.75, "Y_s ignores pixels whose largest value is below this", ge=0, le=20)
    confidence: Literal["logit", "probability"] = at("logit", "what sigma_s is compared with; reference: logit")
    mask_s2c_by_labels: bool = at(False, "drop classes from Y_s that the image label excludes")
    par_normalized: bool = at(False, "divide the PAR weights by their sum 1.01")
    threshold_high: float = at(0.55, "par and afa: foreground where it beats this background score", ge=0, le=1)
    threshold_low: float = at(0.35, "and background where it loses to this one; ignored between", ge=0, le=1)
    threshold_cam: float = at(0.45, "background score when a raw CAM is evaluated", ge=0, le=1)
    teacher_scales: Scales = at((1.0,), "scales of the maps that teach; (1.0,) without flip: the training pass's own")
    teacher_flip: bool = at(False, "whether each scale is passed mirrored too")
    warm_branch_s: bool = at(False, "decode Branch-S with weight 0 before c2s_start, as the reference does")
    c2s_balance: bool = at(False, "c2s loss: half the mean over background, half over foreground")
    seed_share: float = at(0.0, "bsp: share of Branch-S's probability in the CAM that teaches", ge=0, le=1)
    seed_mean: Literal["arithmetic", "geometric"] = at("arithmetic", "how seed_share joins the two")
    ema_teacher: bool = at(False, "the average of the weights teaches, from images without color_jitter")


@settings
class Optimiser:
    """optimisation"""

    iterations: int = at(350, "optimiser steps", ge=1, le=MOST)
    seed: int = at(0, "initial weights, order of images, augmentation, dropout", ge=0, lt=2**32)
    batch_size: int = at(8, "images per step, over all processes together", ge=1, le=4096)
    learning_rate: float = at(2e-4, "AdamW, encoder", ge=0, le=1)
    head_lr_factor: float = at(10.0, "both branches and the affinity head learn this much faster", ge=0, le=1000)
    weight_decay: float = at(0.01, "AdamW, all but the encoder's norms", ge=0, le=1)
    warmup_iterations: int = at(50, "linear warm-up, then poly decay with power 1", ge=0, le=MOST)
    warmup_lr: float = at(1e-6, "learning rate at iteration 0", ge=0, le=1)
    grad_clip: float = at(10.0, "largest gradient norm; 0: no clipping", ge=0, le=1e6)
    mixed_precision: Literal["no", "bf16", "fp16"] = at("no", "numbers of fewer bits in the passes")
    ema_decay: float = at(0.0, "decay of the exponential average of the weights that is evaluated; 0: none", ge=0, lt=1)


@settings
class Network:
    """network"""

    encoder: Text = at("tf_efficientnet_lite0", "mit_b0 .. mit_b5, or a timm feature extractor")
    encoder_weights: Text = at("imagenet", "imagenet | random | path of a state dict")
    initial: str = at("", "checkpoint.pt or exported folder to start from; heads of other classes are fresh")
    encoder_norm: Literal["frozen", "trained"] = at("frozen", "frozen as in the paper: learning rate 0")


@settings
class Augment:
    """augmentation"""

    crop_size: int = at(160, "side of a training crop, pixels", ge=32, le=4096)
    scale_min: float = at(1.0, "random scale, drawn uniformly from", ge=0.05, le=10)
    scale_max: float = at(2.0, "scale_min .. scale_max", le=10)
    padding: Literal["mean", "black"] = at("mean", "colour around an image smaller than its crop; reference: black")
    color_jitter: float = at(0.0, "brightness, contrast and saturation changed by up to this share", ge=0, le=1)


@settings
class Evaluation:
    """evaluation and logging"""

    eval_every: int = at(150, "iterations between validations; 0: only at the end", ge=0, le=MOST)
    eval_images: int = at(64, "images of a validation on the way; the final one takes all", ge=0, le=MOST)
    eval_size: int = at(256, "longest side of an evaluated image, pixels; 0: as it is", ge=0, le=8192)
    seed_scales: Scales = at((1.0, 0.5, 1.5), "scales of the evaluated seeds, each with its flip")
    eval_scales: Scales = at((1.0, 0.5, 0.75), "scales of the multi-scale + flip protocol")
    crf_probabilities: Literal["loss", "softmax", "sigmoid"] = at("loss", "P_s for the CRF; loss: as c2s_loss says")
    log_every: int = at(10, "iterations between logged rows", ge=1, le=MOST)
    gradients_every: int = at(0, "iterations between rows of terms' gradients on the encoder; 0: none", ge=0, le=MOST)
    score_train: int = at(0, "training images whose maps are scored too, evenly spaced; 0: none", ge=0, le=MOST)


@settings
class Scenes:
    """the generated dataset: what makes it easy or hard"""

    scenes_train: int = at(800, "generated training images", ge=1, le=MOST)
    scenes_val: int = at(200, "generated validation images", ge=1, le=MOST)
    scenes_size: int = at(160, "side of a generated image, pixels", ge=64, le=2048)
    scenes_part_size: float = at(1.0, "size of the part that tells the classes apart; 1: normal", ge=0.1, le=10)
    scenes_similarity: float = at(0.5, "1: all classes share one body, 0: each has its own colours", ge=0, le=1)
    scenes_context: float = at(0.5, "chance that a scene shows the habitat of its main class", ge=0, le=1)
    scenes_seed: int = at(0, "seed of the generated dataset", ge=0, lt=2**32)


@settings
class Machine:
    """machine: does not change what is computed, so not part of the run's name"""

    data_root: Text = at("results/data", "the dataset's folder; for scenes, where it is written")
    runs_dir: Text = at("results/runs", "where the run's folder is made")
    device: Literal["auto", "cpu", "cuda"] = at("auto", "where to compute; auto: a GPU if there is one")
    processes: int = at(1, "GPUs (or CPU processes) that share every batch; leave 1 under torchrun", ge=1, le=1024)
    images_per_pass: int = at(0, "images a process takes at once, to save memory; 0: its whole share", ge=0, le=4096)
    num_workers: int = at(0, "loader processes; any number gives the same batches", ge=0, le=256)
    checkpoint_every: int = at(100, "iterations between checkpoints", ge=1, le=MOST)
    keep_every: int = at(0, "iterations between checkpoints that stay, as checkpoint-300.pt; 0: none", ge=0, le=MOST)
    compile: bool = at(False, "compile the network: pays off on a GPU, in runs of hours")
    trackers: Names = at((), "also log to these of accelerate's: tensorboard, wandb, mlflow, ...")


GROUPS = (Data, Supervision, Optimiser, Network, Augment, Evaluation, Scenes, Machine)


@settings
class RunConfig(Machine, Scenes, Evaluation, Augment, Network, Optimiser, Supervision, Data):  # fields: last first
    """All settings of one run. A function that reads one group takes that group, and a ``RunConfig`` is one of each."""

    def __post_init__(self) -> None:
        if self.scale_max < self.scale_min:
            raise ConfigError(f"scale_max = {self.scale_max} is below scale_min = {self.scale_min}; set at least that")
        if self.threshold_low > self.threshold_high:
            high = f"threshold_high = {self.threshold_high}"
            raise ConfigError(f"threshold_low = {self.threshold_low} is above {high}; set at most that")
        for name in ("teacher_scales", "seed_scales", "eval_scales"):
            if 1.0 not in getattr(self, name):
                raise ConfigError(f"{name} = {getattr(self, name)}: needs 1.0 among the scales")
        if self.ema_teacher and not self.ema_decay:
            raise ConfigError("ema_teacher = True: needs the average that ema_decay = 0 does not keep; set 0.98")
        if self.supervision == "both" and self.s2c_loss == "cosa" and not self.c2s_balance:
            why = "CAM and Y_c can shrink each other to nothing"
            raise ConfigError(f"s2c_loss = 'cosa' with c2s_balance = False: {why}; set True")
        if self.confidence == "probability" and self.sigma_s > 1:
            raise ConfigError(f"sigma_s = {self.sigma_s} with confidence = 'probability': needs to be at most 1")
        if 0 < self.eval_size < 32:
            raise ConfigError(f"eval_size = {self.eval_size}: needs to be at least 32, or 0: as the image is")
        if self.propagation == "afa" and self.lambda_aff == 0:
            raise ConfigError("propagation = 'afa': its affinity is what lambda_aff = 0 leaves untrained; set 0.1")

    @classmethod
    def from_parameters(cls, parameters: dict[str, Any], preset: str = "study") -> "RunConfig":
        """A configuration from a preset and overriding parameters.
        Errors: ``ConfigError`` for an unknown preset or parameter, a wrong type or value, a term that never starts."""
        if preset not in [*PRESETS]:
            raise ConfigError(f"preset = {shown(preset)}: choose one of {', '.join(PRESETS)}")
        if unknown := [name for name in parameters if name not in FIELDS]:
            raise unknown_name(unknown[0], [*FIELDS])
        made = cls(**{**PRESETS[preset], **parameters})
        c2s = made.supervision in ("c2s", "both") and made.lambda_c2s > 0
        starts = {
            "c2s_start": c2s or (made.supervision != "full" and made.lambda_aff > 0),
            "s2c_start": made.supervision in ("s2c", "both") and made.lambda_s2c > 0,
            "propagation_start": c2s and made.propagation != "par",
        }
        late = [name for name, on in starts.items() if on and getattr(made, name) >= made.iterations]
        if late:
            given = ", ".join(f"{name} = {getattr(made, name)}" for name in late)
            raise ConfigError(f"{given}: never reached in iterations = {made.iterations}; set below that")
        if made.dataset == "scenes" and made.crop_size > (longest := int(made.scenes_size * made.scale_max)):
            raise ConfigError(f"crop_size = {made.crop_size} is larger than every image, set at most {longest}")
        return made

    @classmethod
    def from_stored(cls, values: dict[str, Any]) -> "RunConfig":
        """A configuration as it was written down, also by older code: what has gone since is left out, what has come
        gets the value under which that code computed."""
        return cls(**{name: value for name, value in with_older(values).items() if name != "tensorboard"})

    def replace(self, **changes: Any) -> "RunConfig":
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def as_parameters(self) -> dict[str, Any]:
        """All fields as papermill passes them: lists in place of tuples."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    def identity(self) -> dict[str, Any]:
        """The fields that decide what a run computes: all but those of the machine."""
        kept = {name: value for name, value in vars(self).items() if name not in MACHINE_FIELDS}
        kept = {name: value for name, value in kept.items() if name not in ADDED or value != FIELDS[name].default}
        kept |= {"initial": content_digest(self.initial)} if self.initial else {}
        kept["revision"] = REVISION
        return kept | ({"images_per_pass": self.images_per_pass} if self.images_per_pass else {})  # means over a pass

    def run_id(self, manifest: str) -> str:
        """Readable slug + hash of the configuration and of the dataset's manifest (hex digest)."""
        canonical = json.dumps([self.identity(), manifest], sort_keys=True)
        operation = self.propagation + ("-oad" if self.object_aware_decoding else "")
        slug = f"{self.dataset}-{self.supervision}-{operation}-seed{self.seed}"
        return f"{slug}-{hashlib.sha256(canonical.encode()).hexdigest()[:10]}"


REVISION = 1  # of what is computed: raised by whatever changes numbers without a setting
ADDED = {  # since then: part of an identity where they are not the default
    "c2s_balance", "seed_share", "seed_mean", "ema_teacher", "ema_decay", "gradients_every", "score_train", "initial",
}  # fmt: skip
IGNORE = 255  # class id of pixels that no loss and no score counts
FIELDS = RunConfig.__pydantic_fields__  # name -> annotation, default, description (its meaning)
MACHINE_FIELDS = frozenset(Machine.__pydantic_fields__)


def with_older(values: dict[str, Any]) -> dict[str, Any]:
    """Stored settings of any age, with all fields."""
    return {**{name: field.default for name, field in FIELDS.items()}, **values}
