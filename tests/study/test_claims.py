"""Claims: against scipy's paired test and Holm by hand; the committed ones against their registries and the README."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from bidir.config import ConfigError
from bidir.study import claims as module
from bidir.study.claims import ASKED, FAR, TEXTS, claims_table, read_claims, stale_figures, visible_text, write_claims
from bidir.study.intervals import holm
from bidir.study.registry import read_registry

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def committed():
    return read_claims(ROOT / "results" / "claims.yaml")


def test_each_claim_is_scipys_paired_test(committed):
    """From the registry's own tables, by other means; Holm over the family on the same data."""
    p_values = []
    for claim in committed.itertuples():
        tables = read_registry(ROOT / claim.registry)
        scores = tables["per_class"].query("`class` == 'mean'")
        endpoint = scores["protocol"] + "/" + scores["map"] + scores["part"].map({"val": "", "train": "/train"})
        means = scores[endpoint == claim.endpoint]
        runs = tables["runs"].merge(means[["run_id", "iou"]], on="run_id")
        runs = runs[runs["run_id"].isin(tables["grids"].query("grid == @claim.grid")["run_id"])]
        sides = []
        for arm in (claim.first, claim.second):
            chosen = runs
            for setting, value in arm.items():
                chosen = chosen[chosen[setting] == value]
            sides.append(chosen.set_index("seed")["iou"])
        first, second = (side.loc[sorted(sides[0].index.intersection(sides[1].index))] for side in sides)
        result = stats.ttest_rel(second, first)
        assert claim.seeds == len(first)
        assert claim.mean == pytest.approx((second - first).mean())
        assert claim.half_width == pytest.approx(result.confidence_interval(0.95).high - claim.mean)
        p_values.append(result.pvalue)
    groups = committed.groupby(["data", "family"]).indices.values()
    for places in groups:
        assert committed["p"].to_numpy()[places] == pytest.approx(holm(np.array(p_values)[places]))


def test_what_is_visible_is_seen_four_times_in_five(committed):
    """The power of scipy's noncentral t at the smallest visible difference, and a thousandth below it, at the level of
    Holm's first step: 5 % shared by all claims of the family on the same data."""
    for claim in committed.itertuples():
        error = claim.half_width / stats.t.ppf(0.975, claim.seeds - 1)
        family = len(committed.query("data == @claim.data and family == @claim.family"))
        limit = stats.t.ppf(1 - 0.025 / family, claim.seeds - 1)
        power = [
            stats.nct.sf(limit, claim.seeds - 1, effect / error)
            + np.nan_to_num(stats.nct.cdf(-limit, claim.seeds - 1, effect / error))  # far below 1e-9, where it is NaN
            for effect in (claim.visible, claim.visible - 0.001)
        ]
        assert power[0] >= 0.8 > power[1]


def test_a_sentence_says_no_more_than_the_reading(committed):
    for claim in committed.itertuples():
        resolved = claim.p <= 0.05
        assert resolved == (claim.reading in ("higher", "lower"))
        assert resolved != ("not confirmed" in claim.sentence)
        assert f"{100 * claim.mean:+.1f} ± {100 * claim.half_width:.1f}" in claim.sentence


def test_the_verdict_holds_the_papers_question_and_hides_no_loss(committed):
    """Which claims the README begins with is chosen; the paper's loss on all data where nothing else differs is among
    them, on the main endpoint, and so is whatever was found to cost there."""
    main = committed["endpoint"] == "raw/branch_s"
    asked = committed["question"] == "the paper's loss of S → C, under BSP"
    assert set(committed.loc[asked, "data"]) == {"generated scenes", "photographs"}
    assert committed.loc[main & (asked | (committed["reading"] == "lower")), "verdict"].all()
    assert main[committed["verdict"]].all()


def test_far_differences_are_not_told_apart():
    assert [visible_text(seen) for seen in (0.0333, FAR, 0.567, float("nan"))] == ["3.3", "20.0", "over 20", ""]


def test_the_texts_hold_the_claims_as_they_are_computed_now(committed, tmp_path):
    """Writing them anew changes neither the file nor the texts: what a hand had changed there would show."""
    shutil.copytree(ROOT / "results", tmp_path / "results")
    for text in TEXTS:
        shutil.copyfile(ROOT / text, tmp_path / Path(text).name)
    texts = tuple(tmp_path / Path(text).name for text in TEXTS)
    write_claims(tmp_path / "results" / "claims.yaml", texts)
    for text, copy in zip(TEXTS, texts, strict=True):
        assert copy.read_text() == (ROOT / text).read_text()
    assert (tmp_path / "results" / "claims.yaml").read_text() == (ROOT / "results" / "claims.yaml").read_text()
    rows = [re.findall(r"^\| .*(?:resolved|higher|lower) *\|$", text.read_text(), re.M) for text in texts]
    assert [*map(len, rows)] == [(committed["endpoint"] == "raw/branch_s").sum(), len(committed)]
    verdict = README.split("<!-- verdict -->")[1].split("<!-- end -->")[0]
    assert verdict.strip().splitlines() == [f"- {said}" for said in committed.loc[committed["verdict"], "sentence"]]
    for text in texts:
        wrong = text.read_text().replace("**not confirmed**", "confirmed").replace("not resolved |", "higher |")
        text.write_text(wrong)
    write_claims(tmp_path / "results" / "claims.yaml", texts)
    for text, copy in zip(TEXTS, texts, strict=True):
        assert copy.read_text() == (ROOT / text).read_text()


@pytest.fixture
def invented(tmp_path, monkeypatch):
    """Claims on a registry of ``gains`` by seed: S -> C adds that much."""

    def made(gains):
        rows = [(f"{arm}{seed}", arm, seed, 0.4 + (arm == "both") * gain) for seed, gain in enumerate(gains)
                for arm in ("c2s", "both")]  # fmt: skip
        scores = pd.DataFrame(rows, columns=["run_id", "supervision", "seed", "iou"]).assign(
            protocol="raw", map="branch_s", **{"class": "mean"}
        )
        monkeypatch.setattr(module, "read_registry", lambda path: {"scores": scores})
        monkeypatch.setattr(module, "grid_scores", lambda tables, grid, part: tables["scores"])
        claim = dict(zip(ASKED, ["d", "f", "q", "r", "g", {"supervision": "c2s"}, {"supervision": "both"},
                                 "raw/branch_s", False], strict=True))  # fmt: skip
        (tmp_path / "claims.yaml").write_text(yaml.safe_dump([claim]))
        return read_claims(tmp_path / "claims.yaml")

    return made


@pytest.mark.parametrize(
    ("gains", "reading", "says"),
    [
        ((0.05, 0.06, 0.055), "higher", "it pays:"),
        ((-0.05, -0.06, -0.055), "lower", "it costs:"),
        ((0.05, 0.05, 0.05), "higher", "it pays: Branch-S (raw) +5.0 ± 0.0 points, 3 seeds, p = "),
        ((0.05, -0.06, 0.01), "not resolved", "not confirmed"),
        ((0.05, -0.06, 0.01), "not resolved", "points, 3 seeds, p = 1 among 1 claims; visible: "),
        ((0.05, 0.06), "too few seeds", "cannot be judged: Branch-S (raw) +5.5 points, 2 seeds."),
        ((0.05,), "too few seeds", "cannot be judged: Branch-S (raw) +5.0 points, 1 seed."),
    ],
)
def test_readings(invented, gains, reading, says):
    claims = invented(gains)
    assert claims["reading"].item() == reading
    assert says in claims["sentence"].item()
    assert (" ± " in claims_table(claims)["points"].item()) == (len(gains) > 2)


def test_a_claim_without_its_runs_is_refused(tmp_path):
    asked = yaml.safe_load((ROOT / "results" / "claims.yaml").read_text())[0]
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump([{**asked, "second": {"supervision": "neither"}}]))
    with pytest.raises(ConfigError, match=r"the paper's loss of S.*no seed of grid 'two_by_two' has both arms"):
        read_claims(path)
    path.write_text(yaml.safe_dump([{**asked, "grid": "nowhere"}]))
    with pytest.raises(ConfigError, match=r"the paper's loss of S.*grid 'nowhere' holds no finished run"):
        read_claims(path)
    del asked["endpoint"]
    for wrong in (yaml.safe_dump([asked]), "a sentence"):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match=r"claim 1 has no (endpoint|data)"):
            read_claims(path)
    path.write_text("- data: [unclosed")
    with pytest.raises(ConfigError, match=r"claims.yaml: not YAML"):
        read_claims(path)


def test_a_figure_drawn_of_other_runs_is_named(tmp_path):
    """None is stale as committed; one is when a run is taken out of it, one when the registry loses a run."""
    folder = tmp_path / "scenes"
    shutil.copytree(ROOT / "results" / "scenes", folder)
    assert stale_figures(folder) == []
    path = folder / "figures" / "fig4_paired.csv"
    data = pd.read_csv(path)
    data[data["run_id_first"] != data["run_id_first"].iloc[0]].to_csv(path, index=False)
    assert stale_figures(folder) == [f"{folder}/figures/fig4_paired"]
    data.assign(run_id="gone").to_csv(path, index=False)
    assert stale_figures(folder) == [f"{folder}/figures/fig4_paired"]
