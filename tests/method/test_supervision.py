"""What is on when, what a step computes for it, and the loss it makes."""

from collections import Counter

import pytest
import torch

from bidir.config import RunConfig
from bidir.method.network import DualBranchNetwork
from bidir.method.supervision import active, loss_terms, make_targets, total_loss


@pytest.mark.parametrize(
    ("changes", "step", "expected"),
    [
        ({}, 99, (False, False, False, False, "par")),
        ({}, 100, (True, False, False, False, "par")),
        ({}, 150, (True, True, False, False, "bsp")),
        ({"supervision": "none"}, 400, (False, False, False, False, "bsp")),
        ({"supervision": "c2s", "propagation": "par"}, 400, (True, False, False, False, "par")),
        ({"supervision": "s2c"}, 400, (False, True, False, False, "bsp")),
        ({"supervision": "full"}, 0, (False, False, False, True, "par")),
        ({"lambda_s2c": 0.0}, 400, (True, False, False, False, "bsp")),
        ({"encoder": "mit_b0", "lambda_aff": 0.1, "propagation": "afa"}, 120, (True, False, True, False, "par")),
    ],
)
def test_what_is_on_when(changes, step, expected):
    assert tuple(active(RunConfig(**changes), step)) == expected


@pytest.mark.parametrize(
    ("changes", "passes", "decoded"),
    [
        ({"supervision": "none"}, 0, 0),
        ({"supervision": "full"}, 0, 0),
        ({"supervision": "s2c"}, 1, 1),  # Y_s needs one plain pass
        ({"supervision": "c2s", "propagation": "par"}, 3, 0),  # seeds need the CAM alone
        ({"supervision": "c2s", "propagation": "bsp"}, 3, 3),
        ({"supervision": "both", "propagation": "bsp"}, 3, 3),  # Y_s comes with the seeds
        ({"supervision": "both", "propagation": "par"}, 3, 1),  # and needs no other scale
    ],
)
def test_only_what_a_step_uses_is_computed(quick, first_batch, changes, passes, decoded):
    config = quick.replace(**changes)
    network, count = DualBranchNetwork(config, 6), Counter()
    network.register_forward_hook(lambda *_: count.update(["passes"]))
    network.segmentation.register_forward_hook(lambda *_: count.update(["decoded"]))
    targets = make_targets(network, first_batch(config), config, active(config, 39))
    assert (count["passes"], count["decoded"]) == (passes, decoded)
    assert (targets.y_c is None) == (changes["supervision"] in ("none", "s2c"))
    assert (targets.y_s is None) == (changes["supervision"] not in ("s2c", "both"))


def test_affinity_loss_and_afa_with_a_transformer(quick, first_batch):
    config = quick.replace(encoder="mit_b0", encoder_weights="random", propagation="afa", lambda_aff=0.1)
    torch.manual_seed(0)
    network, batch, on = DualBranchNetwork(config, 6), first_batch(config), active(config, 39)
    targets = make_targets(network, batch, config, on)
    terms = loss_terms(network(batch.image, affinity=on.aff), batch, targets, config)
    assert set(terms) == {"cls", "c2s", "s2c", "aff"}
    weights = {"cls": 1, "c2s": config.lambda_c2s, "s2c": config.lambda_s2c, "aff": config.lambda_aff}
    assert total_loss(terms, config).item() == pytest.approx(sum(weights[k] * v.item() for k, v in terms.items()))
    total_loss(terms, config).backward()
    assert network.affinity.mix.weight.grad.abs().sum() > 0


def test_a_batch_without_a_confident_pixel_trains_on(quick, first_batch):
    config = quick.replace(sigma_c=99.0, sigma_s=99.0)
    network, batch, on = DualBranchNetwork(config, 6), first_batch(config), active(config, 39)
    targets = make_targets(network, batch, config, on)
    terms = loss_terms(network(batch.image), batch, targets, config)
    assert terms["c2s"].item() == terms["s2c"].item() == 0
    total_loss(terms, config).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_a_nan_names_its_term(quick):
    terms = {"cls": torch.tensor(0.3), "c2s": torch.tensor(float("nan"))}
    with pytest.raises(FloatingPointError, match="c2s = nan"):
        total_loss(terms, quick)
