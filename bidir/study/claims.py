"""Claims as data: each sentence of the README and the report about what pays, computed from the registries."""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tabulate import tabulate

from bidir.atomic import write_text
from bidir.config import ConfigError, resolve
from bidir.study.intervals import differences, holm, interval_text, mean_interval, p_value, seed_count, seeds_needed
from bidir.study.parameters import from_yaml
from bidir.study.registry import grid_scores, read_registry
from bidir.study.tables import DRAWS, drawn_runs, short_title

ASKED = "data family question registry grid first second endpoint verdict".split()  # the rest is computed
LEAST, NAN, FAR = 3, float("nan"), 0.2  # seeds of which a claim is made; differences above FAR are not told apart
MAIN, TEXTS = "raw/branch_s", ("README.md", "docs/results.md")  # the primary endpoint; what holds blocks of claims


def read_claims(path: str | Path = "results/claims.yaml") -> pd.DataFrame:
    """What is asked in a file of claims, each answered from its registry: a row per claim, with seeds, mean and
    half_width (paired, 95 % t), p by Holm ``among`` the claims of its ``data`` and ``family`` (the paper's own parts,
    or beyond them), visible (the smallest difference that these seeds would resolve with 80 % power at Holm's first
    and strictest level, 5 % over their number, were their scatter the true one; up to the next thousandth), reading
    and sentence; differences in 0..1. ``verdict``: is it among the few that the README begins with.
    Errors: ``ConfigError`` for a claim that lacks one of ``ASKED`` or whose arms no runs share."""
    asked = from_yaml(resolve(path).read_bytes(), str(path))
    for number, claim in enumerate(asked if isinstance(asked, list) else [{}], 1):
        if lacking := [name for name in ASKED if name not in claim]:
            raise ConfigError(f"{path}: claim {number} has no {lacking[0]}; it needs {', '.join(ASKED)}")
    read, families = cache(read_registry), Counter((claim["data"], claim["family"]) for claim in asked)
    scored = cache(lambda registry, grid, part: grid_scores(read(registry), grid, part=part))
    rows = [_measured(scored, claim, families[claim["data"], claim["family"]]) for claim in asked]
    claims = pd.DataFrame(asked)[ASKED].join(pd.DataFrame(rows))
    claims["p"] = claims.groupby(["data", "family"], sort=False)["p"].transform(holm)
    claims["reading"] = claims.apply(_reading, axis=1)
    return claims.assign(sentence=claims.apply(_sentence, axis=1))


def _measured(scored: Callable[..., pd.DataFrame], claim: dict[str, Any], family: int) -> dict[str, float]:
    """The paired difference of a claim, one of so many: seeds, mean, half_width, p (not corrected), visible."""
    protocol, name, *part = claim["endpoint"].split("/")
    try:
        scores = scored(claim["registry"], claim["grid"], part[0] if part else "val")
    except LookupError as error:
        raise ConfigError(f"claim {claim['question']!r}: {error.args[0]}") from error
    scores = scores[(scores[["protocol", "map", "class"]] == [protocol, name, "mean"]).all(axis=1)]
    of = {arm: (scores[[*claim[arm]]] == [*claim[arm].values()]).all(axis=1) for arm in ("first", "second")}
    arms = pd.concat([scores[chosen].assign(arm=arm) for arm, chosen in of.items()])
    gains = differences(arms, "arm", [("first", "second")], ["protocol", "map"], "iou").assign(claim=0)
    if gains.empty:
        raise ConfigError(f"claim {claim['question']!r}: no seed of grid {claim['grid']!r} has both arms")
    row, sd = mean_interval(gains, ["claim"], "iou").iloc[0], max(gains["iou"].std(), 1e-9)
    found = {"among": family, "seeds": (seeds := int(row["seeds"])), "mean": row["mean"]}
    if seeds < LEAST:
        return {**found, "half_width": NAN, "p": 1.0, "visible": NAN}
    level = 1 - 0.05 / family
    seen = bisect_left(range(1, 1000), True, key=lambda effect: seeds_needed(sd, effect / 1000, level=level) <= seeds)
    return {**found, "half_width": row["half_width"], "p": float(p_value(row)), "visible": (1 + seen) / 1000}


def _reading(claim: pd.Series) -> str:
    if claim["seeds"] < LEAST:
        return "too few seeds"
    return "not resolved" if claim["p"] > 0.05 else "higher" if claim["mean"] > 0 else "lower"


def _sentence(claim: pd.Series) -> str:
    """What the data support, and no more."""
    points, seeds = interval_text(pd.DataFrame([claim]), signed=True)[0], seed_count(pd.Series(claim["seeds"]))
    found = f"{endpoint_title(claim['endpoint'])} {points} points, {seeds}"
    if claim["seeds"] >= LEAST:
        found += f", p = {claim['p']:.2g} among {claim['among']} claims; visible: {visible_text(claim['visible'])}"
    said = {"higher": "it pays", "lower": "it costs", "not resolved": "**not confirmed** that it pays"}
    reading = said.get(claim["reading"], "cannot be judged")
    return f"{claim['data'].capitalize()}, {claim['question']}: {reading}: {found}."


def endpoint_title(endpoint: str) -> str:
    """An endpoint (protocol/map, /train for training images) as it is read."""
    protocol, name, *part = endpoint.split("/")
    return f"{short_title(name)} ({', '.join([protocol, *(['training images'] if part else [])])})"


def visible_text(seen: float) -> str:
    """A visible difference in points; far ones, of few seeds, are not told apart."""
    return "" if pd.isna(seen) else f"over {100 * FAR:.0f}" if seen > FAR else f"{100 * seen:.1f}"


def claims_table(claims: pd.DataFrame) -> pd.DataFrame:
    """Claims as they are read."""
    return pd.DataFrame({
        "what is added": claims["question"], "data": claims["data"],
        "family (claims)": claims["family"] + claims["among"].map(" ({})".format),
        "map": claims["endpoint"].map(endpoint_title), "seeds": claims["seeds"], "points": interval_text(claims, True),
        "p (Holm)": claims["p"].map("{:.2g}".format), "visible": claims["visible"].map(visible_text),
        "reading": claims["reading"],
    })  # fmt: skip


def write_claims(path: str | Path = "results/claims.yaml", texts: tuple[str | Path, ...] = TEXTS) -> list[str]:
    """Answer the claims anew, in their file and in the blocks of ``texts``: sentences (verdict), ``claims_table`` of
    ``MAIN`` alone (main claims) and of all (claims). Returns ``stale_figures`` of their registries."""
    claims = read_claims(path)
    kept = claims.round(5).astype(object).where(claims.notna(), None).to_dict("records")
    write_text(resolve(path), yaml.safe_dump(kept, allow_unicode=True, sort_keys=False, width=140))
    table = claims_table(claims)
    shown = {"main claims": table[claims["endpoint"] == MAIN].drop(columns="map"), "claims": table}
    blocks = {name: tabulate(t, "keys", "github", showindex=False, disable_numparse=True) for name, t in shown.items()}
    blocks["verdict"] = "\n".join(f"- {sentence}" for sentence in claims.loc[claims["verdict"], "sentence"])
    for text in map(resolve, texts):
        page = text.read_text()
        for name, block in blocks.items():
            page = re.sub(f"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>{block}\n\g<2>", page, flags=re.S)
        write_text(text, page)
    return [stale for folder in dict.fromkeys(claims["registry"]) for stale in stale_figures(folder)]


def stale_figures(folder: str | Path) -> list[str]:
    """Figures of a registry that draw runs which it no longer holds, or not all that it has of a case now."""
    tables, stale = read_registry(folder), []
    done = set(tables["runs"].query("state == 'done'")["run_id"])
    for path in sorted(resolve(folder).glob("figures/fig*.csv")):
        drawn = drawn_runs(path)
        cells = tables["grids"][tables["grids"]["grid"].isin(DRAWS[path.name[:4]].split())]
        cases = cells[cells["case"].isin(cells[cells["run_id"].isin(drawn)]["case"])]
        lacking = set(cases["run_id"]) & done - drawn if len(drawn) > 1 else set()  # an example is one run
        if drawn - done or lacking:
            stale.append(f"{folder}/figures/{path.stem}")
    return stale
