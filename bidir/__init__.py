"""bidir: bidirectional supervision for end-to-end weakly supervised semantic segmentation."""

from bidir.config import PRESETS, ConfigError, RunConfig
from bidir.data import DataError, open_split
from bidir.exchange import export_model
from bidir.prediction import export_pseudo_masks, predict
from bidir.runs import load_network
from bidir.training import fit

__all__ = [
    "PRESETS",
    "ConfigError",
    "DataError",
    "RunConfig",
    "export_model",
    "export_pseudo_masks",
    "fit",
    "load_network",
    "open_split",
    "predict",
]
