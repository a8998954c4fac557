"""What a run would take, and what each part of the method costs."""

import re
from pathlib import Path

import pytest

from bidir.study.cost import PARTS, cost, forecast, measure


def test_a_dry_run_says_what_it_would_take(quick):
    """Steps, epochs and shares by hand; the time is that of the measured step."""
    told = forecast(quick.replace(processes=2, images_per_pass=1, runs_dir="nowhere"))
    assert "steps    40, 3.3 epochs; c2s from 10, s2c from 20, bsp from 20" in told  # 40 steps of 4 of 48 images
    assert "batch    4 crops of 96 px, 2 for each of 2 processes, 1 at once" in told
    assert "data     48 training and 16 validation images, 6 classes" in told
    hours, seconds = (float(re.search(pattern, told)[1]) for pattern in (r"time +([\d.]+) h", r"([\d.]+) s per step"))
    assert hours == pytest.approx(40 * seconds / 3600, abs=0.06)
    assert seconds > 0.01
    assert not Path("nowhere").exists()


def test_a_step_is_measured_with_every_term_on(quick):
    found = measure(quick, steps=2, warm_up=1)
    assert found["steps"] == 2
    assert 0 < found["seconds_least"] <= found["seconds_per_step"] <= found["seconds_most"]
    assert found["peak_memory_mib"] > 100


def test_every_part_is_measured_in_a_process_of_its_own(quick, monkeypatch):
    monkeypatch.setattr("bidir.study.cost.PARTS", {name: PARTS[name] for name in ("Branch-C alone", "c2s, PAR")})
    table = cost(quick)
    assert table["part"].tolist() == ["Branch-C alone", "c2s, PAR"]
    assert table["seconds_per_step"].gt(0).all()
    assert table["what"].str.startswith("4 crops of 96 px, tf_efficientnet_lite0").all()
