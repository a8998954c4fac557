"""Checkpoints of the reference implementation, as ours."""

import re

import pytest
import torch
from typer.testing import CliRunner

from bidir.apply.reference import import_reference
from bidir.cli import app
from bidir.config import RunConfig, WeightsError
from bidir.data.folders import VOC_CLASSES
from bidir.method.network import DualBranchNetwork
from bidir.run.checkpoint import load_network

ENCODER = {"patch_embed.proj": "patch_embed{s}.proj", "patch_embed.norm": "patch_embed{s}.norm", "norm": "norm{s}"}
BLOCK = {"norm1": "norm1", "norm2": "norm2", "attention.q": "attn.q", "attention.kv": "attn.kv",
         "attention.sr": "attn.sr", "attention.norm": "attn.norm", "attention.proj": "attn.proj", "mlp.fc1": "mlp.fc1",
         "mlp.fc2": "mlp.fc2", "mlp.dwconv": "mlp.dwconv.dwconv"}  # fmt: skip
HEADS = {"segmentation.fuse": "decoder.linear_fuse.conv", "segmentation.norm": "decoder.linear_fuse.bn",
         "segmentation.predict": "decoder.linear_pred", "affinity.mix": "attn_proj",
         "classification.classifier": "classifier"}  # fmt: skip


def reference_names(state, prefix=""):
    """Our state dict as the reference writes it, from its published names, module by module."""
    renamed = {}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        if module.startswith("segmentation.project."):
            new, value = f"decoder.linear_c{int(module[-1]) + 1}.proj", value.squeeze()
        elif module.startswith("encoder.stages."):
            stage, part = re.fullmatch(r"encoder\.stages\.(\d)\.(.+)", module).groups()
            stage = int(stage) + 1
            block = re.fullmatch(r"blocks\.(\d+)\.(.+)", part)
            new = f"block{stage}.{block[1]}.{BLOCK[block[2]]}" if block else ENCODER[part].format(s=stage)
            new = "encoder." + new
        else:
            new = HEADS[module]
        renamed[f"{prefix}{new}.{kind}"] = value.clone()
    return renamed


@pytest.fixture(scope="module")
def reference():
    config = RunConfig.from_parameters({"encoder": "mit_b0", "encoder_weights": "random"}, "voc")
    torch.manual_seed(1)
    network = DualBranchNetwork(config, 20).eval()
    for value in network.parameters():  # initial biases and norms would hide mistakes
        value.data.add_(0.05 * torch.randn_like(value))
    return config, network


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_reference_checkpoint_predicts_the_same(reference, tmp_path, prefix):
    _, network = reference
    torch.save(reference_names(network.state_dict(), prefix), tmp_path / "reference.pth")
    command = ["import", str(tmp_path / "reference.pth"), str(tmp_path / "ours.pt"), "-p", "encoder=mit_b0"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    ours, _, classes = load_network(tmp_path / "ours.pt")
    assert list(classes) == VOC_CLASSES
    image = 255 * torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        for mine, other in zip(ours(image, affinity=True), network(image, affinity=True), strict=True):
            torch.testing.assert_close(mine, other)


def test_what_does_not_map_is_listed(reference, tmp_path):
    config, network = reference
    state = reference_names(network.state_dict())
    state["decoder.linear_c5.proj.weight"] = state.pop("decoder.linear_c4.proj.weight")
    state["classifier.weight"] = state["classifier.weight"][:5]
    torch.save(state, tmp_path / "reference.pth")
    with pytest.raises(WeightsError) as error:
        import_reference(tmp_path / "reference.pth", tmp_path / "ours.pt", config, tuple(VOC_CLASSES))
    said = str(error.value)
    assert "missing segmentation.project.3.weight" in said
    assert "unexpected decoder.linear_c5.proj.weight" in said
    assert "classifier.weight: (5, 256, 1, 1) in the file, (20, 256, 1, 1) in the model" in said
    assert not (tmp_path / "ours.pt").exists()
    larger = config.replace(encoder="mit_b1")
    torch.save(reference_names(network.state_dict()), tmp_path / "reference.pth")
    with pytest.raises(WeightsError) as error:
        import_reference(tmp_path / "reference.pth", tmp_path / "ours.pt", larger, tuple(VOC_CLASSES))
    said = str(error.value)
    assert "encoder.patch_embed1.proj.weight: (32, 3, 7, 7) in the file, (64, 3, 7, 7) in the model" in said
    assert said.count("\n") > 100  # every one of them
