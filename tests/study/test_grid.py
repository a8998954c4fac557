"""Grid files: all cells, and one clear error for a wrong one."""

import os
import re

import pandas as pd
import pytest

from bidir.config import ConfigError
from bidir.data.open import dataset_manifest, open_split
from bidir.run.evaluation import COLUMNS, IMAGE_COLUMNS
from bidir.run.folder import Scores
from bidir.study.grid import check, plan, progress_table, read_grid


def test_cells_are_all_combinations_of_axes_and_cases(tmp_path, folders, write_grid, small):
    grids = {
        "product": {"axes": {"supervision": ["c2s", "both"], "propagation": ["par", "bsp"]}, "seeds": [3, 4]},
        "cases": {"cases": [{"lambda_c2s": 0.1}, {"sigma_c": 0.3}], "fixed": {"iterations": 30}},
    }
    content = {"preset": "quick", "fixed": small, "seeds": [7], "grids": grids}
    jobs = read_grid(write_grid(tmp_path / "grid.yaml", content), **folders)
    cells = [(j.config.supervision, j.config.propagation, j.config.seed) for j in jobs if j.grid == "product"]
    assert sorted(cells) == sorted((s, p, n) for s in ("c2s", "both") for p in ("par", "bsp") for n in (3, 4))
    cases = [(j.config.lambda_c2s, j.config.sigma_c, j.config.seed, j.config.iterations) for j in jobs[len(cells) :]]
    assert cases == [(0.1, 0.5, 7, 30), (0.7, 0.3, 7, 30)]
    table = plan(jobs)
    assert table["state"].unique().tolist() == ["waiting"]
    assert table["case"][0] == "supervision=c2s, propagation=par"
    assert len(set(table["run_id"])) == len(jobs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "needs grids"),
        ({"grid": {}}, "unknown key 'grid'"),
        ({"grids": {"a": {"axis": {}}}}, "grid 'a': unknown key 'axis'"),
        ({"grids": {"a": {"axes": {"seed": 3}}}}, "needs to be a list"),
        ({"grids": {"a": {"seeds": []}}}, "needs to be a list that is not empty"),
        ({"grids": {"a": {"axes": {"supervison": ["c2s"]}}}}, "did you mean 'supervision'"),
        ({"grids": {"a": {"axes": {"sigma_c": ["1e-4"]}}}}, "without quotes"),
        ({"preset": "huge", "grids": {"a": {}}}, "preset = 'huge'"),
        ({"fixed": None, "grids": {"a": {}}}, "needs to be a dictionary"),
        ({"grids": ["a"]}, "needs grids"),
        ({"grids": {"a": {"cases": {"lambda_c2s": 0.1}}}}, "needs to be a list"),
        ({"grids": {"a": {"cases": []}}}, "needs to be a list that is not empty"),
        ({"grids": {"a": {"axes": {"seed": [0, 1]}}}}, "seed is set by the list seeds"),
    ],
)
def test_a_wrong_grid_is_one_clear_error(tmp_path, write_grid, content, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_grid(write_grid(tmp_path / "grid.yaml", content))


def test_a_run_cannot_stand_for_two_seeds_or_cells(tmp_path, folders, write_grid, small):
    """Twice the same run would pass for two independent ones and narrow every interval."""
    for grid in ({"seeds": [0, 0]}, {"cases": [{}, {"lambda_c2s": 0.7}]}):  # 0.7 is the default
        path = write_grid(tmp_path / "g.yaml", {"preset": "quick", "fixed": small, "grids": {"a": grid}})
        with pytest.raises(ConfigError, match="it would count twice"):
            read_grid(path, **folders)
    path = write_grid(tmp_path / "g.yaml", {"fixed": small, "grids": {"a": {"axes": {"supervision": ["c2s"]}}}})
    with pytest.raises(ConfigError, match="supervision varies there"):
        read_grid(path, **folders, supervision="none")
    path.write_text("grids: {a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        read_grid(path)


def test_a_grid_is_checked_before_its_runs(tmp_path, folders, write_grid, small):
    def jobs_of(case):
        content = {"preset": "quick", "fixed": small, "grids": {"a": {"cases": [case]}}}
        return read_grid(write_grid(tmp_path / "g.yaml", content), **folders)

    with pytest.raises(ValueError, match=r"none\.pth"):
        check(jobs_of({"encoder": "mit_b0", "encoder_weights": str(tmp_path / "none.pth")}))
    with pytest.raises(ConfigError, match=r"grid 'a', .*'lambda_aff': 0.1.*: lambda_aff = 0.1 needs attention"):
        jobs_of({"lambda_aff": 0.1})
    tracked = jobs_of({"trackers": ["abacus"]})
    with pytest.raises(ConfigError, match="trackers: 'abacus'"):
        check(tracked)
    check(tracked, here=False)  # a cluster's workers may have it


def test_a_batch_is_watched_by_a_row_per_run(tmp_path, folders, write_grid, small):
    """30 of 40 iterations took 90 s up to the last checkpoint and 60 s since: 5 s each, ten of them left."""
    cases = [{"supervision": name} for name in ("none", "c2s", "s2c", "both")]
    content = {"preset": "quick", "fixed": small, "grids": {"a": {"cases": cases}, "again": {"cases": cases[:1]}}}
    jobs = read_grid(write_grid(tmp_path / "grid.yaml", content), **folders)
    done, running, failed, _ = (job.folder for job in jobs[:4])
    running.update({"seconds": 90})
    running.log({"step": 30, "kind": "train", "loss": 0.25})
    manifest = dataset_manifest(*(open_split(jobs[0].config, part) for part in ("train", "val")))
    done.start(jobs[0].config, manifest, ("background", "lion"), {"hardware": "CPU", "threads": 1}, 0, [])
    done.log({"step": 40, "kind": "train", "loss": 0.25})
    nothing = Scores(pd.DataFrame(columns=COLUMNS), pd.DataFrame(columns=IMAGE_COLUMNS))
    done.finish(nothing, {"seconds": 61, "results": {"raw/branch_s": 0.5432}})
    done.checkpoint.touch()
    os.utime(running.provenance, (1000, 1000))
    os.utime(running.metrics, (1060, 1060))
    failed.path.mkdir()
    failed.failed.write_text("no memory\n")
    with running.lock():
        table = progress_table(jobs)
        row = table.loc["a, supervision=c2s, seed 0"].tolist()
        assert row == ["running", "30 of 40", "00:50 left", "loss 0.250", running.run_id]
        running.log({"step": 30, "kind": "val", "raw/branch_s": 0.4})
        assert progress_table(jobs)["last"].iloc[0] == "Branch-S 40.0 %"
    assert table["state"].tolist() == ["running", "failed", "waiting", "done"]  # a run of two grids once
    assert table["last"].iloc[1] == "no memory"
    assert table.iloc[3].tolist() == ["done", "40 of 40", "took 01:01", "Branch-S 54.3 %", done.run_id]
