"""The confusion matrix and its scores against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score, precision_score, recall_score

from bidir.run.metrics import confusion, score_table


def test_scores_are_scikit_learns():
    random = np.random.default_rng(0)
    truth, prediction = random.integers(0, 4, (6, 10, 12)), random.integers(0, 4, (6, 10, 12))
    truth[random.random(truth.shape) < 0.1] = 255
    counts = 0
    for start in (0, 2, 4):  # streaming: the order and size of batches do not matter
        part = slice(start, start + 2)
        counts = counts + confusion(torch.tensor(prediction[part]), torch.tensor(truth[part]), 3).sum(0)
    flat_truth, flat_prediction = truth[truth != 255], prediction[truth != 255]
    np.testing.assert_array_equal(counts[:, :-1], confusion_matrix(flat_truth, flat_prediction))
    table = score_table(counts, ("a", "b", "c"))
    for column, score in (("iou", jaccard_score), ("precision", precision_score), ("recall", recall_score)):
        np.testing.assert_allclose(table[column][:4], score(flat_truth, flat_prediction, average=None))
        assert table[column][4] == pytest.approx(score(flat_truth, flat_prediction, average="macro"))


def test_ignored_predictions_count_for_coverage_alone():
    (counts,) = confusion(torch.tensor([[[0, 255, 1, 1]]]), torch.tensor([[[0, 0, 1, 255]]]), 1)
    table = score_table(counts, ("a",)).set_index("class")
    assert table["iou"].tolist() == [1, 1, 1]
    assert table["coverage"].tolist() == [0.5, 1, pytest.approx(2 / 3)]


def test_a_class_that_never_occurs_is_left_out_of_the_mean():
    (counts,) = confusion(torch.tensor([[[0, 1, 1, 0]]]), torch.tensor([[[0, 1, 0, 0]]]), 2)
    table = score_table(counts, ("a", "b")).set_index("class")
    assert math.isnan(table.loc["b", "iou"])
    assert table.loc["mean", "iou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
