"""A training step and an evaluation on fake CUDA tensors: no operation mixes devices, and none waits for the GPU.

A fake tensor has a device and a shape but no values: whatever would read a value back raises.
"""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from bidir.method.network import DualBranchNetwork, evaluating
from bidir.method.supervision import active, forward, labelled_shares, loss_terms, make_targets, total_loss
from bidir.method.tensors import Batch
from bidir.run.evaluation import MAPS, count_maps, predict_maps
from bidir.run.step import Health

TRANSFORMER = {"encoder": "mit_b0", "encoder_norm": "trained"}
WITH_AFFINITY = {**TRANSFORMER, "lambda_aff": 0.1}
THREE_SCALES = {"teacher_scales": (1.0, 0.5, 1.5), "teacher_flip": True}
VARIANTS = {
    "par": {"propagation": "par"}, "bsp": {"propagation": "bsp"}, "bsp, three scales": THREE_SCALES,
    "s2c alone": {"supervision": "s2c"}, "full": {"supervision": "full"},
    "probability": {"confidence": "probability", "mask_s2c_by_labels": True},
    "transformer": TRANSFORMER, "afa": {**WITH_AFFINITY, "propagation": "afa"},
    "afa, three scales": {**WITH_AFFINITY, "propagation": "afa", **THREE_SCALES},
    "bsp with affinity": WITH_AFFINITY,
}  # fmt: skip


def on_cuda(module: torch.nn.Module) -> torch.nn.Module:
    """The module with fake CUDA tensors in place of its parameters and buffers."""
    for part in module.modules():
        for name, value in [*part._parameters.items()]:
            if value is not None:
                fake = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                part._parameters[name] = torch.nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, value in [*part._buffers.items()]:
            if value is not None:
                part._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cuda")
    return module


def batch(size: int) -> Batch:
    def empty(*shape, dtype=torch.float32):
        return torch.empty(*shape, dtype=dtype, device="cuda")

    whole = torch.int64
    mask, index = empty(2, size, size, dtype=whole), torch.empty(2, dtype=whole)
    return Batch(empty(2, 3, size, size), empty(2, 6), empty(2, 4, dtype=whole), mask, index, 2)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_step_neither_mixes_devices_nor_waits(quick, changes):
    config = quick.replace(encoder_weights="random", c2s_start=0, s2c_start=0, propagation_start=0, **changes)
    network = DualBranchNetwork(config, 6)  # made before the mode: initial values are read while they are drawn
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_cuda(network).train()
        optimizer = torch.optim.AdamW(network.parameter_groups(config), lr=1e-4, fused=True)
        crops, on, health = batch(96), active(config, 30), Health(skips=False)
        outputs = forward(network, crops, config, on)
        targets = make_targets(network, outputs, crops, config, on)
        terms = loss_terms(outputs, crops, targets, config, on)
        loss = total_loss(terms, config)
        assert loss.device.type == "cuda"
        for parameter in network.parameters():  # autograd's engine asks for a real device
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), config.grad_clip)
        optimizer.step()
        health.look({"loss": loss, **terms, **labelled_shares(targets), "grad_norm": norm, "lr": 1e-4})
        assert all(flag.device.type == "cuda" for flag in health.broken.values())


SLOW = {"probability", "transformer", "afa", "afa, three scales", "s2c alone", "full"}
EVALUATED = [pytest.param(v, id=k, marks=[pytest.mark.slow] if k in SLOW else []) for k, v in VARIANTS.items()]


@pytest.mark.parametrize("changes", EVALUATED)
def test_an_evaluated_batch_is_read_back_once(quick, changes, monkeypatch):
    config = quick.replace(encoder_weights="random", **changes)
    network, read = DualBranchNetwork(config, 6), []
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = batch(80)
        wanted = {"raw": {*MAPS}, "ms": {*MAPS}}
        with evaluating(on_cuda(network)):
            maps = predict_maps(network, images, config, wanted)
        assert all(labels.device.type == "cuda" for labels in maps.values())
        monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: read.append(tensor.shape) or tensor)
        count_maps(maps, images.mask, 6)
    assert len(read) == 1
