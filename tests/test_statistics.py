"""Intervals against numbers worked by hand."""

import math

import pandas as pd
import pytest

from bidir.statistics import mean_interval


def test_t_interval_by_hand():
    table = pd.DataFrame({"run": ["a", "a", "a", "b"], "iou": [0.40, 0.42, 0.50, 0.3]})
    result = mean_interval(table, ["run"], "iou").set_index("run")
    # mean 0.44, deviations -0.04, -0.02, 0.06: s^2 = 0.0028; t(0.975, 2) = 4.302653 from Student's table
    assert result.loc["a", "mean"] == pytest.approx(0.44)
    assert result.loc["a", "half_width"] == pytest.approx(4.302653 * math.sqrt(0.0028 / 3), rel=1e-5)
    assert result.loc["a", "seeds"] == 3
    assert math.isnan(result.loc["b", "half_width"])
