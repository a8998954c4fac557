"""The loop: what a run leaves, resuming after kill -9, and how a run can fail."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from bidir.config import RunConfig
from bidir.data.open import open_split
from bidir.method.tensors import Batch
from bidir.run.checkpoint import load_checkpoint
from bidir.run.machine import make_accelerator
from bidir.run.step import learning_rate
from bidir.run.training import fit, training_batches

CHILD = """
import json, sys, torch
from bidir import RunConfig, fit

fit(RunConfig.from_parameters(json.loads(sys.argv[1])), progress=False)
"""


def launch(config):
    return subprocess.Popen([sys.executable, "-c", CHILD, json.dumps(vars(config))], stderr=subprocess.PIPE, text=True)


def finish(child):
    _, said = child.communicate(timeout=300)
    assert child.returncode == 0, said


def assert_equal(a, b, where="checkpoint"):
    """Bit for bit, through nested dictionaries and lists."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, where


@pytest.fixture(scope="module")
def finished(quick, workspace, folder_of):
    """The quick run, full method, in a process of its own."""
    config = quick.replace(runs_dir=str(workspace / "whole"), keep_every=15)
    finish(launch(config))
    return config, folder_of(config)


def test_a_finished_run_holds_what_it_should(finished):
    config, folder = finished
    facts = json.loads((folder.path / "run.json").read_text())
    assert folder.done.is_file()
    assert facts["config"]["seed"] == config.seed
    assert facts["run_id"] == folder.path.name
    assert {"git_commit", "git_dirty", "versions", "hardware", "seconds", "peak_memory_mib", "results"} <= set(facts)
    rows = folder.rows()
    train = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in train] == list(range(1, 41))
    assert ["c2s" in row for row in train] == [step > config.c2s_start for step in range(1, 41)]
    assert ["s2c" in row for row in train] == [step > config.s2c_start for step in range(1, 41)]
    assert train[-1]["cls"] < train[0]["cls"]
    assert not list(folder.path.glob("*.part"))
    table = pd.read_csv(folder.path / "per_class.csv")
    assert set(table["map"]) == {"cam", "seed", "y_c", "y_s", "branch_c", "branch_s", "agreement"}
    shares = [row["c2s_share"] for row in train if "c2s" in row]
    assert all(0 < share <= 1 for share in shares)


def test_checkpoints_stay_where_that_was_asked_for(finished):
    """Every 15th of 40, between those saved every ten, each as it was then; the run's name is as without."""
    config, folder = finished
    assert sorted(path.name for path in folder.path.glob("checkpoint-*")) == ["checkpoint-15.pt", "checkpoint-30.pt"]
    assert [load_checkpoint(folder.path / f"checkpoint-{step}.pt")["step"] for step in (15, 30)] == [15, 30]
    assert load_checkpoint(folder.checkpoint)["step"] == 40
    assert config.replace(keep_every=0).run_id("") == config.run_id("")


def test_a_finished_run_is_not_repeated(finished):
    config, folder = finished
    before = {path: path.stat().st_mtime_ns for path in folder.path.iterdir()}
    assert fit(config, progress=False) == folder.path
    assert before == {path: path.stat().st_mtime_ns for path in folder.path.iterdir()}


def test_resume_after_kill_9_is_bit_exact(finished, quick, workspace, folder_of):
    """Weights, optimiser, random state and logged rows equal those of the uninterrupted run."""
    config = quick.replace(runs_dir=str(workspace / "killed"))
    folder = folder_of(config)
    child = launch(config)
    while len(folder.rows()) < 25:  # past the checkpoint of iteration 20, into the next ten
        assert child.poll() is None, child.communicate()
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert load_checkpoint(folder.checkpoint)["step"] == 20
    assert not folder.done.exists()
    finish(launch(config))
    _, whole = finished
    assert json.loads((folder.path / "run.json").read_text())["resumed_at"] == 20
    one, other = load_checkpoint(whole.checkpoint), load_checkpoint(folder.checkpoint)
    one.pop("config"), other.pop("config")  # they differ in runs_dir
    assert_equal(one, other)
    assert whole.metrics.read_text() == folder.metrics.read_text()
    assert (whole.path / "per_class.csv").read_text() == (folder.path / "per_class.csv").read_text()


def test_a_dataset_without_masks_trains_and_says_that_nothing_was_scored(quick, tmp_path):
    source = open_split(quick, "train")
    images = [str(path) for path in source.images[:6]]
    labels = [" ".join(np.array(source.class_names)[row]) for row in source.labels[:6]]
    table = pd.DataFrame({"file": images, "labels": labels, "split": ["train"] * 4 + ["val"] * 2})
    table.to_csv(tmp_path / "labels.csv", index=False)
    own = {"dataset": "folder", "data_root": str(tmp_path), "classes": source.class_names, "iterations": 3}
    path = fit(quick.replace(**own, runs_dir=str(tmp_path / "runs")), progress=False)
    facts = json.loads((path / "run.json").read_text())
    assert facts["evaluated_on"] == "nothing: no masks"
    assert pd.read_csv(path / "per_class.csv").empty


def test_learning_rate_by_hand():
    config = RunConfig(learning_rate=1e-3, warmup_lr=1e-5, warmup_iterations=10, iterations=100)
    assert learning_rate(config, 0) == pytest.approx(1e-5)
    assert learning_rate(config, 5) == pytest.approx(1e-5 + 0.5 * (1e-3 - 1e-5))
    assert learning_rate(config, 10) == pytest.approx(1e-3 * 0.9)
    assert learning_rate(config, 99) == pytest.approx(1e-5)


def test_a_nan_stops_the_run(quick, tmp_path):
    config = quick.replace(runs_dir=str(tmp_path), grad_clip=0.0, warmup_iterations=0)
    object.__setattr__(config, "learning_rate", 1e30)  # which no configuration may have
    with pytest.raises(FloatingPointError, match=r"cls, .*not finite; lower learning_rate"):
        fit(config, progress=False)
    assert not list(tmp_path.glob("*/DONE"))


@pytest.mark.slow
def test_bf16_trains_in_a_process_of_its_own(quick, tmp_path, folder_of):
    few = {"iterations": 24, "c2s_start": 20, "crop_size": 64, "eval_every": 0}  # slow where a CPU has no bf16
    config = quick.replace(**few, mixed_precision="bf16", runs_dir=str(tmp_path))
    finish(launch(config))
    rows = folder_of(config).rows()
    assert rows[-1]["step"] == 24
    assert {"cls", "c2s", "s2c"} <= set(rows[-1])
    assert rows[-1]["cls"] < rows[0]["cls"]


def test_the_oracle_alone_sees_masks(quick):
    def first(config):
        return next(training_batches(config, open_split(config, "train"), make_accelerator(config)))

    assert first(quick).mask is None
    batch = first(quick.replace(supervision="full"))
    assert batch.mask.shape == batch.image[:, 0].shape
    assert isinstance(batch, Batch)
