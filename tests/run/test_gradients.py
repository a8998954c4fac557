"""The gradient of each weighted term against a backward pass of its own."""

from itertools import combinations

import pytest
import torch

from bidir.method.network import DualBranchNetwork
from bidir.method.supervision import active, forward, loss_terms, make_targets
from bidir.run.step import term_gradients

STEP = 39
MODULES = ("encoder", "classification", "segmentation")


def made(config):
    torch.manual_seed(0)
    return DualBranchNetwork(config, 6).train()


def backward(config, batch, term, weight):
    """The gradients that ``weight`` times one term alone leaves in each module, flat: another pass, another way."""
    network, on = made(config), active(config, STEP)
    outputs = forward(network, batch, config, on)
    terms = loss_terms(outputs, batch, make_targets(network, outputs, batch, config, on), config, on)
    (weight * terms[term]).backward()
    return {
        module: torch.cat([
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
            for p in getattr(network, module).parameters()
            if p.requires_grad
        ]).double()
        for module in MODULES
    }  # fmt: skip


@pytest.mark.parametrize("plain", [True, False], ids=["plain decoder", "object-aware"])
def test_norms_and_cosines_are_those_of_backward_passes_apart(quick, first_batch, plain):
    config = quick.replace(sigma_s=0.0, lambda_s2c=0.3, lambda_c2s=0.7, object_aware_decoding=not plain)
    batch = first_batch(config)
    network = made(config)
    norms, cosines = term_gradients(network, batch, config, STEP)
    assert list(norms.index) == list(cosines.index) == list(cosines.columns) == ["cls", "c2s", "s2c"]
    assert list(norms.columns) == [*MODULES]
    alone = {t: backward(config, batch, t, w) for t, w in {"cls": 1.0, "c2s": 0.7, "s2c": 0.3}.items()}
    for term, modules in alone.items():
        for module, gradient in modules.items():
            assert norms.loc[term, module] == pytest.approx(gradient.norm().item(), rel=1e-4, abs=1e-9)
        assert norms.loc[term, "encoder"] > 0
        assert cosines.loc[term, term] == pytest.approx(1, abs=1e-5)
    for one, other in combinations(alone, 2):
        a, b = alone[one]["encoder"], alone[other]["encoder"]
        expected = ((a * b).sum() / (a.norm() * b.norm())).item()
        assert cosines.loc[one, other] == cosines.loc[other, one] == pytest.approx(expected, abs=1e-4)
    assert all(p.grad is None for p in network.parameters())


def test_each_teacher_leaves_its_own_branch_alone(quick, first_batch):
    """Exactly 0: C -> S does not reach Branch-C, S -> C does not reach Branch-S, nor does the classification loss."""
    config = quick.replace(sigma_s=0.0)
    norms, _ = term_gradients(made(config), first_batch(config), config, STEP)
    assert norms.loc["c2s", "classification"] == norms.loc["s2c", "segmentation"] == 0
    assert norms.loc["cls", "segmentation"] == 0
    assert norms.loc["c2s", "segmentation"] > 0
    assert norms.loc["s2c", "classification"] > 0


def test_a_teacher_that_says_nothing_moves_nothing(quick, first_batch):
    config = quick.replace(sigma_s=20.0)
    norms, cosines = term_gradients(made(config), first_batch(config), config, STEP)
    assert not norms.loc["s2c"].any()
    assert not cosines.loc["s2c"].any()
    assert [*term_gradients(made(config), first_batch(config), config, 0)[0].index] == ["cls"]
