"""Each loss against a formula worked by hand, its gradient, and its empty case."""

import math

import pytest
import torch

from bidir.method.losses import affinity_loss, classification_loss, dense_loss, foreground_target


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
