"""What is on when, what a step computes for it, and the loss it makes."""

from collections import Counter

import pytest
import torch

from bidir.config import RunConfig
from bidir.method.network import DualBranchNetwork
from bidir.method.propagation import segmentation_pseudo_label
from bidir.method.supervision import active, forward, loss_terms, make_targets, total_loss


@pytest.mark.parametrize(
    ("changes", "step", "expected"),
    [
        ({}, 99, (False, False, False, False, "par", False)),
        ({}, 100, (True, False, False, False, "par", False)),
        ({}, 150, (True, True, False, False, "bsp", False)),
        ({"supervision": "none"}, 400, (False, False, False, False, "bsp", False)),
        ({"supervision": "c2s", "propagation": "par"}, 400, (True, False, False, False, "par", False)),
        ({"supervision": "s2c"}, 400, (False, True, False, False, "bsp", False)),
        ({"supervision": "full"}, 0, (False, False, False, True, "par", False)),
        ({"lambda_s2c": 0.0}, 400, (True, False, False, False, "bsp", False)),
        ({"encoder": "mit_b0", "lambda_aff": 0.1, "propagation": "afa"}, 120, (True, False, True, False, "par", False)),
    ],
)
def test_what_is_on_when(changes, step, expected):
    assert tuple(active(RunConfig(**changes), step)) == expected


THREE = {"teacher_scales": (1.0, 0.5, 1.5), "teacher_flip": True}


@pytest.mark.parametrize(
    ("changes", "passes", "decoded"),
    [
        ({"supervision": "none"}, 1, 0),
        ({"supervision": "full"}, 1, 1),
        ({"supervision": "s2c"}, 1, 1),  # Y_s from the training pass, Branch-S looked at
        ({"supervision": "c2s", "propagation": "par"}, 1, 1),
        ({"supervision": "both", "propagation": "bsp"}, 1, 1),
        ({"supervision": "none", **THREE}, 1, 0),
        ({"supervision": "s2c", **THREE}, 2, 1),  # Y_s needs one plain pass
        ({"supervision": "c2s", "propagation": "par", **THREE}, 4, 1),  # seeds need the CAM alone
        ({"supervision": "c2s", "propagation": "bsp", **THREE}, 4, 4),
        ({"supervision": "both", "propagation": "bsp", **THREE}, 4, 4),  # Y_s comes with the seeds
        ({"supervision": "both", "propagation": "par", **THREE}, 4, 2),  # and needs no other scale
    ],
)
def test_only_what_a_step_uses_is_computed(quick, first_batch, changes, passes, decoded):
    """All passes of a step, the training pass among them: with one scale and no flip there is no other."""
    config = quick.replace(**changes)
    network, count, batch, on = DualBranchNetwork(config, 6), Counter(), first_batch(config), active(config, 39)
    network.register_forward_hook(lambda *_: count.update(["passes"]))
    network.segmentation.register_forward_hook(lambda *_: count.update(["decoded"]))
    targets = make_targets(network, forward(network, batch, config, on), batch, config, on)
    assert (count["passes"], count["decoded"]) == (passes, decoded)
    assert (targets.y_c is None) == (changes["supervision"] in ("none", "s2c"))
    assert (targets.y_s is None) == (changes["supervision"] not in ("s2c", "both"))


def test_the_training_pass_teaches_with_its_own_maps(quick, first_batch):
    """Y_s is the argmax of the very logits that are trained, in train mode: dropout and batch statistics in."""
    config = quick.replace(sigma_s=0.0)
    torch.manual_seed(0)
    network, batch, on = DualBranchNetwork(config, 6).train(), first_batch(config), active(config, 39)
    outputs = forward(network, batch, config, on)
    targets = make_targets(network, outputs, batch, config, on)
    inside = targets.y_s != 255
    assert torch.equal(targets.y_s[inside], outputs.segmentation_logits.argmax(1)[inside])
    assert outputs.segmentation_logits.requires_grad
    assert inside.float().mean() > 0.5


def test_a_warmed_branch_s_is_decoded_with_weight_0(quick, first_batch):
    config = quick.replace(warm_branch_s=True)
    torch.manual_seed(0)
    network, batch, on = DualBranchNetwork(config, 6), first_batch(config), active(config, 0)
    assert on.warm
    assert not active(config, config.c2s_start).warm
    outputs = forward(network, batch, config, on)
    terms = loss_terms(outputs, batch, make_targets(network, outputs, batch, config, on), config, on)
    total = total_loss(terms, config)
    assert total.item() == terms["cls"].item()
    total.backward()
    gradients = [parameter.grad for parameter in network.segmentation.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    assert network.segmentation.norm.num_batches_tracked == 1


def test_affinity_loss_and_afa_with_a_transformer(quick, first_batch):
    config = quick.replace(encoder="mit_b0", encoder_weights="random", propagation="afa", lambda_aff=0.1)
    torch.manual_seed(0)
    network, batch, on = DualBranchNetwork(config, 6), first_batch(config), active(config, 39)
    outputs = forward(network, batch, config, on)
    targets = make_targets(network, outputs, batch, config, on)
    terms = loss_terms(outputs, batch, targets, config, on)
    assert set(terms) == {"cls", "c2s", "s2c", "aff"}
    weights = {"cls": 1, "c2s": config.lambda_c2s, "s2c": config.lambda_s2c, "aff": config.lambda_aff}
    assert total_loss(terms, config).item() == pytest.approx(sum(weights[k] * v.item() for k, v in terms.items()))
    total_loss(terms, config).backward()
    assert network.affinity.mix.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("supervision", ["none", "c2s"])
def test_what_the_affinity_learns_from_holds_no_share_of_branch_s(quick, first_batch, supervision):
    """Nobody may have decoded Branch-S, and ``seed_share`` is for what BSP propagates."""
    config = quick.replace(supervision=supervision, encoder="mit_b0", encoder_weights="random", lambda_aff=0.1)
    network, batch, on = DualBranchNetwork(config, 6).eval(), first_batch(config), active(config, 39)
    outputs = forward(network, batch, config, on)
    own, mixed = (make_targets(network, outputs, batch, config.replace(seed_share=s), on) for s in (0.0, 0.5))
    assert torch.equal(own.tokens, mixed.tokens)
    assert supervision == "none" or not torch.equal(own.y_c, mixed.y_c)


def test_a_batch_without_a_confident_pixel_trains_on(quick, first_batch):
    config = quick.replace(sigma_c=1.0, sigma_s=20.0, par_normalized=True)
    network, batch, on = DualBranchNetwork(config, 6), first_batch(config), active(config, 39)
    outputs = forward(network, batch, config, on)
    targets = make_targets(network, outputs, batch, config, on)
    terms = loss_terms(outputs, batch, targets, config, on)
    assert terms["c2s"].item() == terms["s2c"].item() == 0
    total_loss(terms, config).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_an_average_teaches_from_the_image_before_its_colours_change(quick, first_batch):
    """Y_c and Y_s are those that the teacher's network makes of the clean image, whatever the pupil's weights are."""
    config = quick.replace(ema_teacher=True, ema_decay=0.9, color_jitter=0.5, sigma_s=0.0, mask_s2c_by_labels=True)
    batch, on = first_batch(config), active(config, 39)
    assert not torch.equal(batch.clean, batch.image)
    assert torch.equal(batch.clean, first_batch(config.replace(color_jitter=0.0)).image)
    torch.manual_seed(0)
    teacher = DualBranchNetwork(config, 6).eval()
    torch.manual_seed(1)
    pupil = DualBranchNetwork(config, 6)
    targets = make_targets(teacher, forward(pupil, batch, config, on), batch, config, on)
    plain = first_batch(config.replace(color_jitter=0.0))
    expected = make_targets(teacher, forward(teacher, plain, config, on), plain, config, on)
    assert torch.equal(targets.y_c, expected.y_c)
    assert torch.equal(targets.y_s, expected.y_s)


def test_y_s_for_losses_that_hold_background_keeps_to_the_classes_present(quick, batch_of):
    logits = torch.tensor(
        [[[[0.0, 2.0, 0.1]], [[1.0, 1.0, 0.0]], [[9.0, 0.0, 0.0]]]]
    )  # the class that shouts is absent
    batch = batch_of(torch.zeros(1, 3, 2, 6), torch.tensor([[1.0, 0.0]]))
    for kind, expected in (("cosa", [1, 0, 0]), ("cam", [1, 0, 0]), ("csrm", [1, 0, 0])):
        label = segmentation_pseudo_label(logits, batch, quick.replace(s2c_loss=kind, c2s_balance=True))
        assert label[0, 0].tolist() == expected
    even = batch_of(torch.zeros(1, 3, 2, 6), torch.ones(1, 2))
    doubtful = torch.zeros(1, 3, 1, 3)  # a third each
    assert (segmentation_pseudo_label(doubtful, even, quick.replace(s2c_loss="csrm")) == 255).all()
