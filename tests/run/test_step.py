"""What a step keeps beside the weights: their average, and what each term says; what the end scores of it."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from bidir.apply.predict import score
from bidir.config import ConfigError, RunConfig
from bidir.data.open import open_split
from bidir.run.checkpoint import load_checkpoint, load_network
from bidir.run.evaluation import evaluate
from bidir.run.folder import RunFolder
from bidir.run.step import build, term_gradients, train_step
from bidir.run.training import fit
from bidir.study.registry import read_registry


def test_the_average_is_the_recursion(quick, first_batch):
    """a <- d a + (1 - d) w after each step, beginning with the weights after the first."""
    config = quick.replace(ema_decay=0.75)
    accelerator = Accelerator(cpu=True)
    learner = build(config, 6, accelerator)
    network, _, _, average, _ = learner
    expected, batch = None, first_batch(config)
    for step in range(30, 33):
        train_step(learner, batch, config, step)
        now = {name: value.double().clone() for name, value in network.state_dict().items()}
        expected = now if expected is None else {k: 0.75 * expected[k] + 0.25 * now[k] for k in now}
    assert not average.module.training
    for name, value in average.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def averaged(quick, workspace):
    """A run that keeps an average, looks at gradients and scores five training images; beside one that does not."""
    config = quick.replace(runs_dir=str(workspace / "averaged"), iterations=24, eval_every=0)
    watched = config.replace(ema_decay=0.9, gradients_every=8, score_train=5, log_every=5)
    return watched, *(RunFolder(fit(one, progress=False)) for one in (watched, config))


def test_watching_changes_no_weight(averaged):
    config, watched, plain = averaged
    one, other = load_checkpoint(watched.checkpoint), load_checkpoint(plain.checkpoint)
    assert all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())
    network, stored, _ = load_network(watched.checkpoint)
    assert stored == config
    kept = network.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in one["average"].items())
    assert any(not torch.equal(value, one["model"][name]) for name, value in one["average"].items())


def test_rows_hold_what_each_term_says(averaged, first_batch):
    """At every eighth iteration; the first such row, before any target, is the classification loss alone."""
    config, watched, _ = averaged
    rows = {row["step"]: row for row in watched.rows()}
    assert sorted(rows) == [5, 8, 10, 15, 16, 20, 24]
    assert [step for step, row in rows.items() if "gradient/cls" in row] == [8, 16, 24]
    assert {name for name in rows[24] if name.startswith(("gradient", "cosine"))} == {
        "gradient/cls", "gradient/c2s", "gradient/s2c", "cosine/cls/c2s", "cosine/cls/s2c", "cosine/c2s/s2c"
    }  # fmt: skip
    first = config.replace(gradients_every=1)
    accelerator, batch = Accelerator(cpu=True), first_batch(config)
    learner = build(first, 6, accelerator)
    torch.manual_seed(5)
    norms, cosines = term_gradients(learner.network, batch, first, 39)
    torch.manual_seed(5)
    row = train_step(learner, batch, first, 39)
    for term in ("cls", "c2s", "s2c"):
        assert float(row[f"gradient/{term}"]) == pytest.approx(norms.loc[term, "encoder"], rel=1e-3)
    assert float(row["cosine/c2s/s2c"]) == pytest.approx(cosines.loc["c2s", "s2c"], abs=1e-3)


def test_training_images_are_scored_by_the_average_and_kept_apart(averaged):
    config, watched, _ = averaged
    train = open_split(config, "train")
    some = train.select(train.spread(5))
    assert len({*some.names}) == 5
    assert some.names[0] == train.names[0]
    assert some.names[-1] == train.names[-1]
    network, _, _ = load_network(watched.checkpoint)
    wanted = {"raw": {"cam", "branch_s"}, "ms": {"cam", "seed"}}
    expected = evaluate(network, some.check(masks=True, progress=False), config, wanted, progress=False)
    written = watched.scores("train").per_class.drop(columns="part").reset_index(drop=True)
    pd.testing.assert_frame_equal(written, expected.per_class, check_exact=False, atol=1e-5, check_dtype=False)
    assert set(watched.scores(None).per_class["part"]) == {"val", "train"}
    assert set(watched.scores().per_class["part"]) == {"val"}
    assert watched.facts()["results"]["raw/branch_s"] == pytest.approx(
        watched.scores().per_class.query("protocol == 'raw' and map == 'branch_s' and `class` == 'mean'")["iou"].item(),
        abs=1e-5,
    )


def test_the_last_weights_are_scored_on_demand(averaged):
    """They are those of the same run that keeps no average: its scores come back."""
    _, watched, plain = averaged
    last = score(watched.checkpoint, ["raw"], ema_decay=0).per_class
    expected = plain.scores().per_class.query("protocol == 'raw'").drop(columns="part").reset_index(drop=True)
    pd.testing.assert_frame_equal(expected, last, check_exact=False, atol=1e-5, check_dtype=False)
    assert not np.allclose(score(watched.checkpoint, ["raw"]).per_class["iou"], last["iou"], equal_nan=True)


def test_new_settings_leave_the_ids_of_older_runs_alone():
    """Each committed run of this revision has the id that its stored settings and manifest give today."""
    runs = read_registry("results/photos")["runs"]
    for row in runs.itertuples():
        assert RunConfig.from_stored(json.loads(row.config)).run_id(row.dataset_manifest) == row.run_id
    config = RunConfig()
    assert config.replace(ema_decay=0.5).run_id("") != config.run_id("")


def test_what_cannot_work_is_refused(quick):
    with pytest.raises(ConfigError, match=r"ema_teacher = True.*ema_decay = 0"):
        quick.replace(ema_teacher=True)
    with pytest.raises(ConfigError, match=r"s2c_loss = 'cosa' with c2s_balance = False.*set True"):
        quick.replace(s2c_loss="cosa")
