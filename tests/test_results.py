"""Every number that README reports is found in the committed tables, and every table belongs to recorded runs."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path.parent for path in (ROOT / "results").glob("*/summary.csv") if path.parent.name != "study")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_tables_belong_to_recorded_runs(folder):
    scores, runs = pd.read_csv(folder / "scores.csv"), json.loads((folder / "runs.json").read_text())
    assert set(scores["run_id"]) == {run["run_id"] for run in runs}
    for run in runs:
        assert run["git_commit"]
        assert not run["git_dirty"]
        assert run["hardware"]
        mine = scores[(scores["run_id"] == run["run_id"]) & (scores["class"] == "mean")]
        for row in mine.itertuples():
            assert row.iou == pytest.approx(run["results"][f"{row.protocol}/{row.map}"], abs=1e-6)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_readme_tables_are_the_summaries(folder):
    """A row of README's table: name, seeds, then mIoU of the maps in its header (± half width)."""
    readme = (ROOT / "README.md").read_text()
    table = re.search(rf"results/{folder.name}/summary\.csv.*?\n\n(\|.*?)\n\n", readme, re.S).group(1).splitlines()
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    summary = pd.read_csv(folder / "summary.csv").set_index(["run", "protocol", "map"])
    maps = {"CAM": ("ms", "cam"), "seed": ("ms", "seed"), "Y_c": ("ms", "y_c"), "Branch-C": ("raw", "branch_c")}
    maps |= {"Branch-S": ("raw", "branch_s"), "Branch-S ms": ("ms", "branch_s")}
    assert len(rows) == summary.index.get_level_values("run").nunique()
    for name, seeds, *cells in rows:
        for title, cell in zip(header[2:], cells, strict=True):
            wanted = summary.loc[(name, *maps[title])]
            text = f"{100 * wanted['mean']:.1f}"
            text += "" if pd.isna(wanted["half_width"]) else f" ± {100 * wanted['half_width']:.1f}"
            assert cell == text
            assert int(seeds) == wanted["seeds"]
