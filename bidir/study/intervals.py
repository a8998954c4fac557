"""Means over seeds and differences on shared seeds, with intervals that hold for few of them."""

from bisect import bisect_left

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import ncfdtr, stdtr, stdtrit  # of Fisher's F and Student's t; scipy.stats takes long to import


def mean_interval(table: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Mean of ``value`` per group with its 95 % t-interval: columns mean, half_width (NaN below three seeds), seeds. At
    three seeds it covers 95 %; a bootstrap would cover far less."""
    _require_single(table, by)
    result = table.groupby(by, sort=False)[value].agg(mean="mean", half_width="sem", seeds="count").reset_index()
    result["half_width"] *= stdtrit((result["seeds"] - 1).where(result["seeds"] > 2), 0.975)
    return result


def t_interval(values: pd.Series) -> tuple[float, float]:
    """Lower and upper end of the 95 % t-interval of a mean; the mean itself below three values."""
    half = stdtrit(len(values) - 1, 0.975) * values.sem() if len(values) > 2 else 0.0
    return values.mean() - half, values.mean() + half


def differences(table: pd.DataFrame, column: str, pairs: list[tuple], by: list[str], value: str) -> pd.DataFrame:
    """Each seed's own ``value`` where ``column`` is the second of a pair minus where it is the first: a row per pair,
    group and seed that both have, with first and second; what only the first has ends in ``_first``."""
    rows = []
    for pair in pairs:
        sides = [_require_single(table[table[column] == side].dropna(subset=value), by) for side in pair]
        both = sides[0].merge(sides[1], on=[*by, "seed"], suffixes=("_first", ""))
        rows.append(both.assign(first=pair[0], second=pair[1], **{value: both[value] - both[f"{value}_first"]}))
    return pd.concat(rows, ignore_index=True)


def compare(table: pd.DataFrame, column: str, pairs: list[tuple], by: list[str], value: str = "iou") -> pd.DataFrame:
    """Mean ``differences`` of several pairs: with first, second and the ``reading``: higher or lower where the interval
    leaves out 0, else not resolved; below three seeds, which give none: how many there are."""
    table = mean_interval(differences(table, column, pairs, by, value), ["first", "second", *by], value)
    few, higher, lower = table["seeds"] < 3, table["mean"] > table["half_width"], -table["mean"] > table["half_width"]
    seeds = np.where(table["seeds"] < 2, "one seed", "two seeds")
    return table.assign(reading=np.select([few, higher, lower], [seeds, "higher", "lower"], "not resolved"))


def p_value(numbers: pd.DataFrame | pd.Series) -> pd.Series | float:
    """Two-sided p of each mean of ``mean_interval``, by the t-test of its interval; NaN below three seeds."""
    t = abs(numbers["mean"]) / np.maximum(numbers["half_width"], 1e-9) * stdtrit(numbers["seeds"] - 1, 0.975)
    return 2 * stdtr(numbers["seeds"] - 1, -t)


def seed_count(seeds: pd.Series) -> str:
    """How many seeds there are, from the counts of groups: ``3 seeds``, or ``3 to 5 seeds`` where they differ."""
    least, most = seeds.min(), seeds.max()
    return f"{least} to {most} seeds" if least < most else f"{most} seed{'s' if most > 1 else ''}"


def _require_single(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """``table``. ``ValueError`` if a seed stands twice in a group: two settings would pass for two seeds."""
    if "seed" in table and len(twice := table[table.duplicated([*by, "seed"])]):
        group = ", ".join(f"{name}={twice[name].iloc[0]}" for name in [*by, "seed"])
        raise ValueError(f"several rows with {group}: the table mixes settings; compare them apart")
    return table


def percent(mean: float, half_width: float = float("nan"), signed: bool = False) -> str:
    """A fraction and its half width as percent: ``44.9 ± 1.2``, without the latter where it is unknown."""
    return f"{100 * mean:{'+' * signed}.1f}" + ("" if pd.isna(half_width) else f" ± {100 * half_width:.1f}")


def interval_text(numbers: pd.DataFrame, signed: bool = False) -> list[str]:
    """``percent`` of the columns mean and half_width, row by row."""
    return [percent(*row, signed=signed) for row in numbers[["mean", "half_width"]].to_numpy()]


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's adjusted p-values, in the order given, NaN as it is: where one is at most 0.05, its difference stands in a
    family whose chance of any false claim is at most 5 %. The smallest times their number, the next one less, ..."""
    values = np.asarray(p_values, float)
    order = values.argsort()  # NaN last
    scaled = values[order] * (np.isfinite(values).sum() - np.arange(len(order)))
    return np.minimum(1, np.maximum.accumulate(scaled))[order.argsort()]


def seeds_needed(sd: float, effect: float, power: float = 0.8, level: float = 0.95) -> int:
    """How many shared seeds a paired t-test needs to resolve a mean difference ``effect`` with chance ``power``, where
    the seeds' differences scatter by ``sd``; at most a million. Errors: ``ValueError`` if one of both is 0."""
    if sd <= 0 or effect == 0:
        raise ValueError(f"sd = {sd}, effect = {effect}: neither may be 0")

    def power_of(seeds: int) -> float:
        limit = stdtrit(seeds - 1, (1 + level) / 2)  # of |t|; t² is Fisher's F, of noncentrality n (effect / sd)²
        return 1 - ncfdtr(1, seeds - 1, seeds * (effect / sd) ** 2, limit**2)

    return 2 + bisect_left(range(2, 1_000_000), power, key=power_of)
