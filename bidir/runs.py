"""A run's folder: provenance, logged rows, checkpoint, and what state it is in."""

from __future__ import annotations

import fcntl
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bidir.config import ConfigError, RunConfig, resolve
from bidir.evaluation import Scores
from bidir.files import write_bytes, write_text
from bidir.model.network import DualBranchNetwork
from bidir.model.weights import WeightsError, from_hub, load_matching, load_tensors, read_plain

BUSY = "another process works on this run"
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy")


def provenance(device: torch.device) -> dict[str, Any]:
    """Git commit and state of the package's checkout, versions, hardware."""
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--", "bidir", "notebooks")),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
    }


def hardware(device: torch.device) -> str:
    """One line that names the processor a run used."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"CPU {model}, {os.cpu_count()} cores"


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).parents[1]
    result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None


class RunFolder:
    """``<runs_dir>/<run_id>``: run.json, metrics.jsonl, per_class.csv, per_image.csv, checkpoint.pt and, last, DONE.

    FAILED, if there, holds the reason why the last attempt ended; the next attempt removes it.
    """

    def __init__(self, config: RunConfig, manifest: str) -> None:
        self.run_id = config.run_id(manifest)
        self.path = resolve(config.runs_dir) / self.run_id
        self.done, self.checkpoint = self.path / "DONE", self.path / "checkpoint.pt"
        self.metrics, self.failed = self.path / "metrics.jsonl", self.path / "FAILED"
        self.writer = None  # of TensorBoard events, if asked for

    @contextmanager
    def lock(self, patience: float = 30) -> Iterator[None]:
        """The right to work on this run, until the block or the process ends, however it ends.

        Errors: ``BlockingIOError`` if another process still has it after ``patience`` seconds.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / "LOCK", "w") as file:
            until = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > until:
                        raise BlockingIOError(
                            error.errno, f"{BUSY}; waited {patience:.0f} s", str(self.path)
                        ) from error
                    time.sleep(0.2)
            yield

    def state(self) -> str:
        """done | running | failed | interrupted | waiting (to be started)."""
        if self.done.is_file():  # its notebook may have failed after that
            return "failed" if self.failed.is_file() else "done"
        if not self.path.is_dir():
            return "waiting"
        try:
            with self.lock(patience=0):
                return "failed" if self.failed.is_file() else "interrupted" if self.checkpoint.is_file() else "waiting"
        except BlockingIOError:
            return "running"

    def start(
        self, config: RunConfig, manifest: str, class_names: tuple[str, ...], device: torch.device, step: int
    ) -> None:
        """Make the folder, write run.json, drop rows logged after iteration ``step``: they will come again.

        Errors: ``OSError`` if the folder cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        facts = {"run_id": self.run_id, "config": asdict(config), "dataset_manifest": manifest}
        told, before = provenance(device), self.facts()
        if step and before.get("git_commit") != told["git_commit"]:  # a run resumed with other code says so
            facts["earlier_commits"] = [*before.get("earlier_commits", []), before.get("git_commit")]
        self.update({**facts, "classes": list(class_names), **told})
        self.failed.unlink(missing_ok=True)
        rows = [row for row in read_rows(self.metrics) if row["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(self.path / "tensorboard", purge_step=step + 1)

    def facts(self) -> dict[str, Any]:
        """What run.json says so far."""
        path = self.path / "run.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def update(self, facts: dict[str, Any]) -> None:
        """Merge ``facts`` into run.json."""
        write_text(self.path / "run.json", json.dumps({**self.facts(), **facts}, indent=1) + "\n")

    def log(self, row: dict[str, Any]) -> None:
        """Append one row, with its step and kind (train | val), to metrics.jsonl."""
        with open(self.metrics, "a") as file:
            file.write(json.dumps(row) + "\n")
        for name in (row.keys() - {"step", "kind"}) if self.writer else ():
            self.writer.add_scalar(f"{row['kind']}/{name}", row[name], row["step"])

    def finish(self, scores: Scores, facts: dict[str, Any]) -> None:
        """Write the final scores, then DONE."""
        scores.write(self.path)
        self.update(facts)
        if self.writer:
            self.writer.close()
        write_text(self.done, "")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics.jsonl; a last line cut short by a kill is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def last_step(path: Path) -> int:
    """The iteration of a metrics.jsonl's last whole row; 0 if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            rows = file.read().rpartition(b"\n")[0].splitlines()
    except FileNotFoundError:
        return 0
    return json.loads(rows[-1])["step"] if rows else 0


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values; atomic. Errors: ``OSError``, the previous file intact."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content, tensors on the CPU.

    Errors: ``WeightsError`` if the file is missing, damaged, holds code, or is no checkpoint of ours.
    """
    if not Path(path).is_file():
        raise WeightsError(f"{path}: no such checkpoint")
    content = read_plain(Path(path))
    missing = {"config", "classes", "model", "step"} - set(content if isinstance(content, dict) else ())
    if missing:
        raise WeightsError(f"{path}: not a checkpoint of this project (lacks {', '.join(sorted(missing))})")
    return content


def load_network(path: str | Path, device: str = "cpu") -> tuple[DualBranchNetwork, RunConfig, tuple[str, ...]]:
    """A trained network in eval mode, its configuration and its class names.

    ``path``: a checkpoint, a folder that ``export_model`` wrote, or the name of such a one on the hub (``user/name``).
    Errors: ``WeightsError``.
    """
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not Path(path).exists() and Path(path).suffix != ".pt"
    folder = from_hub(str(path)) if on_hub else Path(path)
    content = _exported(folder) if folder.is_dir() else load_checkpoint(folder)
    try:
        config = RunConfig.from_parameters(json.loads(content["config"]))
    except ConfigError as error:
        raise WeightsError(f"{path}: made by another version of this project ({error})") from error
    network = DualBranchNetwork(config.replace(encoder_weights="random"), len(content["classes"]))
    load_matching(network, content["model"], str(path))
    return network.to(device, memory_format=torch.channels_last).eval(), config, tuple(content["classes"])


def _exported(folder: Path) -> dict[str, Any]:
    """What ``load_checkpoint`` gives, of a folder that ``export_model`` wrote. Errors: ``WeightsError``."""
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder}: no config.json in it; give a checkpoint.pt or a folder that bidir export wrote")
    try:
        told = json.loads((folder / "config.json").read_text())
        told["config"]["supervision"], told["classes"]  # of the many files of that name, ours
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{folder}/config.json: not written by bidir export ({error!r})") from error
    return {**told, "config": json.dumps(told["config"]), "model": load_tensors(folder / "model.safetensors")}
