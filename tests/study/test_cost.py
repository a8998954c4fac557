"""What a run would take, and what each part of the method costs."""

import re
from pathlib import Path

import pytest

from bidir.study.cost import (
    BASE,
    METHODS,
    SIZES,
    cost,
    duration,
    forecast,
    measure,
    measure_evaluation,
    measure_refinement,
)


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


@pytest.mark.parametrize("function", [measure, measure_refinement])
def test_steps_are_measured(quick, function):
    found = function(quick, steps=2)
    assert found["steps"] == 2
    assert 0 < found["seconds_least"] <= found["seconds_per_step"] <= found["seconds_most"]
    assert found["peak_memory_mib"] > 100


def test_an_evaluated_image_is_measured(quick):
    found = measure_evaluation(quick, images=2)
    assert found["steps"] == 2
    assert 0 < found["seconds_least"] <= found["seconds_per_step"] <= found["seconds_most"]


@pytest.mark.slow
def test_every_part_is_measured_in_a_process_of_its_own_and_set_beside_full_supervision(quick, monkeypatch):
    name, changes = list(SIZES.items())[1]
    small = {**changes, "encoder": "mit_b0", "batch_size": 2, "crop_size": 64}
    monkeypatch.setattr("bidir.study.cost.SIZES", {name: small})
    monkeypatch.setattr("bidir.study.cost.METHODS", {part: METHODS[part] for part in (BASE, "Branch-C alone")})
    table = cost(quick)
    assert table["part"].tolist() == [BASE, "Branch-C alone"]
    assert table["setting"].tolist() == [name] * 2
    seconds, memory = table["seconds_per_step"], table["peak_memory_mib"]
    assert table["ratio"].tolist() == pytest.approx((seconds / seconds[0]).tolist(), abs=1e-3)
    assert table["memory_ratio"].tolist() == pytest.approx((memory / memory[0]).tolist(), abs=1e-3)
    assert table["what"].str.contains("CPU").all()


def test_the_time_a_run_takes_is_said_in_a_line(quick):
    told = duration(quick)
    found = re.match(r"about ([\d.]+) min here: (\d+) iterations of ([\d.]+) s", told)
    minutes, steps, seconds = map(float, found.groups())
    assert steps == 40
    assert seconds > 0.01
    assert minutes == pytest.approx(40 * seconds / 60, abs=0.06)
    assert "\n" not in told
