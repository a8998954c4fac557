"""A model to share: weights, configuration and card, which one line loads back."""

import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors.torch

from bidir.atomic import write_bytes, write_text
from bidir.config import MACHINE_FIELDS, ConfigError, WeightsError
from bidir.run.checkpoint import load_checkpoint, scored_weights
from bidir.run.folder import RunFolder

TOLD = ("supervision", "object_aware_decoding", "propagation", "encoder", "encoder_weights", "iterations",
        "batch_size", "crop_size", "seed")  # fmt: skip


def export_model(checkpoint: str | Path, out: str | Path, push_to: str = "") -> Path:
    """Write ``model.safetensors``, ``config.json`` and a model card to the folder ``out``; returns it.
    ``load_network(out)`` loads it back. ``push_to``: a repository of the hub, ``user/name``, to upload it to.
    The card's results are those of the run that the checkpoint lies in. Errors: ``ConfigError``, ``WeightsError``."""
    if push_to and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", push_to):
        raise ConfigError(f"push_to = {push_to!r}: needs to be a repository of the hub, user/name")
    content, out = load_checkpoint(checkpoint), Path(out)
    facts = RunFolder(Path(checkpoint).parent).facts()
    config = {name: value for name, value in json.loads(content["config"]).items() if name not in MACHINE_FIELDS}
    tensors = {name: value.contiguous() for name, value in scored_weights(content).items()}
    write_bytes(out / "model.safetensors", safetensors.torch.save(tensors, {"format": "pt"}))
    held = {"config": config, "classes": content["classes"], "step": content["step"]}
    write_text(out / "config.json", json.dumps(held, indent=1) + "\n")
    write_text(out / "README.md", model_card(config, content["classes"], facts))
    if push_to:
        push_model(out, push_to)
    return out


def model_card(config: dict[str, Any], classes: list[str], facts: dict[str, Any]) -> str:
    """The card of an export: intended use, data, settings, results with what they were measured on, licences."""
    scores = [f"| {name} | {100 * value:.1f} |" for name, value in facts.get("results", {}).items()
              if "/" in name and not name.endswith(("precision", "coverage"))]  # fmt: skip
    measured = "Not measured by the code that wrote this card."
    if scores:
        measured = f"mIoU in percent on `{facts['evaluated_on']}` ({facts['val_images']} images), one run, "
        measured += f"seed {config['seed']}, {facts['hardware']}, code {facts['git_commit']}.\n\n"
        measured += "\n".join(["| protocol/map | mIoU |", "|---|---|", *scores])
    weights = "Code: MIT. Mind the licences of the encoder's initial weights and of the training images."
    limited = config["encoder"].startswith("mit_") and config["encoder_weights"] != "random"
    if limited:
        weights = "The ImageNet weights of Mix Transformers (`nvidia/mit-b*`) are for non-commercial use, "
        weights += "and so is what starts from them."
    source = "masks" if config["supervision"] == "full" else "image-level labels"
    images = facts.get("train_images", "unknown number of")
    settings = "\n".join(f"| {name} | {config[name]} |" for name in TOLD)
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
        huggingface_hub.HfApi().create_repo(repository, exist_ok=True)
        huggingface_hub.HfApi().upload_folder(repo_id=repository, folder_path=str(folder))
    except Exception as error:  # the hub's client raises many kinds, most of them network errors
        raise WeightsError(f"{repository}: not uploaded ({error}); log in with `hf auth login`") from error
