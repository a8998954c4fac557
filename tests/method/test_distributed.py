"""Two processes over gloo give what one gives, resume after one is killed, and score shards exactly."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from torch.distributed.elastic.utils.distributed import get_free_port

from bidir.run.checkpoint import load_checkpoint
from bidir.run.training import fit

DOUBLE = """
import torch

torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double
"""
CHILD = """
import json, sys, torch
from bidir import RunConfig, fit, load_network, open_split
from bidir.run.evaluation import evaluate
from bidir.method.distributed import rank

torch.nn.Dropout2d.forward = lambda self, x: x  # the one thing that differs between processes on purpose
config = RunConfig.from_parameters(json.loads(sys.argv[1]))
run = fit(config, progress=False)
if len(sys.argv) > 2:
    network, config, _ = load_network(run / "checkpoint.pt")
    val = open_split(config, "val")
    scores = evaluate(network, val.check(False, False), config, progress=False)
    if rank() == 0:
        scores.per_class.to_csv(sys.argv[2] + ".class.csv", index=False)
        scores.per_image.to_csv(sys.argv[2] + ".image.csv", index=False)
"""


@pytest.fixture(scope="module")
def config(quick, workspace):
    """Learning slowly: at the usual rate rounding alone, as of one thread or two, turns labels by iteration 14. In
    single precision it does so on some CPUs even then, hence ``DOUBLE``."""
    changes = {"iterations": 14, "c2s_start": 2, "s2c_start": 4, "propagation_start": 6, "eval_every": 7,
               "checkpoint_every": 4, "warmup_iterations": 2, "sigma_s": 0.0,
               "learning_rate": 2e-5}  # fmt: skip
    return quick.replace(**changes, runs_dir=str(workspace / "one_process"))


def start(config, processes, *more):
    address = ["--master-addr", "127.0.0.1", "--master-port", str(get_free_port())]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), *address]
    module = [*(launcher if processes > 1 else []), str(more[0])]
    command = [sys.executable, *module, json.dumps(vars(config)), *map(str, more[1:])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(child):
    said = child.communicate(timeout=300)[1]
    assert child.returncode == 0, said[-3000:]


@pytest.fixture(scope="module")
def script(workspace):
    path = workspace / "child.py"
    path.write_text(DOUBLE + CHILD)
    return path


@pytest.fixture(scope="module")
def pair(config, script, workspace, folder_of):
    """The same run by one process and by two."""
    two = config.replace(runs_dir=str(workspace / "two_processes"))
    finish(start(config, 1, script, workspace / "scores1"))
    finish(start(two, 2, script))
    return folder_of(config), folder_of(two)


def test_two_processes_train_as_one(pair):
    one, two = pair
    assert one.run_id == two.run_id
    assert (one.facts()["processes"], two.facts()["processes"]) == (1, 2)
    rows = [pd.DataFrame(folder.rows()) for folder in pair]
    train = [table[table["kind"] == "train"].drop(columns="kind").dropna(axis=1, how="all") for table in rows]
    assert len(train[0]) == 14
    assert {"c2s", "s2c"} <= set(train[1].columns)
    assert (train[0]["s2c"].dropna() > 0).all()
    np.testing.assert_allclose(train[1].to_numpy(float), train[0].to_numpy(float), rtol=1e-6, atol=1e-8)
    models = [load_checkpoint(folder.checkpoint)["model"] for folder in pair]
    for name in ("segmentation.norm.running_mean", "segmentation.norm.running_var"):
        torch.testing.assert_close(models[1][name], models[0][name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_scores_do_not_depend_on_the_number_of_processes(pair, config, script, workspace):
    finish(start(config, 2, script, workspace / "scores2"))
    for kind in ("class", "image"):
        one, two = (pd.read_csv(f"{workspace}/scores{n}.{kind}.csv") for n in (1, 2))
        pd.testing.assert_frame_equal(one, two)


@pytest.mark.slow
def test_the_run_goes_on_after_a_process_was_killed(pair, config, script, workspace, folder_of):
    again = config.replace(runs_dir=str(workspace / "killed"))
    folder = folder_of(again)
    child = start(again, 2, script)
    until = time.monotonic() + 120
    while folder.last_step() < 6:
        assert time.monotonic() < until, child.poll()
        time.sleep(0.05)
    workers = psutil.Process(child.pid).children()
    workers[-1].send_signal(signal.SIGKILL)
    child.communicate(timeout=100)
    assert child.returncode != 0
    assert not folder.done.exists()
    finish(start(again, 2, script))
    assert folder.facts()["resumed_at"] in (4, 8)
    assert folder.rows() == pair[1].rows()


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_an_error(config, script, workspace):
    odd = config.replace(runs_dir=str(workspace / "odd"), batch_size=3)
    said = start(odd, 2, script).communicate(timeout=200)[1]
    assert "batch_size = 3 is not divisible by 2 processes" in said
    assert not (workspace / "odd").exists()


def test_passes_of_fewer_images_add_up_to_the_batch(quick, tmp_path, folder_of):
    """Without Branch-S there is no batch norm that learns, so the split changes rounding alone."""
    short = quick.replace(supervision="none", iterations=4, eval_every=0, runs_dir=str(tmp_path / "whole"))
    parts = short.replace(images_per_pass=3, runs_dir=str(tmp_path / "parts"))
    losses = []
    for each in (short, parts):
        fit(each, progress=False)
        losses.append([row["loss"] for row in folder_of(each).rows()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    shared = short.replace(images_per_pass=1, runs_dir=str(tmp_path / "shared"))
    (tmp_path / "child.py").write_text(CHILD)
    finish(start(shared, 2, tmp_path / "child.py"))
    assert [row["loss"] for row in folder_of(shared).rows()] == pytest.approx(losses[0], rel=1e-4)
    assert folder_of(short).run_id != folder_of(shared).run_id  # with Branch-S, means are over a pass


@pytest.mark.slow
def test_processes_from_a_notebook(config, workspace):
    """Forked from a process whose threads have been at work, as those of a notebook have after its first figure."""
    launched = config.replace(processes=2, iterations=8, runs_dir=str(workspace / "launched"))
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    child = [sys.executable, "-c", NOTEBOOK, json.dumps(vars(launched))]
    result = subprocess.run(child, capture_output=True, text=True, check=False, timeout=200, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    run = result.stdout.strip().splitlines()[-1]
    assert json.loads((Path(run) / "run.json").read_text())["processes"] == 2


NOTEBOOK = """
import json, sys, torch
from bidir import RunConfig, fit

torch.zeros(3, 400, 400, dtype=torch.uint8).float().exp()  # OpenMP's threads are there now
print(fit(RunConfig.from_parameters(json.loads(sys.argv[1])), progress=False))
"""


@pytest.mark.slow
def test_processes_share_pseudo_masks_and_leave_those_of_another_model(pair, quick, tmp_path):
    """By torchrun and the command itself: the masks of one process, and nothing in a folder that is refused."""
    one = str(pair[0].checkpoint)
    short = quick.replace(supervision="none", iterations=4, eval_every=0, runs_dir=str(tmp_path / "runs"))
    other = str(fit(short, progress=False) / "checkpoint.pt")
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "bidir.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def masks(checkpoint, out, launcher):
        command = [sys.executable, *launcher, "pseudo-masks", checkpoint, "val", str(out), "-p", "device=cpu"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, env=environment)

    said = masks(one, tmp_path / "one", ["-m", "bidir.cli"]), masks(one, tmp_path / "two", launch)
    assert [result.returncode for result in said] == [0, 0], said[1].stderr[-3000:]
    made = {path.name: path.read_bytes() for path in (tmp_path / "one").glob("*.png")}
    assert len(made) == 16
    assert {path.name: path.read_bytes() for path in (tmp_path / "two").glob("*.png")} == made
    next((tmp_path / "two").glob("*.png")).unlink()
    left = sorted((tmp_path / "two").glob("*.png"))
    refused = masks(other, tmp_path / "two", launch)
    assert refused.returncode != 0
    assert "masks of another model" in refused.stderr
    assert sorted((tmp_path / "two").glob("*.png")) == left
