"""A run's folder: every file name in it, what state the run is in, and where its numbers come from."""

import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bidir.atomic import write_text
from bidir.config import REVISION, RunConfig, resolve

BUSY = "another process works on this run"
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy")


class Scores(NamedTuple):
    """``per_class``: (protocol, map, class) with iou, precision, recall, coverage in 0..1; class ``mean`` is
    their mean. The map ``agreement`` is Branch-S's prediction scored against Branch-C's in place of the mask.
    ``per_image``: pixels hit, true and predicted by (image, protocol, map, class)."""

    per_class: pd.DataFrame
    per_image: pd.DataFrame

    @classmethod
    def joined(cls, parts: dict[str, "Scores"]) -> "Scores":
        """Scores of several parts of the data, ``val`` and ``train``, told apart by the column ``part``."""
        tables = zip(*([table.assign(part=part) for table in scores] for part, scores in parts.items()), strict=True)
        return cls(*map(pd.concat, tables))

    def write(self, folder: Path) -> None:
        """``per_class.csv`` and ``per_image.csv``, in ``folder``."""
        for name, table in self._asdict().items():
            write_text(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.6f"))


class RunFolder:
    """``<runs_dir>/<run_id>``. A run is finished when DONE is there: its numbers are whole. The executed notebook is a
    view of them. FAILED holds the reason why the last attempt ended; the next attempt removes it."""

    def __init__(self, path: Path) -> None:
        self.path, self.run_id = path, path.name
        self.done, self.failed, self.provenance = path / "DONE", path / "FAILED", path / "run.json"
        self.checkpoint, self.metrics = path / "checkpoint.pt", path / "metrics.jsonl"
        self.notebook, self.output = path / "notebook.ipynb", path / "log.txt"

    @classmethod
    def of(cls, config: RunConfig, manifest: str) -> "RunFolder":
        """The folder of the run of ``config`` on the dataset with that manifest."""
        return cls(resolve(config.runs_dir) / config.run_id(manifest))

    @contextmanager
    def lock(self, patience: float = 30) -> Iterator[None]:
        """The right to work on this run, until the block or the process ends, however it ends.
        Errors: ``BlockingIOError`` if another process still has it after ``patience`` seconds."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / "LOCK", "w") as file:
            until = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > until:
                        why = f"{BUSY}; waited {patience:.0f} s"
                        raise BlockingIOError(error.errno, why, str(self.path)) from error
                    time.sleep(0.2)
            yield

    def state(self) -> str:
        """done | running | failed | interrupted | waiting (to be started)."""
        if self.done.is_file():
            return "done"
        if not self.path.is_dir():
            return "waiting"
        try:
            with self.lock(patience=0):
                return "failed" if self.failed.is_file() else "interrupted" if self.checkpoint.is_file() else "waiting"
        except BlockingIOError:
            return "running"

    def reason(self) -> str:
        """Why the run failed, or ""."""
        return self.failed.read_text().strip() if not self.done.is_file() and self.failed.is_file() else ""

    def start(self, config: RunConfig, manifest: str, classes: tuple[str, ...], machine: dict, step: int) -> None:
        """Make the folder, say where its numbers come from, drop rows logged after iteration ``step``: they will come
        again. ``machine``: what ran it. Errors: ``OSError`` if the folder cannot be written."""
        self.path.mkdir(parents=True, exist_ok=True)
        code, before = code_provenance(), self.facts()
        facts = {"run_id": self.run_id, "config": asdict(config), "dataset_manifest": manifest, "revision": REVISION}
        if step and before.get("git_commit") != code["git_commit"]:  # a run resumed with other code says so
            facts["earlier_commits"] = [*before.get("earlier_commits", []), before.get("git_commit")]
        self.update({**facts, "classes": list(classes), **code, **machine})
        self.failed.unlink(missing_ok=True)
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step))

    def facts(self) -> dict[str, Any]:
        """What is written of the run so far: its configuration, code, hardware, times, and at the end its scores."""
        return json.loads(self.provenance.read_text()) if self.provenance.is_file() else {}

    def update(self, facts: dict[str, Any]) -> None:
        """Add to ``facts()``."""
        write_text(self.provenance, json.dumps({**self.facts(), **facts}, indent=1) + "\n")

    def log(self, row: dict[str, Any]) -> None:
        """Append one row, with its step and kind (train | val)."""
        with open(self.metrics, "a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """The whole rows logged so far; a last line cut short by a kill is left out."""
        lines = self.metrics.read_text().splitlines(keepends=True) if self.metrics.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def last_step(self) -> int:
        """The iteration of the last whole row; 0 if there is none."""
        return self.last_row().get("step", 0)

    def last_row(self) -> dict[str, Any]:
        """The last whole row, without reading the others; {} if there is none."""
        try:
            with open(self.metrics, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
                rows = file.read().rpartition(b"\n")[0].splitlines()
        except FileNotFoundError:
            return {}
        return json.loads(rows[-1]) if rows else {}

    def scores(self, part: str | None = "val") -> Scores:
        """The final scores of a finished run on a part of the data (None: all); without rows where it has no masks."""
        how = {"dtype": {"image": str, "class": str}, "keep_default_na": False}  # also one called 0001, or NA
        how["na_values"] = dict.fromkeys(("iou", "precision", "recall", "coverage"), "")
        tables = [pd.read_csv(self.path / f"{name}.csv", **how) for name in Scores._fields]
        tables = [table.assign(part=table.get("part", "val")) for table in tables]  # older code scored nothing else
        return Scores(*(table[table["part"] == (part or table["part"])] for table in tables))

    def finish(self, scores: Scores, facts: dict[str, Any]) -> None:
        """Write the final scores, then DONE."""
        scores.write(self.path)
        self.update(facts)
        write_text(self.done, "")
        self.failed.unlink(missing_ok=True)


def code_provenance() -> dict[str, Any]:
    """Git commit, whether code that computes differs from it (None where git cannot say), versions."""
    changes = _git("status", "--porcelain", "--", "bidir")
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    dirty = None if changes is None else bool(changes)
    code = {"git_commit": _git("rev-parse", "HEAD"), "git_dirty": dirty, "python": platform.python_version()}
    return {**code, "versions": versions}


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).parents[2]
    result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None
