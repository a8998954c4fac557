"""Shared by the tests of a study."""

import pytest
import yaml


@pytest.fixture(scope="session")
def small():
    """What a grid fixes to be done in seconds."""
    return {"iterations": 40, "scenes_train": 16, "scenes_val": 4, "eval_every": 0, "device": "cpu"}


@pytest.fixture(scope="session")
def write_grid():
    def write(path, content):
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.fixture
def folders(tmp_path, workspace):
    return {"data_root": str(workspace / "data"), "runs_dir": str(tmp_path / "runs")}
