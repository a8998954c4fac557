"""Checkpoints: everything that the next iteration depends on, written whole; and trained networks loaded from them."""

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import torch

from bidir.atomic import write_bytes
from bidir.config import ConfigError, RunConfig, WeightsError, resolve
from bidir.method import distributed
from bidir.method.network import DualBranchNetwork
from bidir.method.weights import from_hub, load_matching, load_tensors, read_plain
from bidir.run.step import Learner

MARK = b"bidir-sha256:"  # behind what torch.save wrote, before the digest of that; torch.load reads past both
REMEDY = "put back a copy of it, or remove it and the run starts anew"
HEADS = {"classification.classifier.weight", "segmentation.predict.weight", "segmentation.predict.bias"}  # by class


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values, and their digest; atomic. Errors: ``OSError``, the previous file intact."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue() + MARK + hashlib.sha256(buffer.getbuffer()).hexdigest().encode())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content, tensors on the CPU.
    Errors: ``WeightsError`` if the file is missing, damaged, holds code, or is no checkpoint of ours."""
    try:
        body, _, digest = Path(path).read_bytes().rpartition(MARK)
    except OSError as error:
        raise WeightsError(f"{path}: no such checkpoint, or it cannot be read ({error})") from error
    if body and hashlib.sha256(body).hexdigest().encode() != digest:  # older ones have none
        raise WeightsError(f"{path}: damaged, its digest is another; {REMEDY}")
    content = read_plain(Path(path), f"; {REMEDY}")
    if missing := {"config", "classes", "model", "step"} - set(content if isinstance(content, dict) else ()):
        raise WeightsError(f"{path}: not a checkpoint of this project (lacks {', '.join(sorted(missing))})")
    return content


def save_state(path: Path, learner: Learner, facts: dict[str, Any]) -> None:
    """What a run goes on from, as tensors and plain values, beside ``facts``: step, config (JSON), classes."""
    network, _, optimizer, average, accelerator = learner
    held = {"average": average.module.state_dict()} if average else {}
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    rng = distributed.gathered({"cpu": torch.get_rng_state(), **cuda})
    if accelerator.is_main_process:
        save_checkpoint(path, {
            **facts, **held, "model": network.state_dict(), "optimizer": optimizer.state_dict(), "rng": rng,
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {},
        })  # fmt: skip


def resume(path: Path, learner: Learner) -> tuple[int, list[dict]]:
    """Restore weights, their average, optimiser, loss scale and random state; returns the iterations done, 0 without a
    checkpoint, and the rows logged until then. Errors: ``WeightsError``."""
    if not path.is_file():
        return 0, []
    state, (network, _, optimizer, average, accelerator) = load_checkpoint(path), learner
    try:
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
        return int(state["step"]), state["rows"]
    except Exception as error:  # whatever a file can hold
        raise WeightsError(f"{path}: no run can go on from it ({error!r:.300}); {REMEDY}") from error


def scored_weights(content: dict[str, Any]) -> dict[str, Any]:
    """Those of a checkpoint that are scored: the average if it holds one."""
    return content.get("average", content["model"])


def load_network(path: str | Path, averaged: bool = True) -> tuple[DualBranchNetwork, RunConfig, tuple[str, ...]]:
    """A trained network in eval mode, its configuration and its class names; with the average of its weights if the
    run kept one, or, not ``averaged``, as the last step left them.
    ``path``: a checkpoint, a folder by ``export_model``, or its hub name, user/name. Errors: ``WeightsError``."""
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not Path(path).exists() and Path(path).suffix != ".pt"
    folder = from_hub(str(path)) if on_hub else Path(path)
    content = _exported(folder) if folder.is_dir() else load_checkpoint(folder)
    try:
        config, classes = RunConfig.from_stored(json.loads(content["config"])), tuple(content["classes"])
    except (ConfigError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: made by another version of this project, or damaged ({error})") from error
    network = DualBranchNetwork(config.replace(encoder_weights="random"), len(classes))
    load_matching(network, scored_weights(content) if averaged else content["model"], str(path))
    return network.to(memory_format=torch.channels_last).eval(), config, classes


def begin_from(network: DualBranchNetwork, config: RunConfig, classes: tuple[str, ...]) -> dict[str, list[str]]:
    """Give ``network`` the weights of the model ``config.initial``, those of a class where that model knows its name.
    Returns the classes ``kept``, and the classes and tensors that stay ``fresh``.
    Errors: ``WeightsError`` if it holds another encoder or is no whole model."""
    trained, other, theirs = load_network(resolve(config.initial))
    if other.encoder != config.encoder:
        held = f"holds {other.encoder}, encoder = {config.encoder!r} is another"
        raise WeightsError(f"initial = {config.initial}: {held}")
    state = trained.state_dict()
    kept, fresh = [name for name in classes if name in theirs], [name for name in classes if name not in theirs]
    for name, own in network.state_dict().items():  # shares its memory with the network
        if name in HEADS:
            first = len(own) - len(classes)  # Branch-S has the background before them
            own[:first] = state[name][:first]
            for i, known in enumerate(classes):
                if known in theirs:
                    own[first + i] = state[name][first + theirs.index(known)]
        elif name in state:
            own.copy_(state[name])
        else:
            fresh.append(name)
    return {"kept": kept, "fresh": fresh}


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
