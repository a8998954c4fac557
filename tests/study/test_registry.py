"""The registry against the run folders it is made from."""

import csv
import json
import shutil

import pandas as pd
import pytest

from bidir.config import ConfigError
from bidir.run.training import fit
from bidir.study.batch import write_tables
from bidir.study.grid import read_grid
from bidir.study.registry import SCHEMA, collect, grid_scores, read_registry


@pytest.fixture(scope="module")
def batch(workspace, write_grid, small, tmp_path_factory):
    """A few short runs: their grid file, where they are, their jobs and their registry."""
    folder = tmp_path_factory.mktemp("registry")
    grids = {
        "directions": {"axes": {"supervision": ["c2s", "both"]}, "seeds": [0, 1]},
        "interaction": {"axes": {"propagation": ["par", "bsp"]}},
    }
    fixed = {**small, "iterations": 4, "c2s_start": 1, "s2c_start": 2, "propagation_start": 2, "eval_every": 2}
    grid = write_grid(folder / "grid.yaml", {"preset": "quick", "fixed": fixed, "grids": grids})
    folders = {"data_root": str(workspace / "data"), "runs_dir": str(folder / "runs")}
    jobs = read_grid(grid, **folders)
    for job in jobs:
        fit(job.config, progress=False)
    write_tables(jobs, folder / "out")
    return grid, folders, jobs, folder / "out"


def test_the_registry_is_what_the_run_folders_say(batch):
    """Counted and read anew with the csv and json modules alone."""
    _, _, jobs, out = batch
    tables = read_registry(out)
    folders = {job.folder.run_id: job.folder.path for job in jobs}
    assert {name: list(table.columns) for name, table in tables.items()} == {n: list(c) for n, c in SCHEMA.items()}
    assert sorted(tables["runs"]["run_id"]) == sorted(folders)
    assert len(tables["grids"]) == len(jobs)
    for name in ("per_class", "per_image"):
        rows = 0
        for run_id, folder in folders.items():
            with open(folder / f"{name}.csv") as file:
                written = list(csv.DictReader(file))
            rows += len(written)
            mine = tables[name][tables[name]["run_id"] == run_id].reset_index(drop=True)
            column = {"per_class": "iou", "per_image": "hit"}[name]
            for place in (0, len(written) // 2, len(written) - 1):
                assert mine.loc[place, column] == pytest.approx(float(written[place][column] or "nan"), nan_ok=True)
        assert len(tables[name]) == rows
    for run_id, folder in folders.items():
        logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        values = sum(len(row) - 2 for row in logged)  # all but step and kind
        assert (tables["per_step"]["run_id"] == run_id).sum() == values
    from_csv = pd.read_csv(out / "per_class.csv")
    pd.testing.assert_frame_equal(from_csv, tables["per_class"], check_dtype=False, rtol=1e-5)


def test_the_registry_is_rebuilt_from_folders_that_are_not_finished_too(batch, tmp_path):
    path = tmp_path / "half"
    path.mkdir()
    facts = json.loads((batch[2][0].folder.path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**facts, "run_id": "half"}))
    (path / "FAILED").write_text("the reason\n")
    tables = collect([path, tmp_path / "nothing"])
    assert tables["runs"][["run_id", "state", "reason"]].to_numpy().tolist() == [["half", "failed", "the reason"]]
    assert tables["per_class"].empty
    with pytest.raises(LookupError, match="grid 'losses' holds no finished run"):
        grid_scores(read_registry(batch[3]), "losses")
    with pytest.raises(FileNotFoundError, match="bidir sweep GRID --out"):
        read_registry(tmp_path)


def test_finished_runs_stay_in_a_registry_when_their_folders_are_gone(batch, tmp_path):
    grid, folders, jobs, out = batch
    copy, half = tmp_path / "registry", tmp_path / "runs"
    shutil.copytree(out, copy)
    half.mkdir()
    gone = {job.folder.run_id for job in jobs[1:]} - {jobs[0].folder.run_id}
    (half / jobs[0].folder.run_id).symlink_to(jobs[0].folder.path)
    write_tables(read_grid(grid, **{**folders, "runs_dir": str(half)}), copy)
    before, after = read_registry(out), read_registry(copy)
    assert len(gone) == len(before["runs"]) - 1
    for name, table in before.items():
        order = [column for column in table.columns if column in ("run_id", "grid", "seed", "step", "name")]
        one, other = (t.sort_values(order, kind="stable", ignore_index=True) for t in (table, after[name]))
        pd.testing.assert_frame_equal(one, other, check_dtype=False)
    (half / jobs[0].folder.run_id).unlink()
    others = read_grid(grid, **{**folders, "runs_dir": str(half)}, lambda_c2s=0.3)  # other settings are other runs
    with pytest.raises(ConfigError, match=rf"holds {len(before['runs'])} finished runs that this grid file does not n"):
        write_tables(others, copy)
    write_tables(others, tmp_path / "others")
    assert read_registry(tmp_path / "others")["runs"].empty
