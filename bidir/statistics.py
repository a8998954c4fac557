"""Means over seeds, with intervals that hold for few of them."""

from __future__ import annotations

import pandas as pd
from scipy.stats import t


def mean_interval(table: pd.DataFrame, by: list[str], value: str, level: float = 0.95) -> pd.DataFrame:
    """Mean of ``value`` per group with its t-interval: columns mean, half_width (NaN for one seed), seeds.

    At three seeds a t-interval of 95 % covers 95 %; a bootstrap would cover far less.
    """
    groups = table.groupby(by, sort=False)[value]
    result = groups.agg(mean="mean", half_width="sem", seeds="count").reset_index()
    result["half_width"] *= t.ppf((1 + level) / 2, (result["seeds"] - 1).where(result["seeds"] > 1))
    return result
