"""The dataset that a configuration names, as one ``Split`` for each part, whatever its source."""

import numpy as np

from bidir.config import ConfigError, DataError, RunConfig, resolve
from bidir.data.folders import read_folder, read_voc
from bidir.data.make.scenes import prepare_scenes
from bidir.data.split import Split


def dataset_manifest(train: Split, val: Split) -> str:
    """What a run's name says about its dataset: hex digests of both splits."""
    return train.manifest() + val.manifest()


def open_split(config: RunConfig, part: str) -> Split:
    """The images of ``part``: ``train`` or ``val``.
    With ``holdout`` above 0 a fixed random fraction of the training list becomes ``val`` and is
    left out of ``train``, so that settings can be tuned without touching the validation list."""
    if part not in ("train", "val"):
        raise ConfigError(f"part = {part!r}: choose train or val")
    name = config.train_list if part == "train" or config.holdout else config.val_list
    root = prepare_scenes(config, resolve(config.data_root)) if config.dataset == "scenes" else None
    split = read_folder(config, name) if config.dataset == "folder" else read_voc(config, name, root)
    if not config.holdout:
        return split
    held = round(config.holdout * len(split))
    if not 0 < held < len(split):
        raise DataError(f"holdout = {config.holdout} of {len(split)} images leaves one side empty")
    order = np.random.default_rng(0).permutation(len(split))
    return split.select(np.sort(order[:held] if part == "val" else order[held:]))
