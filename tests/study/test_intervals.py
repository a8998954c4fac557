"""Intervals and paired differences against numbers worked by hand."""

import math

import pandas as pd
import pytest

from bidir.study.intervals import compare, mean_interval, paired_difference, percent, t_interval

T2 = 4.302653  # t(0.975, 2) from Student's table


def test_t_interval_by_hand():
    table = pd.DataFrame({"run": ["a", "a", "a", "b"], "iou": [0.40, 0.42, 0.50, 0.3]})
    result = mean_interval(table, ["run"], "iou").set_index("run")
    half = T2 * math.sqrt(0.0028 / 3)  # mean 0.44, deviations -0.04, -0.02, 0.06: s^2 = 0.0028
    assert result.loc["a", "mean"] == pytest.approx(0.44)
    assert result.loc["a", "half_width"] == pytest.approx(half, rel=1e-5)
    assert result.loc["a", "seeds"] == 3
    assert math.isnan(result.loc["b", "half_width"])
    assert t_interval(table["iou"][:3]) == pytest.approx((0.44 - half, 0.44 + half), rel=1e-5)
    assert t_interval(table["iou"][3:]) == (0.3, 0.3)


@pytest.fixture
def scores():
    """Two methods on three shared seeds that differ by 0.02, 0.03, 0.04; seed 9 has one method only."""
    rows = [
        ("c2s", 0, 0.40),
        ("both", 0, 0.42),
        ("c2s", 1, 0.50),
        ("both", 1, 0.53),
        ("both", 2, 0.64),
        ("c2s", 2, 0.60),
    ]
    rows += [("both", 9, 0.9)]
    return pd.DataFrame(rows, columns=["supervision", "seed", "iou"]).assign(map="branch_s")


def test_paired_difference_by_hand(scores):
    result = paired_difference(scores, "supervision", "c2s", "both", ["map"], "iou").iloc[0]
    assert result["mean"] == pytest.approx(0.03)
    assert result["half_width"] == pytest.approx(T2 * 0.01 / math.sqrt(3), rel=1e-5)  # s = 0.01
    assert result["seeds"] == 3


def test_comparison_says_what_its_interval_says(scores):
    """Difference 0.03 +- 0.0248: higher; swapped: lower; a wider scatter: not resolved."""
    wide = scores.assign(iou=scores["iou"].where(scores["iou"] != 0.64, 0.74))  # 0.02, 0.03, 0.14
    pairs = [("c2s", "both"), ("both", "c2s")]
    assert compare(scores, "supervision", pairs, ["map"])["reading"].tolist() == ["higher", "lower"]
    assert compare(wide, "supervision", pairs, ["map"])["reading"].tolist() == ["not resolved"] * 2
    assert compare(scores[scores["seed"] == 0], "supervision", pairs[:1], ["map"])["reading"].tolist() == ["one seed"]


def test_a_table_that_mixes_settings_is_refused(scores):
    """Two rows of one seed in one group would count as two seeds."""
    mixed = pd.concat([scores, scores.assign(iou=0.1)])
    for wrong in (
        lambda: mean_interval(mixed, ["supervision"], "iou"),
        lambda: paired_difference(mixed, "supervision", "c2s", "both", ["map"], "iou"),
    ):
        with pytest.raises(ValueError, match="several rows with"):
            wrong()


def test_percent():
    assert percent(0.4489, 0.0123) == "44.9 ± 1.2"
    assert percent(-0.012, float("nan"), signed=True) == "-1.2"
    assert percent(0.012, 0.002, signed=True) == "+1.2 ± 0.2"
