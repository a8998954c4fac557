"""The dataset that a configuration names, and its parts."""

from bidir.data.open import open_split


def test_holdout_parts_the_training_list(voc):
    config = voc.replace(holdout=0.34)
    train, val = open_split(config, "train"), open_split(config, "val")
    assert sorted(train.names + val.names) == ["a", "b", "c"]
    assert len(val) == 1
