"""Exports: loaded back the same, with a card that tells the run's numbers, by way of the hub too."""

import dataclasses
import json
import shutil

import pytest
import torch

from bidir.apply.export import export_model
from bidir.apply.predict import predict
from bidir.config import WeightsError
from bidir.data.open import open_split
from bidir.method.network import DualBranchNetwork
from bidir.run.checkpoint import load_network, save_checkpoint
from bidir.run.training import fit


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_an_export_loads_back_and_its_card_tells_the_runs_numbers(quick, tmp_path, ema_decay):
    """What is exported is what was scored: the average of the weights where the run kept one."""
    config = quick.replace(iterations=2, supervision="c2s", runs_dir=str(tmp_path), ema_decay=ema_decay)
    run = fit(config, progress=False)
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
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **how: hub[name])
    export_model(tmp_path / "checkpoint.pt", tmp_path / "export", "user/name")
    assert sorted(path.name for path in hub["user/name"].iterdir()) == ["README.md", "config.json", "model.safetensors"]
    network, _, classes = load_network("user/name")
    assert classes == ("a", "b")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(saved[name], value) for name, value in network.state_dict().items())
    monkeypatch.setattr(Client, "upload_folder", lambda *_, **__: 1 / 0)
    with pytest.raises(WeightsError, match=r"user/name: not uploaded .division by zero.; log in with"):
        export_model(tmp_path / "checkpoint.pt", tmp_path / "export", "user/name")
