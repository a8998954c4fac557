"""Creatures and their habitats."""

import numpy as np

from bidir.data.make.creatures import CREATURES, HABITATS, draw_creature, draw_habitat


def test_habitats_and_coats_are_what_they_say():
    assert {habitat for _, habitat in CREATURES.values()} == set(HABITATS)
    alike = [
        draw_creature("lion", 60, (30, 30), 30, 1.0, similarity, np.random.default_rng(i))[30, 30, :3]
        for similarity in (0.0, 1.0)
        for i in range(20)
    ]
    spread = np.std(alike[:20], 0).mean(), np.std(alike[20:], 0).mean()
    assert spread[0] < spread[1]  # own colour: nearly fixed; shared colours: vary
    assert draw_habitat("snow", 64, np.random.default_rng(0))[0].mean() > 180
