"""Each loss against a formula worked by hand, its gradient, and its empty case."""

import math

import pytest
import torch

from bidir.method.losses import affinity_loss, classification_loss, dense_loss, feedback_loss, foreground_target


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_classification_loss_by_hand():
    logits = torch.tensor([[2.0, -1.0]], requires_grad=True)
    loss = classification_loss(logits, torch.tensor([[1.0, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(-(math.log(sigmoid(2)) + math.log(1 - sigmoid(-1))) / 2)
    assert logits.grad[0].tolist() == pytest.approx([(sigmoid(2) - 1) / 2, sigmoid(-1) / 2])


@pytest.fixture
def three_pixels():
    """Two labelled pixels of classes 0 and 2, one ignored whose logits are infinite."""
    logits = torch.tensor([[[[1.0, 0.0, math.inf]], [[0.5, -1.0, 0.0]], [[-2.0, 3.0, 0.0]]]], requires_grad=True)
    return logits, torch.tensor([[[0, 2, 255]]])


def test_cross_entropy_by_hand(three_pixels):
    logits, target = three_pixels
    loss = dense_loss(logits, target, "ce")
    loss.backward()
    columns, classes = [[1.0, 0.5, -2.0], [0.0, -1.0, 3.0]], [0, 2]
    softmax = [[math.exp(v) / sum(map(math.exp, column)) for v in column] for column in columns]
    assert loss.item() == pytest.approx(-sum(math.log(s[k]) for s, k in zip(softmax, classes, strict=True)) / 2)
    for pixel in range(2):
        expected = [(softmax[pixel][k] - (k == classes[pixel])) / 2 for k in range(3)]
        assert logits.grad[0, :, 0, pixel].tolist() == pytest.approx(expected, abs=1e-6)


def test_binary_cross_entropy_by_hand():
    logits = torch.tensor([[[[1.0, 0.0, 9.0]], [[0.5, -1.0, 9.0]], [[-2.0, 3.0, 9.0]]]], requires_grad=True)
    loss = dense_loss(logits, torch.tensor([[[0, 2, 255]]]), "bce")
    loss.backward()
    columns, classes, total = [[1.0, 0.5, -2.0], [0.0, -1.0, 3.0]], [0, 2], 0.0
    for pixel, (column, true) in enumerate(zip(columns, classes, strict=True)):
        total += sum(-math.log(sigmoid(v) if k == true else 1 - sigmoid(v)) for k, v in enumerate(column)) / 3
        expected = [(sigmoid(v) - (k == true)) / 6 for k, v in enumerate(column)]
        assert logits.grad[0, :, 0, pixel].tolist() == pytest.approx(expected, abs=1e-6)
    assert loss.item() == pytest.approx(total / 2)
    assert (logits.grad[..., 2] == 0).all()


@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_dense_loss_without_any_pixel_is_zero_with_zero_gradient(kind):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = dense_loss(logits, torch.full((2, 4, 4), 255), kind)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_foreground_target_drops_background_and_ignored():
    assert foreground_target(torch.tensor([[[0, 1, 3, 255]]])).tolist() == [[[255, 0, 2, 255]]]


def test_affinity_loss_by_hand():
    # tokens 0, 1 of class 1, token 2 of class 2, token 3 ignored; 0 and 2 too far apart to be a pair
    affinity = torch.tensor([[[0.9, 0.6, 0.2, 0.5]] * 4], requires_grad=True)
    near = torch.ones(4, 4, dtype=torch.bool)
    near[0, 2] = near[2, 0] = False
    loss = affinity_loss(affinity, torch.tensor([[1, 1, 2, 255]]), near)
    loss.backward()
    positive = [0.9, 0.6, 0.9, 0.6, 0.2]  # (0,0) (0,1) (1,0) (1,1) (2,2)
    negative = [0.2, 0.6]  # (1,2) (2,1)
    assert loss.item() == pytest.approx(0.5 * (sum(1 - a for a in positive) / 6 + sum(negative) / 3))
    assert affinity.grad[0, 0].tolist() == pytest.approx([-0.5 / 6, -0.5 / 6, 0, 0])
    assert affinity.grad[0, 1, 2].item() == pytest.approx(0.5 / 3)


def test_affinity_loss_without_any_pair_is_zero_with_zero_gradient():
    affinity = torch.rand(1, 4, 4, requires_grad=True)
    loss = affinity_loss(affinity, torch.full((1, 4), 255), torch.ones(4, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert (affinity.grad == 0).all()


def test_balanced_halves_weigh_alike_however_many_pixels_they_have():
    """Three pixels of background, one of class 1, one ignored: half of each mean; an empty half counts 0."""
    logits = torch.tensor([[[[2.0, 0.0, 1.0, -1.0, 9.0]], [[0.0, 1.0, 1.0, 0.5, 9.0]]]])
    target = torch.tensor([[[0, 0, 0, 1, 255]]])
    nll = [math.log(1 + math.exp(-d)) for d in (2.0, -1.0, 0.0, 1.5)]
    assert dense_loss(logits, target, "ce").item() == pytest.approx(sum(nll) / 4)
    assert dense_loss(logits, target, "ce", True).item() == pytest.approx(sum(nll[:3]) / 6 + nll[3] / 2)
    alone = target.masked_fill(target == 1, 255)
    assert dense_loss(logits, alone, "ce", True).item() == pytest.approx(sum(nll[:3]) / 6)


P_C = torch.tensor([[[[1.0, -2.0, 0.5]], [[0.0, 3.0, -1.0]]]])  # two classes, three pixels
P_S0 = torch.tensor([[[[0.5, 0.2, 1.5]]]])
CAM = torch.tensor([[[[0.9, 0.2, 0.0]], [[0.0, 0.0, 0.0]]]])  # the second class is absent
Y_S = torch.tensor([[[1, 0, 255]]])


def test_feedback_with_background_by_hand():
    said = {kind: feedback_loss(P_C, Y_S, P_S0, CAM, kind).item() for kind in ("ce", "cosa", "csrm", "cam")}
    foreground = math.log(math.exp(1) + math.exp(0)) - 1  # the paper: the first pixel alone, classes 1 and 2
    assert said["ce"] == pytest.approx(foreground)
    first = (-math.log(sigmoid(1)) - math.log(1 - sigmoid(0))) / 2
    second = (-math.log(1 - sigmoid(0)) - math.log(1 - sigmoid(3))) / 2  # background: no class; ReLU lifts -2 to 0
    assert said["cosa"] == pytest.approx((first + second) / 2)
    columns = [(0.5, 1.0, 0.0), (0.2, -2.0, 3.0)]
    nll = [math.log(sum(map(math.exp, c))) - c[k] for c, k in zip(columns, (1, 0), strict=True)]
    assert said["csrm"] == pytest.approx(sum(nll) / 2)
    floor = 1e-3  # of what the logarithm sees: the absent class
    nll = [-math.log(0.9 / (0.1 + 0.9 + floor)), -math.log(0.8 / (0.8 + 0.2 + floor))]
    assert said["cam"] == pytest.approx(sum(nll) / 2)


@pytest.mark.parametrize(("kind", "falls"), [("ce", False), ("cosa", True), ("cam", False)])
def test_background_in_the_loss_lowers_a_cam_unless_its_halves_weigh_alike(kind, falls):
    """A flat CAM, Y_s of one foreground pixel in ten: what plain binary cross-entropy says in sum is "less"."""
    cam = torch.full((1, 1, 1, 10), 0.5, requires_grad=True)
    y_s = torch.tensor([[[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]]])
    feedback_loss(cam, y_s, torch.zeros(1, 1, 1, 10), cam, kind).backward()
    assert (cam.grad.sum().item() > 1e-3) == falls
