"""Named starting points of a configuration: what each sets other than the defaults."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "study": {},
    "quick": {  # seconds on a CPU: for tests and for trying things out
        "scenes_train": 48, "scenes_val": 16, "scenes_size": 96, "scenes_similarity": 0.8, "scenes_context": 0.7,
        "crop_size": 96, "scale_min": 0.75, "scale_max": 1.5, "eval_size": 0, "iterations": 40, "batch_size": 4,
        "warmup_iterations": 5, "c2s_start": 10, "s2c_start": 20, "propagation_start": 20, "eval_every": 20,
        "eval_images": 8, "log_every": 1, "checkpoint_every": 10,
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
        "log_every": 50, "checkpoint_every": 1000, "num_workers": 4, "grad_clip": 0.0, "mixed_precision": "bf16",
        "teacher_scales": (1.0, 0.5, 1.5), "teacher_flip": True, "warm_branch_s": True, "padding": "black",
        "seed_scales": (1.0, 0.5, 0.75), "crf_probabilities": "softmax",
    },
    "teach": {  # a minute on two cores: easy scenes, for the run that the walkthroughs look into
        "scenes_train": 200, "scenes_val": 24, "scenes_size": 96, "scenes_similarity": 0.0, "scenes_part_size": 2.2,
        "scenes_context": 0.2, "crop_size": 96, "scale_max": 1.4, "eval_size": 160, "iterations": 120,
        "learning_rate": 1.2e-4, "c2s_loss": "ce", "warmup_iterations": 10, "c2s_start": 25, "s2c_start": 60,
        "propagation_start": 60, "eval_every": 30, "eval_images": 12, "log_every": 5,
    },
}  # fmt: skip
COCO = {"data_root": "data/COCO2014", "train_list": "train", "eval_images": 1000}
PRESETS["coco"] = {**PRESETS["voc"], **COCO}  # the reference's own settings for COCO are unknown to us
