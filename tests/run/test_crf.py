"""The dense CRF, and the probabilities it starts from."""

import sys

import numpy as np
import pytest
import torch

from bidir.config import ConfigError
from bidir.run.crf import dense_crf, load_crf, probabilities


def test_the_crf_follows_the_edges_of_the_image():
    """Two flat halves, a fifth of the scores wrong at random: the field finds the halves."""
    random = np.random.default_rng(0)
    truth = np.zeros((40, 60), int)
    truth[:, 25:] = 1
    image = torch.tensor(np.where(truth, 200.0, 40.0), dtype=torch.float32).expand(1, 3, 40, 60)
    noisy = np.where(random.random(truth.shape) < 0.2, 1 - truth, truth)
    scores = torch.tensor(np.stack([0.3 + 0.4 * (noisy == k) for k in (0, 1)]), dtype=torch.float32)[None]
    assert (scores.argmax(1)[0].numpy() != truth).mean() > 0.15
    np.testing.assert_array_equal(dense_crf(image, scores)[0].numpy(), truth)


def test_probabilities_follow_the_loss(quick):
    logits = torch.tensor([2.0, 0.0, -1.0]).view(1, 3, 1, 1)
    sigmoids = np.array([1 / (1 + np.exp(-v)) for v in (2, 0, -1)])
    exponentials = np.exp([2, 0, -1])
    found = {kind: probabilities(logits, quick.replace(c2s_loss=kind)).flatten().numpy() for kind in ("bce", "ce")}
    np.testing.assert_allclose(found["bce"], sigmoids / sigmoids.sum(), rtol=1e-5)
    np.testing.assert_allclose(found["ce"], exponentials / exponentials.sum(), rtol=1e-5)


def test_a_crf_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(ConfigError, match="protocol = 'crf' needs pydensecrf: pip install"):
        load_crf()
