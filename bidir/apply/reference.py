"""Checkpoints of the reference implementation, as ours."""

import json
import re
from dataclasses import asdict
from pathlib import Path

from bidir.config import RunConfig
from bidir.method.network import DualBranchNetwork
from bidir.method.weights import State, load_matching, load_tensors, our_name
from bidir.run.checkpoint import save_checkpoint

REFERENCE = (  # names of the reference's branches -> ours; its encoder has SegFormer's own names
    (r"^decoder\.linear_c(\d)\.proj\.", lambda m: f"segmentation.project.{int(m[1]) - 1}."),
    (r"^decoder\.linear_fuse\.conv\.", "segmentation.fuse."),
    (r"^decoder\.linear_fuse\.bn\.", "segmentation.norm."),
    (r"^decoder\.linear_pred\.", "segmentation.predict."),
    (r"^attn_proj\.", "affinity.mix."),
    (r"^classifier\.", "classification.classifier."),
)


def reference_names(state: State) -> dict[str, str]:
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
    Errors: ``WeightsError`` that lists every name without a counterpart, as the file has it, and every other shape."""
    network = DualBranchNetwork(config.replace(encoder_weights="random"), len(class_names))
    theirs, out = load_tensors(Path(path)), Path(out)
    names = reference_names(theirs)
    state = {ours: theirs[name] for ours, name in names.items()}
    for name, value in state.items():
        if name.startswith("segmentation.project.") and value.dim() == 2:  # linear there, a 1x1 convolution here
            state[name] = value[:, :, None, None]
    load_matching(network, state, str(path), names)
    content = {"model": network.state_dict(), "config": json.dumps(asdict(config)), "classes": list(class_names)}
    save_checkpoint(out, {**content, "step": config.iterations})
    return out
