"""Reference checkpoints in, exports out."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
from typer.testing import CliRunner

from bidir import load_network, predict, tools
from bidir.cli import app
from bidir.config import ConfigError, RunConfig
from bidir.data import open_split
from bidir.data.voc import VOC_CLASSES
from bidir.exchange import export_model, import_reference
from bidir.model.network import DualBranchNetwork
from bidir.model.weights import WeightsError
from bidir.runs import save_checkpoint
from bidir.training import fit

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


def test_an_export_loads_back_and_its_card_tells_the_runs_numbers(quick, tmp_path):
    run = fit(quick.replace(iterations=2, supervision="c2s", runs_dir=str(tmp_path)), progress=False)
    out = export_model(run / "checkpoint.pt", tmp_path / "export")
    before, config, classes = load_network(run / "checkpoint.pt")
    after, same_config, same_classes = load_network(out)
    assert (config.identity(), classes) == (same_config.identity(), same_classes)
    assert not {"data_root", "runs_dir"} & json.loads((out / "config.json").read_text())["config"].keys()
    image = 255 * torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(before(image).segmentation_logits, after(image).segmentation_logits)
    facts, card = json.loads((run / "run.json").read_text()), (out / "README.md").read_text()
    assert f"| raw/branch_s | {100 * facts['results']['raw/branch_s']:.1f} |" in card
    assert facts["git_commit"] in card
    photo = open_split(config, "val").images[0]
    assert len(predict(out, photo, tmp_path / "masks")) == 1


def test_an_export_goes_to_the_hub_and_comes_back(quick, tmp_path, monkeypatch):
    """The hub's client is replaced by one that keeps what it is given."""
    torch.manual_seed(0)
    told = {"config": json.dumps(dataclasses.asdict(quick)), "classes": ["a", "b"], "step": 7}
    save_checkpoint(tmp_path / "checkpoint.pt", {"model": DualBranchNetwork(quick, 2).state_dict(), **told})
    hub = {}

    class Client:
        def create_repo(self, name, exist_ok):
            hub[name] = None

        def upload_folder(self, repo_id, folder_path):
            hub[repo_id] = shutil.copytree(folder_path, tmp_path / "hub")

    monkeypatch.setattr("huggingface_hub.HfApi", Client)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: hub[name])
    export_model(tmp_path / "checkpoint.pt", tmp_path / "export", "user/name")
    assert sorted(path.name for path in hub["user/name"].iterdir()) == ["README.md", "config.json", "model.safetensors"]
    network, _, classes = load_network("user/name")
    assert classes == ("a", "b")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(saved[name], value) for name, value in network.state_dict().items())
    monkeypatch.setattr(Client, "upload_folder", lambda *_, **__: 1 / 0)
    with pytest.raises(WeightsError, match=r"user/name: not uploaded .division by zero.; log in with"):
        export_model(tmp_path / "checkpoint.pt", tmp_path / "export", "user/name")


def test_what_is_no_export_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"no config\.json in it"):
        load_network(tmp_path)
    with pytest.raises(WeightsError, match="nobody/nothing could not be fetched from the hub"):
        load_network("nobody/nothing")
    (tmp_path / "config.json").write_text('{"model_type": "segformer"}')
    with pytest.raises(WeightsError, match="not written by bidir export"):
        load_network(tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        tools.import_(tmp_path / "a.pth", tmp_path / "b.pt", classes=tmp_path / "typo.txt")
