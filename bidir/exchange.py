"""Models in and out: checkpoints of the reference implementation, and exports that one line loads back."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from bidir.config import MACHINE_FIELDS, RunConfig
from bidir.files import write_bytes, write_text
from bidir.model.network import DualBranchNetwork
from bidir.model.weights import WeightsError, load_matching, load_tensors, our_name
from bidir.runs import load_checkpoint, save_checkpoint

REFERENCE = (  # names of the reference's branches -> ours; its encoder has SegFormer's own names
    (r"^decoder\.linear_c(\d)\.proj\.", lambda m: f"segmentation.project.{int(m[1]) - 1}."),
    (r"^decoder\.linear_fuse\.conv\.", "segmentation.fuse."),
    (r"^decoder\.linear_fuse\.bn\.", "segmentation.norm."),
    (r"^decoder\.linear_pred\.", "segmentation.predict."),
    (r"^attn_proj\.", "affinity.mix."),
    (r"^classifier\.", "classification.classifier."),
)


def reference_names(state: dict[str, Tensor]) -> dict[str, str]:
    """Our name -> the reference implementation's, of its state dict; names it should not have stay as they are."""
    names = {}
    for name in state:
        new = f"encoder.{our_name(name)}" if name.startswith("encoder.") else name
        for pattern, ours in REFERENCE:
            new = re.sub(pattern, ours, new)
        names[new] = name
    return names


def import_reference(path: str | Path, out: str | Path, config: RunConfig, class_names: tuple[str, ...]) -> Path:
    """A reference checkpoint as one of ours, at ``out``; ``config`` names its encoder and how it was trained.

    Errors: ``WeightsError`` that lists every name without a counterpart, as the file has it, and every shape that
    differs.
    """
    network = DualBranchNetwork(config.replace(encoder_weights="random"), len(class_names))
    theirs = load_tensors(Path(path))
    names = reference_names(theirs)
    state = {ours: theirs[name] for ours, name in names.items()}
    for name, value in state.items():
        if name.startswith("segmentation.project.") and value.dim() == 2:  # linear there, a 1x1 convolution here
            state[name] = value[:, :, None, None]
    load_matching(network, state, str(path), names)
    content = {"model": network.state_dict(), "config": json.dumps(asdict(config)), "classes": list(class_names)}
    save_checkpoint(Path(out), {**content, "step": config.iterations})
    return Path(out)


def export_model(checkpoint: str | Path, out: str | Path, push_to: str = "") -> Path:
    """Write ``model.safetensors``, ``config.json`` and a model card to the folder ``out``; returns it.

    ``load_network(out)`` loads it back. ``push_to``: a repository of the hub, ``user/name``, to upload it to.
    The card's results are those of the run that the checkpoint lies in. Errors: ``WeightsError``.
    """
    content, out = load_checkpoint(checkpoint), Path(out)
    run = Path(checkpoint).with_name("run.json")
    facts = json.loads(run.read_text()) if run.is_file() else {}
    config = {name: value for name, value in json.loads(content["config"]).items() if name not in MACHINE_FIELDS}
    tensors = {name: value.contiguous() for name, value in content["model"].items()}
    write_bytes(out / "model.safetensors", safetensors.torch.save(tensors, {"format": "pt"}))
    told = {"config": config, "classes": content["classes"], "step": content["step"]}
    write_text(out / "config.json", json.dumps(told, indent=1) + "\n")
    write_text(out / "README.md", model_card(config, content["classes"], facts))
    if push_to:
        push_model(out, push_to)
    return out


def model_card(config: dict[str, Any], classes: list[str], facts: dict[str, Any]) -> str:
    """The card of an export: intended use, data, settings, results with what they were measured on, licences."""
    scores = [f"| {name} | {100 * value:.1f} |" for name, value in facts.get("results", {}).items()
              if "/" in name and not name.endswith(("precision", "coverage"))]  # fmt: skip
    measured = (
        f"mIoU in percent on `{facts['evaluated_on']}` ({facts['val_images']} images), one run, seed {config['seed']}, "
        f"{facts['hardware']}, code {facts['git_commit']}.\n\n| protocol/map | mIoU |\n|---|---|\n" + "\n".join(scores)
        if scores
        else "Not measured by the code that wrote this card."
    )
    limited = config["encoder"].startswith("mit_") and config["encoder_weights"] != "random"
    weights = (
        "The ImageNet weights of Mix Transformers (`nvidia/mit-b*`) are for non-commercial use, and so is what starts "
        "from them."
        if limited
        else "Code: MIT. Mind the licences of the encoder's initial weights and of the training images."
    )
    axes = ("supervision", "object_aware_decoding", "propagation", "encoder", "encoder_weights", "iterations",
            "batch_size", "crop_size", "seed")  # fmt: skip
    source = "masks" if config["supervision"] == "full" else "image-level labels"
    images = facts.get("train_images", "unknown number of")
    settings = "\n".join(f"| {name} | {config[name]} |" for name in axes)
    return f"""---
library_name: bidir
license: {"other" if limited else "mit"}
tags: [image-segmentation, weakly-supervised]
---
# Weakly supervised segmentation, two branches that teach each other

A dual-branch network (BMP, IEEE TNNLS 2024, arXiv 2308.04949) trained from {source}.

```python
from bidir import load_network, predict

network, config, classes = load_network("this folder or its name on the hub")
predict("this folder or its name on the hub", "photos/", "masks/")
```

**Intended use**: research and teaching on weakly supervised segmentation; pseudo-masks for a second stage.
Not for decisions about people: masks are wrong where objects and their surroundings go together.

**Data**: `{config["dataset"]}`, list `{config["train_list"]}`, {images} images; classes: {", ".join(classes)}.

| setting | value |
|---|---|
{settings}

**Results**: {measured}

{weights}
"""


def push_model(folder: Path, repository: str) -> None:
    """Upload what ``export_model`` wrote to a repository of the hub, ``user/name``. Errors: ``WeightsError``."""
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise WeightsError("the hub needs its client: pip install 'bidir[hub]'") from error
    try:
        HfApi().create_repo(repository, exist_ok=True)
        HfApi().upload_folder(repo_id=repository, folder_path=str(folder))
    except Exception as error:  # the hub's client raises many kinds, most of them network errors
        raise WeightsError(f"{repository}: not uploaded ({error}); log in with `hf auth login`") from error
