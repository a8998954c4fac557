"""What tables compute, against means by hand."""

import errno
import os
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bidir.study.figures import save_figure, subplots
from bidir.study.registry import SETTINGS, grid_scores
from bidir.study.tables import save_differences, save_table, teacher_weights

MAPS = (("ms", "cam"), ("raw", "branch_s"))


def registry(rows):
    """A registry of two runs of grid ``directions``, seeds 0 and 1, eight iterations, with these training rows."""
    ids = ["a", "b"]
    settings = {
        **dict.fromkeys(SETTINGS, ""),
        "supervision": "both",
        "iterations": 8,
        "lambda_c2s": 0.5,
        "lambda_s2c": 0.1,
    }
    steps = pd.DataFrame(rows, columns=["run_id", "step", "name", "value"]).assign(kind="train")
    grids = pd.DataFrame({"grid": "directions", "case": "supervision=both", "run_id": ids})
    return {"grids": grids, "runs": pd.DataFrame({**settings, "run_id": ids, "seed": [0, 1]}), "per_step": steps}


def test_what_a_teacher_says_is_the_mean_over_each_quarter_then_over_seeds():
    """Pull 2/4 and 6/4 in run a's first quarter: 1; 3/4 in run b's; so 0.875. Weight 0.5 * 0.8 / 2 = 0.2 in both."""
    both = {"cls": 2.0, "c2s": 0.8, "s2c": 1.0, "gradient/cls": 4.0, "cosine/c2s/s2c": -0.25}
    pulls = [("a", 1, 2.0), ("a", 2, 6.0), ("b", 2, 3.0), ("a", 8, 4.0), ("b", 8, 4.0)]
    rows = [
        (run, step, name, value) for run, step, pull in pulls for name, value in {**both, "gradient/c2s": pull}.items()
    ]
    names = ["pull of c2s", "weight of c2s", "weight of s2c", "cosine of c2s and s2c", "pull of s2c"]
    steps = grid_scores(registry(rows), "directions", "per_step")
    table = teacher_weights(steps, names, ["supervision", "until"]).set_index(["until", "name"])["mean"]
    wanted = {"pull of c2s": 0.875, "weight of c2s": 0.2, "weight of s2c": 0.05, "cosine of c2s and s2c": -0.25}
    assert table[2].to_dict() == pytest.approx(wanted)  # the gradient of s2c was not logged
    assert table[8]["pull of c2s"] == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_where_nobody_may_write_figures_and_tables_are_shown_all_the_same(tmp_path, monkeypatch, capsys, number):
    """A full disk is an error as before."""
    table = pd.DataFrame({"a": [1.0]})

    def save():
        save_figure(subplots()[0], tmp_path / "figures" / "fig1", table, "Caption.")
        save_table(table, table, tmp_path / "tables" / "table1", "Caption.")

    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refused)
    save()
    assert capsys.readouterr().out.count("cannot be written to; what is shown here is not saved") == 2
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    number = errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):
        save()


def test_p_in_a_table_of_differences_is_that_of_scipy_corrected_among_them(tmp_path):
    """Two pairs on two maps, four seeds; of a third pair two seeds, which give no p and do not count."""
    drawn = np.random.default_rng(26)
    keys = [(name, seed, *key) for name in ("a", "b", "c") for seed in range(4) for key in MAPS]
    scores = pd.DataFrame(keys, columns=["form", "seed", "protocol", "map"]).assign(iou=drawn.uniform(size=len(keys)))
    scores.loc[scores["form"] == "b", "iou"] += 2
    few = scores.query("form == 'c' and seed < 2").assign(form="d")
    pairs = [("a", "b"), ("a", "c"), ("a", "d")]
    save_differences(pd.concat([scores, few]), "form", pairs, MAPS, tmp_path / "table")
    numbers = pd.read_csv(tmp_path / "table.csv").set_index(["second", "protocol", "map"])["p"]
    wide = scores.pivot(index="seed", columns=["form", "protocol", "map"], values="iou")
    p = {key: stats.ttest_rel(wide[key], wide["a", *key[1:]]).pvalue for key in wide if key[0] != "a"}
    least, expected = 0.0, {}
    for rank, key in enumerate(sorted(p, key=p.get)):
        expected[key] = least = max(least, min(1.0, (4 - rank) * p[key]))
    assert numbers.drop("d").to_dict() == pytest.approx(expected, rel=1e-4)
    assert numbers["d"].isna().all()
    text = (tmp_path / "table.md").read_text()
    assert "p by Holm among the 4 of this table" in text
    assert len(re.findall(r"two seeds +\| +\|", text)) == 2
    assert re.findall(r"\| c − a.+ 4 +\| ([a-z ]+?) +\|", text) == ["not resolved"] * 2
    assert p["c", *MAPS[1]] < 0.05 < expected["c", *MAPS[1]]  # resolved by itself, not among four
