"""The registry against the run folders it is made from."""

import csv
import json
import os
import shutil

import pandas as pd
import pytest

from bidir.config import ConfigError
from bidir.run.folder import RunFolder
from bidir.run.training import fit
from bidir.study.batch import write_tables
from bidir.study.grid import plan, read_grid
from bidir.study.registry import SCHEMA, collect, grid_scores, read_registry, write_registry


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
    (path / "run.json").write_text(json.dumps({**facts, "run_id": "half", "revision": 0}))
    (path / "FAILED").write_text("the reason\n")
    tables = collect([path, tmp_path / "nothing"])
    assert tables["runs"][["run_id", "state", "reason"]].to_numpy().tolist() == [["half", "failed", "the reason"]]
    assert tables["per_class"].empty
    with pytest.raises(LookupError, match="grid 'two_by_two' holds no finished run"):
        grid_scores(read_registry(batch[3]), "two_by_two")
    with pytest.raises(ConfigError, match="bidir sweep GRID --out"):
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


def test_a_run_that_has_other_scores_than_the_registry_is_named(batch, tmp_path, capsys):
    """As one has that was trained again on another machine; once its scores are there, nothing is said any more."""
    _, _, jobs, out = batch
    tables, run_id = read_registry(out), jobs[0].folder.run_id
    wanted = tables["per_class"].copy()
    tables["per_class"].loc[wanted["run_id"] == run_id, "iou"] += 0.01
    write_registry(tables, tmp_path / "registry")
    for said in (f"1 finished runs have other scores than it held, {run_id} for one", ""):
        write_tables(jobs, tmp_path / "registry")
        err = capsys.readouterr().err
        assert said in err
        assert bool(err) == bool(said)
        pd.testing.assert_frame_equal(read_registry(tmp_path / "registry")["per_class"], wanted)


def replace(path, content):
    """The file anew: its fellow in the whole run is the same one on disk."""
    path.unlink()
    path.write_bytes(content)


def edited(name, change):
    return lambda run: replace(run / name, change((run / name).read_bytes()))


def lost(name):
    return lambda run: (run / name).unlink()


def other_facts(**changes):
    return edited("run.json", lambda old: json.dumps({**json.loads(old), **changes}).encode())


def other_settings(**changes):
    def change(old):
        facts = json.loads(old)
        return json.dumps({**facts, "config": {**facts["config"], **changes}}).encode()

    return edited("run.json", change)


def as_folder(name):
    return lambda run: ((run / name).unlink(), (run / name).mkdir())


def instead(make):
    return lambda run: (shutil.rmtree(run), make(run))


def unfinished(damage):
    return lambda run: (damage(run), (run / "DONE").unlink())


DAMAGES = {  # of a finished run: what is done to its folder, and the file that the reason names
    "facts lost": (lost("run.json"), "run.json"),
    "facts empty": (edited("run.json", lambda old: b""), "run.json"),
    "facts cut": (edited("run.json", lambda old: old[:200]), "run.json"),
    "facts binary": (edited("run.json", lambda old: bytes(range(256))), "run.json"),
    "facts a list": (edited("run.json", lambda old: b"[1, 2]"), "run.json"),
    "facts a number": (edited("run.json", lambda old: b"3"), "run.json"),
    "facts a folder": (as_folder("run.json"), "run.json"),
    "facts without settings": (edited("run.json", lambda old: b'{"seconds": 3}'), "run.json"),
    "settings a list": (other_facts(config=[1]), "run.json"),
    "a setting of another type": (other_settings(iterations="many"), "run.json"),
    "a setting out of bounds": (other_settings(batch_size=0), "run.json"),
    "an unknown setting": (other_settings(lambda_9=1), "run.json"),
    "settings of another run": (other_settings(lambda_c2s=0.1), "run.json"),
    "seconds a word": (other_facts(seconds="long"), "run.json"),
    "results a list": (other_facts(results=[0.5]), "run.json"),
    "rows lost": (lost("metrics.jsonl"), "metrics.jsonl"),
    "rows empty": (edited("metrics.jsonl", lambda old: b""), "metrics.jsonl"),
    "rows cut": (edited("metrics.jsonl", lambda old: old[: len(old) // 2]), "metrics.jsonl"),
    "a row binary": (edited("metrics.jsonl", lambda old: b"\xff\x00\n" + old), "metrics.jsonl"),
    "a row a list": (edited("metrics.jsonl", lambda old: b"[1]\n" + old), "metrics.jsonl"),
    "a row twice": (edited("metrics.jsonl", lambda old: old.splitlines(True)[0] + old), "metrics.jsonl"),
    "scores lost": (lost("per_class.csv"), "per_class.csv"),
    "scores empty": (edited("per_class.csv", lambda old: b""), "per_class.csv"),
    "scores cut": (edited("per_class.csv", lambda old: old[: len(old) // 2]), "per_class.csv"),
    "scores cut at a line": (edited("per_class.csv", lambda old: b"".join(old.splitlines(True)[:9])), "per_class.csv"),
    "scores binary": (edited("per_class.csv", lambda old: bytes(range(256)) * 9), "per_class.csv"),
    "scores without a column": (edited("per_class.csv", lambda old: old.replace(b"iou", b"u")), "per_class.csv"),
    "a score a word": (edited("per_class.csv", lambda old: old.replace(b"0.", b"x.", 1)), "per_class.csv"),
    "another score": (edited("per_class.csv", lambda old: old.replace(b"0.0", b"0.9", 1)), "per_class.csv"),
    "pixels lost": (lost("per_image.csv"), "per_image.csv"),
    "pixels a folder": (as_folder("per_image.csv"), "per_image.csv"),
    "pixels cut": (edited("per_image.csv", lambda old: old[:-20]), "per_image.csv"),
    "DONE binary": (edited("DONE", lambda old: b"\xff\xfe"), "DONE"),
    "DONE cut": (edited("DONE", lambda old: old[:30]), "DONE"),
    "DONE alone": (instead(lambda run: (run.mkdir(), (run / "DONE").touch())), "run.json"),
    "a file for the folder": (instead(lambda run: run.write_text("")), ""),
    "a link to nowhere": (instead(lambda run: run.symlink_to("nowhere")), ""),
    "a link to itself": (instead(lambda run: run.symlink_to(run.name)), ""),
    "unfinished, facts cut": (unfinished(edited("run.json", lambda old: old[:200])), "run.json"),
    "unfinished, threads a word": (unfinished(other_facts(threads="few")), "run.json"),
    "unfinished, hardware a number": (unfinished(other_facts(hardware=5)), "run.json"),
}


@pytest.fixture
def two(batch, tmp_path):
    """Two finished runs in a folder of their own: the jobs of one grid, the paths of the runs."""
    grid, folders, jobs, _ = batch
    for job in jobs[:2]:
        shutil.copytree(job.folder.path, tmp_path / "runs" / job.folder.run_id, copy_function=os.link)
    mine = read_grid(grid, **{**folders, "runs_dir": str(tmp_path / "runs")})[:2]
    return mine, *(job.folder.path for job in mine)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_is_one_row_with_its_reason_and_all_others_go_on(two, tmp_path, name):
    jobs, run, whole = two
    damage, file = DAMAGES[name]
    damage(run)
    table = plan(jobs).set_index("run_id")
    assert table["state"].to_dict() == {run.name: "failed", whole.name: "done"}
    assert str(run / file) in table["reason"][run.name]
    write_tables(jobs, tmp_path / "out")
    tables = read_registry(tmp_path / "out")
    assert tables["runs"].set_index("run_id")["state"].to_dict() == {run.name: "failed", whole.name: "done"}
    assert str(run / file) in tables["runs"].set_index("run_id")["reason"][run.name]
    for name in ("per_class", "per_step", "per_image"):
        assert set(tables[name]["run_id"]) == {whole.name}


@pytest.mark.parametrize("name", ["scores lost", "facts cut", "rows lost", "DONE binary", "another score"])
def test_a_damaged_run_is_mended_from_its_checkpoint(two, batch, name):
    jobs, run, _ = two
    DAMAGES[name][0](run)
    assert not RunFolder(run).finished()
    fit(jobs[0].config, progress=False)
    assert RunFolder(run).state() == "done"
    for file in ("per_class.csv", "per_image.csv", "metrics.jsonl"):
        assert (run / file).read_bytes() == (batch[2][0].folder.path / file).read_bytes()


def test_a_finished_run_without_its_checkpoint_says_so_and_its_numbers_count(two):
    jobs, run, _ = two
    (run / "checkpoint.pt").unlink()
    table = plan(jobs).set_index("run_id")
    assert table["state"][run.name] == "done"
    assert table["reason"][run.name] == "checkpoint.pt is gone; its numbers are whole"


@pytest.mark.parametrize("kept", [["runs"], ["runs", "per_class"], ["per_step"], []])
@pytest.mark.parametrize("rest", ["missing", "empty", "cut"])
def test_a_registry_whose_writing_was_cut_short_is_written_again(two, tmp_path, kept, rest):
    jobs, run, _ = two
    out = tmp_path / "out"
    write_tables(jobs, out)
    wanted = read_registry(out)
    for path in out.iterdir():
        if path.stem in kept:
            continue
        content = path.read_bytes()
        path.unlink()
        if rest != "missing":
            path.write_bytes(content[: len(content) // 2] if rest == "cut" else b"")
    if kept or rest != "missing":
        with pytest.raises(ConfigError, match="bidir sweep GRID --out"):
            read_registry(out)
    write_tables(jobs, out)
    for name, table in read_registry(out).items():
        pd.testing.assert_frame_equal(table, wanted[name])
    if kept:  # and never at the price of a run
        (out / "per_image.parquet").unlink()
        shutil.rmtree(run)
        with pytest.raises(ConfigError, match=rf"per_image.parquet is missing or damaged.*{run.name}"):
            write_tables(jobs, out)
