"""Shared by the tests of the method."""

import pytest
import torch
from transformers import SegformerConfig, SegformerModel

from bidir.method.tensors import Batch


@pytest.fixture(scope="session")
def batch_of():
    """A batch of images, of their whole frame and of one class each if nothing else is said."""

    def made(image, label=None, box=None):
        count, (height, width) = len(image), image.shape[-2:]
        label = torch.ones(count, 1) if label is None else label
        box = torch.tensor([[0, 0, height, width]] * count) if box is None else box
        return Batch(image, label, box, None, torch.arange(count), max(1, int(label.sum(1).max())))

    return made


@pytest.fixture(scope="session")
def segformer():
    torch.manual_seed(0)
    model = SegformerModel(SegformerConfig(attn_implementation="eager")).eval()  # MiT-B0
    for name, value in model.named_parameters():  # its initial biases and norms would hide mistakes
        value.data.add_(0.05 * torch.randn_like(value))
        assert value.abs().sum() > 0, name
    return model


@pytest.fixture(scope="session")
def original_names():
    """Our state dict under the names of SegFormer's own files."""

    def renamed(state):
        names = {}
        for name, value in state.items():
            _, stage, rest = name.split(".", 2)
            part, _, rest = rest.partition(".")
            if part == "blocks":
                index, rest = rest.split(".", 1)
                rest = rest.replace("attention.", "attn.").replace("mlp.dwconv", "mlp.dwconv.dwconv")
                names[f"block{int(stage) + 1}.{index}.{rest}"] = value
            else:
                names[f"{part}{int(stage) + 1}.{rest}"] = value
        return names

    return renamed
