"""What is looked at before a run starts, and how it is refused."""

import dataclasses
import re
from importlib.util import find_spec

import pytest

from bidir.config import ConfigError, DataError, RunConfig
from bidir.data.open import open_split
from bidir.run.preflight import check_config, check_files, check_machine, check_processes
from bidir.run.training import fit
from bidir.study.cost import forecast


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"propagation": "afa", "lambda_aff": 0.1}, "propagation = 'afa' needs attention"),
        ({"lambda_aff": 0.1}, "lambda_aff = 0.1 needs attention"),
        (
            {"encoder": "mit_b0", "crop_size": 48, "teacher_scales": (1.0, 0.5)},
            "24 px at the smallest of teacher_scales",
        ),
    ],
)
def test_the_encoder_must_have_what_is_asked_of_it(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_config(RunConfig(**changes))


def test_a_run_is_refused_before_its_data_is_opened(quick):
    with pytest.raises(ConfigError, match="needs attention"):
        fit(quick.replace(lambda_aff=0.1, data_root="/nowhere", dataset="voc"), progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_list": "train"}, "a.jpg (3 in all) is to be trained on and scored on"),
        ({"crop_size": 101}, "crop_size = 101 is larger than every image, even at scale_max (100 "),
    ],
)
def test_bad_datasets_are_named(voc, changes, message):
    config = voc.replace(**changes)
    train, val = open_split(config, "train"), open_split(config, "val")
    with pytest.raises(DataError, match=re.escape(message)):
        check_files(train, val, config, progress=False)


def test_classes_of_both_parts_must_agree(quick):
    train = open_split(quick, "train")
    with pytest.raises(DataError, match="differ; set classes"):
        check_files(train, dataclasses.replace(train, class_names=train.class_names[::-1]), quick, progress=False)


@pytest.mark.skipif(find_spec("tensorboard") is not None, reason="it is installed")
def test_a_tracker_asked_for_but_not_installed(quick, tmp_path):
    config = quick.replace(trackers=("tensorboard",), runs_dir=str(tmp_path / "runs"))
    with pytest.raises(ConfigError, match="trackers: 'tensorboard' is none of accelerate's, or its package is not in"):
        fit(config, progress=False)
    assert not list((tmp_path / "runs").glob("*/checkpoint.pt"))
    with pytest.raises(ConfigError, match="trackers: 'abacus'"):
        check_machine(quick.replace(trackers=["abacus"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processes": 3}, "batch_size = 4 is not divisible by 3 processes, which share it; set 6"),
        ({"processes": 2, "encoder_norm": "trained"}, "batch norm knows its own process alone"),
    ],
)
def test_processes_that_cannot_share_are_refused_before_they_start(quick, tmp_path, changes, message):
    for act in (fit, forecast):
        with pytest.raises(ConfigError, match=message):
            act(quick.replace(**changes, runs_dir=str(tmp_path)))


def test_no_more_processes_than_gpus(quick, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match="processes = 2, but there are 1 GPUs"):
        check_processes(quick.replace(processes=2, device="auto"), 2)
    check_processes(quick.replace(processes=2, device="cpu"), 2)


def test_torchrun_and_processes_exclude_each_other(quick, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="torchrun has started its own"):
        check_processes(quick.replace(processes=2), 2)
