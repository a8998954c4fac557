"""Intervals and paired differences against numbers worked by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bidir.study.intervals import (
    compare,
    holm,
    mean_interval,
    percent,
    seeds_needed,
    t_interval,
)

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
    assert t_interval(table["iou"][:2]) == pytest.approx(
        (0.41, 0.41), abs=1e-9
    )  # of two seeds an interval would say nothing
    assert math.isnan(mean_interval(table[:2], ["run"], "iou")["half_width"].item())


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
    result = compare(scores, "supervision", [("c2s", "both")], ["map"]).iloc[0]
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
    assert compare(scores[scores["seed"] < 2], "supervision", pairs, ["map"])["reading"].tolist() == ["two seeds"] * 2


def test_a_table_that_mixes_settings_is_refused(scores):
    """Two rows of one seed in one group would count as two seeds."""
    mixed = pd.concat([scores, scores.assign(iou=0.1)])
    for wrong in (
        lambda: mean_interval(mixed, ["supervision"], "iou"),
        lambda: compare(mixed, "supervision", [("c2s", "both")], ["map"]),
    ):
        with pytest.raises(ValueError, match="several rows with"):
            wrong()


def test_percent():
    assert percent(0.4489, 0.0123) == "44.9 ± 1.2"
    assert percent(-0.012, float("nan"), signed=True) == "-1.2"
    assert percent(0.012, 0.002, signed=True) == "+1.2 ± 0.2"


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # x 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04 -> 0.06
        ([0.3, 0.001, 0.5], [0.6, 0.003, 0.6]),  # 0.003, 0.6, 0.5 -> 0.6
        ([0.9, 0.8], [1, 1]),
        ([0.02], [0.02]),
        ([np.nan, 0.02, 0.9, np.nan], [np.nan, 0.04, 0.9, np.nan]),  # of two
        ([], []),
    ],
)
def test_holm_by_hand(p_values, adjusted):
    assert holm(p_values) == pytest.approx(adjusted, nan_ok=True)


def test_holm_rejects_as_its_step_down_rule_does():
    """Smallest first, against 0.05 / m, 0.05 / (m - 1), ...; from the first that fails on none is rejected."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        values = generator.uniform(0, 0.06, 6) ** 1.5
        rejected, going = set(), True
        for rank, place in enumerate(sorted(range(6), key=values.__getitem__)):
            going = going and values[place] <= 0.05 / (6 - rank)
            rejected |= {place} if going else set()
        assert {*np.flatnonzero(holm(values) <= 0.05)} == rejected


@pytest.mark.parametrize(("sd", "effect", "power"), [(1, 1, 0.8), (2, 3, 0.9), (2.4, -2, 0.8), (1, 4, 0.5)])
def test_seeds_needed_are_the_fewest_that_resolve_the_effect_in_simulated_studies(sd, effect, power):
    """40,000 studies of so many seeds, and of one less; scipy's own paired t-test on each."""
    needed, generator = seeds_needed(sd, effect, power), np.random.default_rng(0)

    def resolved(seeds):
        first = generator.normal(0, 1, (seeds, 40_000))
        return (stats.ttest_rel(first + generator.normal(effect, sd, first.shape), first).pvalue < 0.05).mean()

    assert resolved(needed) > power - 0.005
    assert needed == 2 or resolved(needed - 1) < power + 0.005


def test_an_effect_of_one_standard_deviation_needs_ten_seeds():
    """Textbook: 9.94, rounded up, for 80 % at 5 %; 22.3 for 90 % of 0.72 deviations."""
    assert seeds_needed(1, 1) == 10
    assert seeds_needed(2.4, 0.001) > seeds_needed(2.4, 0.1) > 1000
    for sd, effect in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="neither may be 0"):
            seeds_needed(sd, effect)
