"""A run's folder: every file name in it, what state the run is in, and where its numbers come from."""

import fcntl
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bidir.atomic import files_digest, remove_drafts, write_bytes, write_text
from bidir.config import REVISION, RunConfig, resolve

BUSY = "another process works on this run"
KINDS = {  # of the facts
    str: ("dataset_manifest", "python", "hardware", "evaluated_on"), str | None: ("git_commit",),
    int: ("revision", "threads", "train_images", "val_images", "peak_memory_mib"),
    int | float: ("seconds", "seconds_per_step"), list: ("classes", "earlier_commits"), dict: ("results", "versions"),
}  # fmt: skip
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
    """``<runs_dir>/<run_id>``. A run is finished when DONE is there and its numbers are those that DONE has the digests
    of; the executed notebook is a view of them. FAILED holds the reason why the last attempt ended; the next attempt
    removes it. LOCK is held by what computes the run, OWNER by what executes its notebook and writes its reason."""

    def __init__(self, path: Path) -> None:
        self.path, self.run_id = path, path.name
        self.done, self.failed, self.provenance = path / "DONE", path / "FAILED", path / "run.json"
        self.checkpoint, self.metrics = path / "checkpoint.pt", path / "metrics.jsonl"
        self.notebook, self.output = path / "notebook.ipynb", path / "log.txt"
        self.numbers = [self.provenance, self.metrics, *(path / f"{name}.csv" for name in Scores._fields)]

    def kept(self) -> dict[int, Path]:
        """The checkpoints that stay beside the last (``keep_every``), by iteration."""
        return {int(path.stem.rpartition("-")[2]): path for path in self.path.glob("checkpoint-*.pt")}

    def keep(self, step: int) -> None:
        """Keep what is in the checkpoint now, that of iteration ``step``."""
        write_bytes(self.path / f"checkpoint-{step}.pt", self.checkpoint.read_bytes())

    @classmethod
    def of(cls, config: RunConfig, manifest: str) -> "RunFolder":
        """The folder of the run of ``config`` on the dataset with that manifest."""
        return cls(resolve(config.runs_dir) / config.run_id(manifest))

    @contextmanager
    def lock(self, patience: float = 30, name: str = "LOCK") -> Iterator[None]:
        """The right to work on this run, until the block or the process ends, however it ends.
        Errors: ``BlockingIOError`` if another process still has it after ``patience`` seconds."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / name, "a") as file:
            until = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as held:
                    if time.monotonic() > until:
                        raise BlockingIOError(held.errno, f"{BUSY}; waited {patience:.0f} s", str(self.path)) from held
                    time.sleep(0.2)
            yield

    def state(self) -> str:
        """What ``look`` sees first."""
        return self.look()[0]

    def finished(self) -> bool:
        """Whether the run is done and its numbers are whole."""
        return self.done.is_file() and not self.damage()

    def damage(self) -> str:
        """The first file here that is not what a run writes, and why; "" if all are."""
        stats = [file.stat() if file.exists() else None for file in (self.path, self.done, *self.numbers)]
        return _damage(self.path, tuple(stat and (stat.st_ctime_ns, stat.st_size) for stat in stats))

    def look(self) -> tuple[str, str]:
        """The state, done | running | failed (damaged, too) | interrupted | waiting (to be started), and why: of a
        failure, which file is damaged and how, what a finished run lacks beside its numbers; or "". Only reads."""
        try:
            if not os.path.lexists(self.path):
                return "waiting", ""
            damage = self.damage()
            if self.done.is_file() and not damage:
                return "done", "" if self.checkpoint.is_file() else "checkpoint.pt is gone; its numbers are whole"
            for lock in filter(Path.is_file, (self.path / "LOCK", self.path / "OWNER")):
                with open(lock) as file:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if damage:
                return "failed", f"damaged: {damage}; --retry-failed mends what it can"
            if self.failed.is_file():
                return "failed", self.failed.read_text(errors="replace").strip()
            return "interrupted" if self.checkpoint.is_file() else "waiting", ""
        except BlockingIOError:
            return "running", ""
        except OSError as error:
            return "failed", f"damaged: {error}"

    def start(self, config: RunConfig, manifest: str, classes: tuple, machine: dict, step: int, rows: list) -> None:
        """Make the folder, say where its numbers come from, go back to the ``rows`` of iteration ``step``, those of its
        checkpoint. ``machine``: what runs it. Errors: ``OSError``: cannot be written."""
        self.path.mkdir(parents=True, exist_ok=True)
        remove_drafts(self.path)
        self.done.unlink(missing_ok=True)
        code, before = code_provenance(), self.facts()
        facts = {"run_id": self.run_id, "config": asdict(config), "dataset_manifest": manifest, "revision": REVISION}
        if step and before.get("git_commit") != code["git_commit"]:  # a run resumed with other code says so
            facts["earlier_commits"] = [*before.get("earlier_commits", []), before.get("git_commit")]
        self.update({**facts, "classes": list(classes), **code, **machine})
        self.failed.unlink(missing_ok=True)
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def facts(self) -> dict[str, Any]:
        """What is written of the run so far: its configuration, code, hardware, times, and at the end its scores; {} if
        nothing is, or nothing that can be read."""
        try:
            facts = json.loads(self.provenance.read_bytes())
            return facts if isinstance(facts, dict) else {}
        except (OSError, ValueError):
            return {}

    def update(self, facts: dict[str, Any]) -> None:
        """Add to ``facts()``."""
        write_text(self.provenance, json.dumps({**self.facts(), **facts}, indent=1) + "\n")

    def log(self, row: dict[str, Any]) -> None:
        """Append one row, with its step and kind (train | val)."""
        with open(self.metrics, "a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """The whole rows logged so far; a last line cut short by a kill is left out, and so is what is no row."""
        lines = self.metrics.read_bytes().splitlines(keepends=True) if self.metrics.is_file() else []
        return [row for line in lines if line.endswith(b"\n") and (row := _row(line))]

    def last_step(self) -> int:
        """The iteration of the last whole row; 0 if there is none."""
        return self.last_row().get("step", 0)

    def last_row(self) -> dict[str, Any]:
        """The last whole row, without reading the others; {} if there is none."""
        try:
            with open(self.metrics, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
                return _row(file.read().rpartition(b"\n")[0].rpartition(b"\n")[2])
        except OSError:
            return {}

    def scores(self, part: str | None = "val") -> Scores:
        """The final scores of a finished run on a part of the data (None: all); without rows where it has no masks."""
        how = {"dtype": {"image": str, "class": str}, "keep_default_na": False}  # also one called 0001, or NA
        how["na_values"] = dict.fromkeys(("iou", "precision", "recall", "coverage"), "")
        tables = [pd.read_csv(self.path / f"{name}.csv", **how) for name in Scores._fields]
        return Scores(*(table[table["part"] == (part or table["part"])] for table in tables))

    def finish(self, scores: Scores, facts: dict[str, Any]) -> None:
        """Write the final scores, then DONE, which holds the digests of all numbers, for ``sha256sum -c``."""
        scores.write(self.path)
        self.update(facts)
        write_text(self.done, "".join(f"{files_digest(path)}  {path.name}\n" for path in self.numbers))
        self.failed.unlink(missing_ok=True)


@lru_cache(100_000)  # by when its files were last changed: who watches runs asks every second
def _damage(path: Path, _: tuple) -> str:
    folder, at = RunFolder(path), path
    try:
        done = os.listdir(path) and folder.done.is_file()
        at = folder.done
        held = {name: digest for digest, name in map(str.split, at.read_text().splitlines())} if done else {}
        for at in folder.numbers if done else ():
            if files_digest(at) != held.get(at.name):
                raise ValueError("not what DONE holds the digest of")
        at = folder.provenance
        if done or at.is_file():
            facts = json.loads(at.read_bytes())
            config, manifest = RunConfig.from_stored(facts["config"]), facts["dataset_manifest"]
            if facts["revision"] == REVISION and not config.initial and config.run_id(manifest) != path.name:
                raise ValueError("settings of another run")
            for kind, names in KINDS.items():
                if wrong := [name for name in names if name in facts and not isinstance(facts[name], kind)]:
                    raise ValueError(f"{wrong[0]} = {facts[wrong[0]]!r:.60}")
    except Exception as error:  # a file can hold anything
        return f"{at}: {' '.join(str(error).split()) or type(error).__name__}"
    return ""


def _row(line: bytes) -> dict[str, Any]:
    """A row of ``metrics.jsonl``; {} if it is none."""
    try:
        row = json.loads(line)
        return row if isinstance(row["step"], int) else {}
    except (ValueError, TypeError, KeyError):
        return {}


def code_provenance() -> dict[str, Any]:
    """Git commit, whether code that computes differs from it (None where git cannot say), versions."""
    changes = _git("status", "--porcelain", "--", "bidir")
    code = {"git_commit": _git("rev-parse", "HEAD"), "git_dirty": None if changes is None else bool(changes)}
    return {**code, "python": platform.python_version(), "versions": {name: version(name) for name in PACKAGES}}


def _git(*arguments: str) -> str | None:
    git = ["git", "-C", Path(__file__).parents[2], *arguments]
    result = subprocess.run(git, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None
