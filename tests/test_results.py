"""Every number that README reports is found in the committed tables, and every table belongs to recorded runs."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from bidir.config import RunConfig
from bidir.study.intervals import mean_interval
from bidir.study.registry import SCHEMA, read_registry

ROOT = Path(__file__).parents[1]
REGISTRIES = sorted(path.parent for path in (ROOT / "results").glob("*/grids.csv") if path.parent.name != "study")


@pytest.mark.parametrize("folder", REGISTRIES, ids=lambda path: path.name)
def test_registries_hold_recorded_runs(folder):
    tables = read_registry(folder)
    runs = tables["runs"]
    assert runs["git_commit"].notna().all()
    assert not runs["git_dirty"].any()
    assert runs["hardware"].notna().all()
    assert runs["run_id"].is_unique
    for name in ("per_class", "per_step", "per_image"):
        assert set(tables[name]["run_id"]) == set(runs.loc[runs["state"] == "done", "run_id"]), name
    for name in SCHEMA.keys() - {"per_image"}:
        written = pd.read_csv(folder / f"{name}.csv")
        assert len(written) == len(tables[name])
        assert list(written.columns) == list(tables[name].columns)
    assert not re.search(r"/(home|tmp|root|Users)/", (folder / "runs.csv").read_text())


@pytest.mark.parametrize("folder", REGISTRIES, ids=lambda path: path.name)
def test_every_run_has_the_name_that_its_own_record_gives(folder):
    for row in read_registry(folder)["runs"].itertuples():
        assert RunConfig.from_stored({**json.loads(row.config)}).run_id(row.dataset_manifest) == row.run_id


@pytest.mark.parametrize("folder", REGISTRIES, ids=lambda path: path.name)
def test_tables_follow_from_the_registry(folder):
    """The means of table 2, computed anew from the runs' scores."""
    tables = read_registry(folder)
    runs = tables["runs"].set_index("run_id")["supervision"]
    cells = tables["grids"].query("grid == 'directions'")["run_id"]
    scores = tables["per_class"][tables["per_class"]["run_id"].isin(cells) & (tables["per_class"]["class"] == "mean")]
    scores = scores.assign(supervision=scores["run_id"].map(runs))
    expected = mean_interval(scores, ["supervision", "protocol", "map"], "iou").set_index(
        ["supervision", "protocol", "map"]
    )
    written = pd.read_csv(folder / "tables" / "table2_directions.csv").set_index(["supervision", "protocol", "map"])
    for column in ("mean", "half_width", "seeds"):
        pd.testing.assert_series_equal(
            written[column], expected.loc[written.index, column], check_dtype=False, rtol=1e-4
        )


@pytest.mark.parametrize("folder", REGISTRIES, ids=lambda path: path.name)
def test_every_figure_has_its_caption_and_its_runs(folder):
    runs = set(read_registry(folder)["runs"]["run_id"])
    figures = sorted((folder / "figures").glob("*.png"))
    assert figures
    for figure in figures:
        assert figure.with_suffix(".md").read_text().strip()
        data = pd.read_csv(figure.with_suffix(".csv"))
        if "run_id" in data:
            assert set(data["run_id"]) <= runs, figure


def test_tables_in_readme_are_those_in_results():
    """A table below a link to results/.../tables/NAME.md is that file's, line by line."""
    readme = (ROOT / "README.md").read_text()
    linked = re.findall(r"\((results/\S+/tables/\S+\.md)\)[^\n]*\n(?:[^|\n][^\n]*\n)*\n((?:\|[^\n]*\n)+)", readme)
    assert len(linked) >= 2
    for name, table in linked:
        assert table.strip() == (ROOT / name).read_text().split("\n\n")[0].strip(), name


def test_differences_in_readme_are_in_a_table():
    readme = (ROOT / "README.md").read_text()
    tables = "".join(path.read_text() for path in (ROOT / "results").glob("*/tables/*.md"))
    told = re.findall(r"[+-]\d+\.\d ± \d+\.\d", readme)
    assert told
    assert not [difference for difference in told if difference not in tables]


def test_the_long_runs_are_what_their_records_say():
    folder = ROOT / "results" / "voc-animals-long"
    scores, runs = pd.read_csv(folder / "scores.csv"), json.loads((folder / "runs.json").read_text())
    assert set(scores["run_id"]) == {run["run_id"] for run in runs}
    for run in runs:
        assert not run["git_dirty"]
        mine = scores[(scores["run_id"] == run["run_id"]) & (scores["class"] == "mean")]
        for row in mine.itertuples():
            assert row.iou == pytest.approx(run["results"][f"{row.protocol}/{row.map}"], abs=1e-6)
