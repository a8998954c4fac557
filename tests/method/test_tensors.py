"""Boxes, normalisation and batches."""

import torch

from bidir.method.tensors import Batch, box_mask, min_max


def test_min_max_sees_only_the_true_image():
    maps = torch.tensor([[[[0.0, 2.0], [4.0, 99.0]]]])
    real = torch.tensor([[[True, True], [True, False]]])
    torch.testing.assert_close(min_max(maps, real), torch.tensor([[[[0.0, 0.5], [1.0, 0.0]]]]))
    assert (min_max(torch.full((1, 1, 2, 2), 3.0), real) == 0).all()


def test_box_mask_takes_positions_whose_centre_is_inside():
    mask = box_mask(torch.tensor([[0, 4, 8, 12]]), (8, 16), (2, 4))
    assert mask.tolist() == [[[False, True, True, False]] * 2]


def test_a_batch_parts_into_pieces():
    batch = Batch(torch.rand(5, 3, 8, 8), torch.rand(5, 2), torch.tensor([[0, 0, 8, 8]] * 5), None, torch.arange(5), 2)
    pieces = batch.parts(2)
    assert [len(piece.image) for piece in pieces] == [2, 2, 1]
    assert torch.equal(torch.cat([piece.label for piece in pieces]), batch.label)
    assert torch.equal(torch.cat([piece.index for piece in pieces]), batch.index)
    assert batch.parts(0)[0] is batch
