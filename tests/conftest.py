"""Shared fixtures: small generated data, made once; shapes in annotations are checked while testing."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import warnings

import matplotlib
from jaxtyping import install_import_hook

matplotlib.use("Agg")  # here alone: the notebooks' kernels keep their own
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what libraries say while being imported
    typed = ["model", "seeds", "losses", "supervision", "metrics", "evaluation"]  # the rooms of tensors
    install_import_hook([f"bidir.{name}" for name in typed], "beartype.beartype")
    import bidir.cli
    import bidir.figures  # noqa: F401

import pytest

from bidir.config import RunConfig


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="session")
def quick(workspace):
    """The quick preset, writing below a temporary folder; random weights would do, ImageNet's are offline."""
    folders = {"data_root": str(workspace / "data"), "runs_dir": str(workspace / "runs"), "device": "cpu"}
    return RunConfig.from_parameters(folders, "quick")
