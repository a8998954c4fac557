"""Figures against intervals worked by scipy, and tables' words against numbers by hand."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image
from scipy import stats

from bidir.study.figures import plot_differences, plot_maps, save_figure, subplots, use_style
from bidir.study.intervals import compare
from bidir.study.tables import in_words, save_table, summarise

GAINS = {"cam": [0.01, -0.02, 0.03], "branch_s": [0.10, 0.12, 0.11]}  # of both over c2s, seed by seed
MAPS = (("ms", "cam"), ("raw", "branch_s"))


@pytest.fixture
def scores():
    """Runs of c2s and both on three seeds, and one of full."""
    rows = []
    for protocol, name in MAPS:
        for seed, gain in enumerate(GAINS[name]):
            before = 0.4 + 0.1 * seed
            for supervision, iou in {"c2s": before, "both": before + gain}.items():
                rows.append((supervision, seed, protocol, name, iou, f"{supervision}-{seed}"))
        rows.append(("full", 0, protocol, name, 0.9, "full-0"))
    return pd.DataFrame(rows, columns=["supervision", "seed", "protocol", "map", "iou", "run_id"])


@pytest.fixture
def paired(scores):
    use_style()
    pairs = {("both", "full"): "full − both", ("none", "c2s"): "not there", ("c2s", "both"): "both − c2s"}
    numbers = compare(scores, "supervision", [("c2s", "both"), ("both", "full")], ["protocol", "map"])
    return numbers, *plot_differences(scores, numbers, "supervision", pairs, MAPS)


def test_drawn_intervals_are_those_of_scipy(paired):
    _, figure, drawn = paired
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["full − both", "both − c2s"]
    for axis, name, colour in zip(figure.axes, GAINS, ("#595959", "#0072b2"), strict=True):
        gains = 100 * np.array(GAINS[name])
        low, high = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
        intervals = [bar for bar in axis.collections if bar.get_segments()]
        assert len(intervals) == 1  # full has one seed: a dot, no interval
        np.testing.assert_allclose(intervals[0].get_segments()[0], [[low, 1], [high, 1]])
        means = {line.get_ydata()[0]: line for line in axis.lines if line.get_marker() == "D"}
        assert means[1].get_xdata() == pytest.approx([gains.mean()])
        assert to_hex(means[1].get_color()) == colour  # grey where the interval holds 0
        seeds = [line for line in axis.lines if line.get_marker() == "o" and len(line.get_xdata()) == 3]
        np.testing.assert_allclose(seeds[0].get_xdata(), gains)
        assert any((np.asarray(line.get_xdata()) == 0).all() for line in axis.lines)
    row = drawn.query("map == 'cam' and second == 'both' and seed == 1").iloc[0]
    assert (row["run_id_first"], row["run_id"], round(row["iou"], 6)) == ("c2s-1", "both-1", -0.02)


def test_the_same_figure_is_written_byte_for_byte(scores, paired, tmp_path):
    numbers, figure, drawn = paired
    again = plot_differences(scores, numbers, "supervision", {("c2s", "both"): "a", ("both", "full"): "b"}, MAPS)[0]
    save_figure(figure, tmp_path / "one", drawn, "Caption.")
    save_figure(again, tmp_path / "other", drawn, "Caption.")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "other.png").read_bytes()
    first = {kind: (tmp_path / f"one.{kind}").read_bytes() for kind in ("png", "pdf", "svg", "csv", "md")}
    names = {("both", "full"): "full − both", ("c2s", "both"): "both − c2s"}
    save_figure(plot_differences(scores, numbers, "supervision", names, MAPS)[0], tmp_path / "one", drawn, "Caption.")
    assert first == {kind: (tmp_path / f"one.{kind}").read_bytes() for kind in first}


def test_differences_in_words(paired):
    """Mean 0.11, s = 0.01, t(0.975, 2) = 4.303: half width 0.0248."""
    assert in_words(paired[0]) == (
        "both against c2s: Branch-S +11.0 ± 2.5 points (higher); full against both: Branch-S +40.0 points (one seed)"
    )
    assert in_words(paired[0].iloc[:1], MAPS).startswith("both against c2s: CAM +0.7 ± 6.3 points (not resolved)")
    assert in_words(paired[0].iloc[:0]) == ""


def test_a_table_is_written_for_reading_and_for_print(scores, tmp_path):
    """Branch-S under c2s: 40, 50 and 60 %: mean 50, s = 10, half width 4.303 * 10 / sqrt(3) = 24.8."""
    text, numbers = summarise(scores.query("supervision == 'c2s'"), ["supervision"], MAPS)
    save_table(text, numbers, tmp_path / "table", "Caption.")
    assert "| 50.0 ± 24.8 " in (tmp_path / "table.md").read_text()
    assert r"& 50.0 $\pm$ 24.8 " in (tmp_path / "table.tex").read_text()
    row = pd.read_csv(tmp_path / "table.csv").query("map == 'branch_s'").iloc[0]
    assert row[["mean", "half_width"]].tolist() == pytest.approx([0.5, 0.248414], abs=1e-6)


def test_the_legend_names_the_hues_once(scores):
    figure = plot_maps(scores.assign(decoder="plain"), "supervision", ["c2s", "both", "full"], "decoder", MAPS)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["plain"]


def test_no_figure_waits_to_be_shown(scores):
    """Figures are shown by who displays them: none is left to pyplot, which would show it a second time."""
    order = ["c2s", "both", "full"]
    figures = [plot_maps(scores, "supervision", order, maps=MAPS), subplots(2, 2)[0]]
    assert not plt.get_fignums()
    buffers = [io.BytesIO() for _ in figures]
    for figure, buffer in zip(figures, buffers, strict=True):
        figure.savefig(buffer, format="png")
        assert np.array(Image.open(buffer)).std() > 1  # yet it can be drawn


def test_means_of_fewer_than_three_seeds_are_drawn_without_interval(scores):
    """The vertical lines, those with two points at one place, have a length from three seeds on."""
    for seeds in (2, 3):
        rows = scores[(scores["seed"] < seeds) & (scores["supervision"] != "full")]
        lines = plot_maps(rows, "supervision", ["c2s", "both"], maps=MAPS[1:]).axes[0].lines
        drawn = [line for line in lines if line.get_linestyle() != "None"]
        upright = [line.get_ydata() for line in drawn if len({*line.get_xdata()}) < len(line.get_xdata())]
        assert [np.nanmax(ends) - np.nanmin(ends) > 1 for ends in upright] == [seeds > 2] * 2
