"""The loop: what is on when, what a step costs, resuming after kill -9, and how a run can fail."""

import dataclasses
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bidir.benchmark import forecast
from bidir.checks import check_data
from bidir.config import ConfigError
from bidir.data import DataError, dataset_manifest, open_split
from bidir.data.loader import Batch, StepSampler, TrainingCrops, make_loader
from bidir.files import write_bytes
from bidir.model.network import DualBranchNetwork
from bidir.model.weights import WeightsError
from bidir.runs import RunFolder, load_checkpoint, load_network, read_rows, save_checkpoint
from bidir.schedule import active, learning_rate
from bidir.supervision import loss_terms, make_pseudo_labels, total_loss
from bidir.training import fit

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


def manifest(config):
    return dataset_manifest(open_split(config, "train"), open_split(config, "val"))


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
def finished(quick, workspace):
    """The quick run, full method, in a process of its own."""
    config = quick.replace(runs_dir=str(workspace / "whole"))
    finish(launch(config))
    return config, RunFolder(config, manifest(config))


def test_a_finished_run_holds_what_it_should(finished):
    config, folder = finished
    facts = json.loads((folder.path / "run.json").read_text())
    assert folder.done.is_file()
    assert facts["config"]["seed"] == config.seed
    assert facts["run_id"] == folder.path.name
    assert {"git_commit", "git_dirty", "versions", "hardware", "seconds", "peak_memory_mib", "results"} <= set(facts)
    rows = read_rows(folder.metrics)
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


def test_a_finished_run_is_not_repeated(finished):
    config, folder = finished
    before = {path: path.stat().st_mtime_ns for path in folder.path.iterdir()}
    assert fit(config, progress=False) == folder.path
    assert before == {path: path.stat().st_mtime_ns for path in folder.path.iterdir()}


def test_resume_after_kill_9_is_bit_exact(finished, quick, workspace):
    """Weights, optimiser, random state and logged rows equal those of the uninterrupted run."""
    config = quick.replace(runs_dir=str(workspace / "killed"))
    folder = RunFolder(config, manifest(config))
    child = launch(config)
    while len(read_rows(folder.metrics)) < 25:  # past the checkpoint of iteration 20, into the next ten
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


def test_a_run_killed_before_its_first_checkpoint_logs_each_row_once(quick, tmp_path):
    config = quick.replace(runs_dir=str(tmp_path), supervision="none", iterations=3, eval_every=0)
    folder = RunFolder(config, manifest(config))
    folder.path.mkdir(parents=True)
    folder.metrics.write_text('{"step": 1, "kind": "train"}\n{"step": 2, "ki')
    fit(config, progress=False)
    assert [row["step"] for row in read_rows(folder.metrics)] == [1, 2, 3]


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


def test_classes_of_both_parts_must_agree(quick):
    train = open_split(quick, "train")
    with pytest.raises(DataError, match="differ; set classes"):
        check_data(train, dataclasses.replace(train, class_names=train.class_names[::-1]), quick, progress=False)


def test_a_cut_row_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_rows(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    ("changes", "step", "expected"),
    [
        ({}, 99, (False, False, False, False, "par")),
        ({}, 100, (True, False, False, False, "par")),
        ({}, 150, (True, True, False, False, "bsp")),
        ({"supervision": "none"}, 400, (False, False, False, False, "bsp")),
        ({"supervision": "c2s", "propagation": "par"}, 400, (True, False, False, False, "par")),
        ({"supervision": "s2c"}, 400, (False, True, False, False, "bsp")),
        ({"supervision": "full"}, 0, (False, False, False, True, "par")),
        ({"lambda_s2c": 0.0}, 400, (True, False, False, False, "bsp")),
        ({"encoder": "mit_b0", "lambda_aff": 0.1, "propagation": "afa"}, 120, (True, False, True, False, "par")),
    ],
)
def test_what_is_on_when(changes, step, expected):
    from bidir.config import RunConfig

    assert tuple(active(RunConfig(**changes), step)) == expected


def test_learning_rate_by_hand():
    from bidir.config import RunConfig

    config = RunConfig(learning_rate=1e-3, warmup_lr=1e-5, warmup_iterations=10, iterations=100)
    assert learning_rate(config, 0) == pytest.approx(1e-5)
    assert learning_rate(config, 5) == pytest.approx(1e-5 + 0.5 * (1e-3 - 1e-5))
    assert learning_rate(config, 10) == pytest.approx(1e-3 * 0.9)
    assert learning_rate(config, 99) == pytest.approx(1e-5)


def first_batch(config):
    split = open_split(config, "train")
    crops = TrainingCrops(split, config, masks=config.supervision == "full")
    return next(iter(make_loader(crops, StepSampler(len(split), config), 0)))


@pytest.mark.parametrize(
    ("changes", "passes", "decoded"),
    [
        ({"supervision": "none"}, 0, 0),
        ({"supervision": "full"}, 0, 0),
        ({"supervision": "s2c"}, 1, 1),  # Y_s needs one plain pass
        ({"supervision": "c2s", "propagation": "par"}, 3, 0),  # seeds need the CAM alone
        ({"supervision": "c2s", "propagation": "bsp"}, 3, 3),
        ({"supervision": "both", "propagation": "bsp"}, 3, 3),  # Y_s comes with the seeds
        ({"supervision": "both", "propagation": "par"}, 3, 1),  # and needs no other scale
    ],
)
def test_only_what_a_step_uses_is_computed(quick, changes, passes, decoded):
    config = quick.replace(**changes)
    network, count = DualBranchNetwork(config, 6), Counter()
    network.register_forward_hook(lambda *_: count.update(["passes"]))
    network.segmentation.register_forward_hook(lambda *_: count.update(["decoded"]))
    targets = make_pseudo_labels(network, first_batch(config), config, active(config, 39))
    assert (count["passes"], count["decoded"]) == (passes, decoded)
    assert (targets.y_c is None) == (changes["supervision"] in ("none", "s2c"))
    assert (targets.y_s is None) == (changes["supervision"] not in ("s2c", "both"))


def test_affinity_loss_and_afa_with_a_transformer(quick):
    config = quick.replace(encoder="mit_b0", encoder_weights="random", propagation="afa", lambda_aff=0.1)
    torch.manual_seed(0)
    network, batch, on = DualBranchNetwork(config, 6), first_batch(config), active(config, 39)
    targets = make_pseudo_labels(network, batch, config, on)
    terms = loss_terms(network(batch.image, affinity=on.aff), batch, targets, config)
    assert set(terms) == {"cls", "c2s", "s2c", "aff"}
    weights = {"cls": 1, "c2s": config.lambda_c2s, "s2c": config.lambda_s2c, "aff": config.lambda_aff}
    assert total_loss(terms, config).item() == pytest.approx(sum(weights[k] * v.item() for k, v in terms.items()))
    total_loss(terms, config).backward()
    assert network.affinity.mix.weight.grad.abs().sum() > 0


def test_a_batch_without_a_confident_pixel_trains_on(quick):
    config = quick.replace(sigma_c=99.0, sigma_s=99.0)
    network, batch, on = DualBranchNetwork(config, 6), first_batch(config), active(config, 39)
    targets = make_pseudo_labels(network, batch, config, on)
    terms = loss_terms(network(batch.image), batch, targets, config)
    assert terms["c2s"].item() == terms["s2c"].item() == 0
    total_loss(terms, config).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_a_nan_names_its_term(quick):
    terms = {"cls": torch.tensor(0.3), "c2s": torch.tensor(float("nan"))}
    with pytest.raises(FloatingPointError, match="c2s = nan"):
        total_loss(terms, quick)


def test_a_nan_stops_the_run(quick, tmp_path):
    config = quick.replace(runs_dir=str(tmp_path), learning_rate=1e30, grad_clip=0, warmup_iterations=0)
    with pytest.raises(FloatingPointError, match="is not finite"):
        fit(config, progress=False)
    assert not list(tmp_path.glob("*/DONE"))


def test_no_gpu_when_one_is_asked_for(quick):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="device = 'cuda'"):
        fit(quick.replace(device="cuda"), progress=False)


@pytest.mark.skipif(find_spec("tensorboard") is not None, reason="it is installed")
def test_tensorboard_asked_for_but_not_installed(quick):
    with pytest.raises(ConfigError, match=r"pip install 'bidir\[tensorboard\]'"):
        fit(quick.replace(tensorboard=True), progress=False)


def test_bf16_trains_in_a_process_of_its_own(quick, tmp_path):
    config = quick.replace(mixed_precision="bf16", runs_dir=str(tmp_path), iterations=24, eval_every=0)
    finish(launch(config))
    rows = read_rows(RunFolder(config, manifest(config)).metrics)
    assert rows[-1]["step"] == 24
    assert {"cls", "c2s", "s2c"} <= set(rows[-1])
    assert rows[-1]["cls"] < rows[0]["cls"]


def test_the_oracle_alone_sees_masks(quick):
    assert first_batch(quick).mask is None
    batch = first_batch(quick.replace(supervision="full"))
    assert batch.mask.shape == batch.image[:, 0].shape
    assert isinstance(batch, Batch)


def test_a_full_disk_leaves_the_old_checkpoint_intact(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})
    old = path.read_bytes()

    def no_space(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match=r"No space left on device; the previous file is intact.*checkpoint\.pt"):
        save_checkpoint(path, {"step": 2, "weight": torch.zeros(1000)})
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_dry_run_says_what_it_would_take(quick):
    """Steps, epochs and shares by hand; the time is that of the measured step."""
    told = forecast(quick.replace(processes=2, images_per_pass=1, runs_dir="nowhere"))
    assert "steps    40, 3.3 epochs; c2s from 10, s2c from 20, bsp from 20" in told  # 40 steps of 4 of 48 images
    assert "batch    4 crops of 96 px, 2 for each of 2 processes, 1 at once" in told
    assert "data     48 training and 16 validation images, 6 classes" in told
    hours, seconds = (float(re.search(pattern, told)[1]) for pattern in (r"time +([\d.]+) h", r"([\d.]+) s per step"))
    assert hours == pytest.approx(40 * seconds / 3600, abs=0.06)
    assert seconds > 0.01
    assert not Path("nowhere").exists()


@pytest.mark.skipif(not Path("/dev/full").exists() or os.geteuid() != 0, reason="needs root to mount a tiny disk")
def test_a_disk_that_is_really_full(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        write_bytes(tmp_path / "file", b"old")
        with pytest.raises(OSError, match="previous file is intact"):
            write_bytes(tmp_path / "file", bytes(200_000))
        assert (tmp_path / "file").read_bytes() == b"old"
        assert len(list(tmp_path.iterdir())) == 1
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_wrong_checkpoints_are_refused(finished, tmp_path):
    _, folder = finished
    content = load_checkpoint(folder.checkpoint)
    network, _, classes = load_network(folder.checkpoint)
    assert classes[0] == "hare"
    assert not network.training
    broken = {**content, "classes": content["classes"][:4]}
    cases = {
        "missing": (None, "no such checkpoint"),
        "weights": (content["model"], "not a checkpoint of this project"),
        "classes": (broken, r"classification.classifier.weight: \(6, 320, 1, 1\) in the file, \(4, 320, 1, 1\)"),
        "version": ({**content, "config": '{"lambda_9": 1}'}, "another version"),
    }
    for name, (value, message) in cases.items():
        path = tmp_path / f"{name}.pt"
        if value is not None:
            torch.save(value, path)
        with pytest.raises(WeightsError, match=message):
            load_network(path)
    (tmp_path / "cut.pt").write_bytes(folder.checkpoint.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="refused"):
        load_network(tmp_path / "cut.pt")


def test_a_checkpoint_with_a_pickle_payload_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="refused"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
