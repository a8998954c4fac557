"""The registry: four tidy tables of all runs of a batch, rebuilt from run folders at any time."""

import gzip
import json
from pathlib import Path

import pandas as pd

from bidir.atomic import remove_drafts, write_bytes, write_text
from bidir.config import FIELDS, MACHINE_FIELDS, ConfigError, resolve, with_older
from bidir.run.folder import RunFolder
from bidir.study.parameters import meaning

Tables = dict[str, pd.DataFrame]  # a registry
SETTINGS = [name for name in FIELDS if name not in MACHINE_FIELDS]
FACTS = {
    "state": "done | failed | interrupted", "reason": "why a failed run ended",
    "evaluated_on": "list of the images scored", "train_images": "count", "val_images": "count",
    "seconds": "training with its validations, without the final evaluation",
    "seconds_per_step": "seconds / iterations", "peak_memory_mib": "largest memory, MiB: of the GPU, else resident",
    "hardware": "processor", "threads": "of a run", "python": "version", "torch": "version",
    "git_commit": "of the code", "git_dirty": "whether it was changed", "earlier_commits": "before a resume, if other",
    "revision": "of what the code computes: part of the run's id; 0 before there was one",
    "dataset_manifest": "digest of both splits", "classes_all": "names of the classes", "config": "JSON of settings",
}  # fmt: skip
WHOLE = [name for name in SETTINGS if FIELDS[name].annotation is int]
WHOLE += ["revision", "train_images", "val_images", "peak_memory_mib", "threads"]
SCHEMA: dict[str, dict[str, str]] = {  # table -> column -> meaning and unit
    "runs": {"run_id": "key of all tables", **FACTS, **{name: meaning(name) for name in SETTINGS}},
    "per_class": {"run_id": "", "part": "images scored: val | train",
        "protocol": "raw: one pass | ms: several scales with flips",
        "map": "cam, seed, y_c, y_s, branch_c, branch_s, or agreement (Branch-S scored against Branch-C)",
        "class": "background, each class, or mean: unweighted mean over the classes",
        "iou": "0..1 over the whole validation list; of class mean: mIoU", "precision": "0..1", "recall": "0..1",
        "coverage": "0..1, pixels that a pseudo-label does not ignore", "images": "count"},
    "per_step": {"run_id": "", "step": "optimiser steps done", "kind": "train | val (on eval_images images)",
        "name": "train: loss terms, grad_norm, lr, c2s_share and s2c_share (pixels that Y_c labels, that Y_s labels as "
        "foreground), gradient/TERM (its norm on the encoder), cosine/TERM/TERM; val: protocol/map is mIoU, "
        "protocol/map/precision, protocol/map/coverage",
        "value": "0..1, or a loss"},
    "per_image": {"run_id": "", "part": "val | train", "image": "name", "protocol": "", "map": "", "class": "",
        "hit": "pixels right", "true": "pixels of the class", "predicted": "pixels predicted as the class"},
    "grids": {"grid": "name in the grid file", "case": "what the cell sets", "seed": "", "run_id": "", "state": "now"},
}  # fmt: skip


def collect(paths: list[Path]) -> Tables:
    """The tables ``runs`` and, of finished runs, ``per_class``, ``per_step`` and ``per_image``, as ``SCHEMA`` says.
    Folders of runs that have not started are left out."""
    runs, parts = [], {name: [] for name in ("per_class", "per_step", "per_image")}
    for folder in map(RunFolder, paths):
        state, reason = folder.look()
        state = state if state in ("done", "failed") else "interrupted"
        facts = {} if reason.startswith("damaged: ") else folder.facts()
        if facts or reason:  # without facts it failed before its first iteration, or is damaged
            older = with_older(facts["config"]) if facts else {}
            settings = {name: older[name] for name in SETTINGS if facts}
            row = {"revision": 0, **facts, **settings, "run_id": folder.run_id, "state": state, "reason": reason,
                   "torch": facts.get("versions", {}).get("torch"), "classes_all": facts.get("classes"),
                   "config": json.dumps(settings) if facts else None}  # fmt: skip
            runs.append({name: _plain(row.get(name)) for name in SCHEMA["runs"]})
        if state == "done":
            rows = pd.DataFrame(folder.rows()).melt(["step", "kind"], var_name="name").dropna(subset="value")
            for name, table in {**folder.scores(None)._asdict(), "per_step": rows}.items():
                parts[name].append(table.assign(run_id=folder.run_id)[list(SCHEMA[name])])
    joined = {name: part or [pd.DataFrame(columns=list(SCHEMA[name]))] for name, part in parts.items()}
    joined = {name: pd.concat(part, ignore_index=True) for name, part in joined.items()}
    return {"runs": pd.DataFrame(runs, columns=list(SCHEMA["runs"])), **joined}


def write_registry(tables: Tables, out: str | Path) -> None:
    """Each table as parquet and CSV (the long ``per_image`` gzipped) in ``out``, and ``SCHEMA.md``."""
    remove_drafts(resolve(out), age=3600)
    others = {name: table for name, table in tables.items() if name != "runs"}
    runs = tables["runs"].astype(dict.fromkeys(WHOLE, "Int64"))  # also where an unfinished run has none
    for name, table in {**others, "runs": runs}.items():  # which says whose rows the others hold: it is written last
        write_bytes(resolve(out) / f"{name}.parquet", table.to_parquet(index=False))
        text, packed = table.to_csv(index=False, float_format="%.6g").encode(), name == "per_image"
        target = resolve(out) / f"{name}.csv{'.gz' if packed else ''}"
        write_bytes(target, gzip.compress(text, mtime=0) if packed else text)
    lines = [f"## {name}\n\n" + "".join(f"- `{c}`: {m}\n" if m else f"- `{c}`\n" for c, m in columns.items())
             for name, columns in SCHEMA.items()]  # fmt: skip
    write_text(resolve(out) / "SCHEMA.md", "# Tables of this registry\n\n" + "\n".join(lines))


def finished_runs(path: str | Path) -> tuple[set[str], str]:
    """The finished runs that a registry names, also where its writing was cut short, and the first of its files that
    is missing or cannot be read; "" if all are whole."""
    done, lost = set(), ""
    for name in SCHEMA:
        try:
            table = pd.read_parquet(resolve(path) / f"{name}.parquet")
            done |= set((table.query("state == 'done'") if "state" in table else table)["run_id"])
        except (OSError, ValueError, KeyError):
            lost = lost or f"{name}.parquet"
    return done, lost


def read_registry(path: str | Path) -> Tables:
    """The tables in ``path``. Errors: ``ConfigError`` that says how to make them."""
    try:
        tables = {name: pd.read_parquet(resolve(path) / f"{name}.parquet") for name in SCHEMA}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: lacking or damaged ({error}); `bidir sweep GRID --out {path}` writes it") from error
    runs = tables["runs"]
    older = [with_older(json.loads(text) if isinstance(text, str) else {}) for text in runs["config"]]  # NaN: none
    lacking = {name: [_plain(row[name]) for row in older] for name in SETTINGS if name not in runs}
    tables["runs"] = runs.assign(**lacking, **({} if "revision" in runs else {"revision": 0}))  # older code wrote none
    return tables


def grid_scores(tables: Tables, grid: str, table: str = "per_class", part: str = "val") -> pd.DataFrame:
    """The rows of ``table`` whose runs belong to ``grid``, with the runs' settings and the cell's name as ``case``; of
    scores those of a ``part`` of the data: val, or train.
    Errors: ``LookupError`` if no run of the grid is finished."""
    cells = tables["grids"].query("grid == @grid")[["run_id", "case"]]
    rows = cells.merge(tables[table], on="run_id").merge(tables["runs"][["run_id", *SETTINGS]], on="run_id")
    rows = rows[rows["part"] == part] if "part" in rows else rows
    if rows.empty:
        raise LookupError(f"grid {grid!r} holds no finished run; name it in the grid file and run bidir sweep")
    return rows


def _plain(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
