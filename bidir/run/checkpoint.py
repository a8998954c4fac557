"""Checkpoints: everything that the next iteration depends on, written whole; and trained networks loaded from them."""

import io
import json
import re
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from bidir.atomic import write_bytes
from bidir.config import ConfigError, RunConfig, WeightsError
from bidir.method import distributed
from bidir.method.network import DualBranchNetwork
from bidir.method.weights import from_hub, load_matching, load_tensors, read_plain


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values; atomic. Errors: ``OSError``, the previous file intact."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content, tensors on the CPU.
    Errors: ``WeightsError`` if the file is missing, damaged, holds code, or is no checkpoint of ours."""
    if not Path(path).is_file():
        raise WeightsError(f"{path}: no such checkpoint")
    content = read_plain(Path(path))
    if missing := {"config", "classes", "model", "step"} - set(content if isinstance(content, dict) else ()):
        raise WeightsError(f"{path}: not a checkpoint of this project (lacks {', '.join(sorted(missing))})")
    return content


def save_state(
    path: Path,
    network: DualBranchNetwork,
    optimizer: Optimizer,
    accelerator: Accelerator,
    facts: dict[str, Any],
    average: AveragedModel | None = None,
) -> None:
    """What a run goes on from, as tensors and plain values, beside ``facts``: step, config (JSON), classes."""
    held = {"average": average.module.state_dict()} if average else {}
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    rng = distributed.gathered({"cpu": torch.get_rng_state(), **cuda})
    if accelerator.is_main_process:
        save_checkpoint(path, {
            **facts, **held, "model": network.state_dict(), "optimizer": optimizer.state_dict(), "rng": rng,
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {},
        })  # fmt: skip


def resume(
    path: Path,
    network: DualBranchNetwork,
    optimizer: Optimizer,
    accelerator: Accelerator,
    average: AveragedModel | None = None,
) -> int:
    """Restore weights, optimiser, loss scale and random state; returns the iterations done, 0 without a checkpoint."""
    if not path.is_file():
        return 0
    state = load_checkpoint(path)
    network.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if average:
        average.module.load_state_dict(state["average"])
        average.n_averaged.fill_(state["step"])
    if len(state["rng"]) == accelerator.num_processes:  # else dropout goes on from the seeds of this start
        own = state["rng"][accelerator.process_index]
        torch.set_rng_state(own["cpu"])
        if "cuda" in own and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["cuda"])
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(state["scaler"])
    return state["step"]


def load_network(path: str | Path, device: str = "cpu") -> tuple[DualBranchNetwork, RunConfig, tuple[str, ...]]:
    """A trained network in eval mode, its configuration and its class names.
    ``path``: a checkpoint, a folder by ``export_model``, or its hub name, user/name. Errors: ``WeightsError``."""
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not Path(path).exists() and Path(path).suffix != ".pt"
    folder = from_hub(str(path)) if on_hub else Path(path)
    content = _exported(folder) if folder.is_dir() else load_checkpoint(folder)
    try:
        config = RunConfig.from_stored(json.loads(content["config"]))
    except ConfigError as error:
        raise WeightsError(f"{path}: made by another version of this project ({error})") from error
    network = DualBranchNetwork(config.replace(encoder_weights="random"), len(content["classes"]))
    load_matching(network, content.get("average", content["model"]), str(path))
    return network.to(device, memory_format=torch.channels_last).eval(), config, tuple(content["classes"])


def _exported(folder: Path) -> dict[str, Any]:
    """What ``load_checkpoint`` gives, of a folder that ``export_model`` wrote. Errors: ``WeightsError``."""
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder}: no config.json in it; give a checkpoint.pt or a folder that bidir export wrote")
    try:
        held = json.loads((folder / "config.json").read_text())
        held["config"]["supervision"], held["classes"]  # of the many files of that name, ours
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{folder}/config.json: not written by bidir export ({error!r})") from error
    return {**held, "config": json.dumps(held["config"]), "model": load_tensors(folder / "model.safetensors")}
