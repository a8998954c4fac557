"""bidir: bidirectional supervision for end-to-end weakly supervised semantic segmentation."""

from importlib import import_module
from typing import Any

# what this package offers and where it is; loaded when first asked for, so that `bidir --help` is quick
_PLACES = {
    "config": "ConfigError DataError RunConfig WeightsError resolve",
    "presets": "PRESETS", "data.open": "open_split", "data.folders": "known_classes",
    "data.make.check": "describe_dataset", "data.make.voc": "prepare_voc", "data.make.coco": "prepare_coco",
    "run.training": "fit", "run.checkpoint": "load_network", "method.distributed": "rank",
    "apply.predict": "image_paths predict score",
    "apply.masks": "export_pseudo_masks export_voc_archive",
    "apply.export": "export_model",
    "apply.reference": "import_reference",
    "study.grid": "check check_settings plan progress_table read_cluster read_grid",
    "study.registry": "read_registry",
    "study.batch": "run_batch run_study write_tables",
    "study.notebooks": "make_figures notebooks_folder run_training write_report",
    "study.claims": "write_claims", "study.cost": "cost forecast",
}  # fmt: skip
_WHERE = {name: module for module, names in _PLACES.items() for name in names.split()}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'bidir' has no attribute {name!r}")
    return getattr(import_module(f"bidir.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
