"""A generator that is a function of (seed, stage) and leaves torch's own alone."""

import torch

from elm_nni.seeding import seeded


def test_the_same_seed_and_stage_draw_the_same_and_the_outer_generator_goes_on() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = torch.rand(1)
    draws = []
    for seed, stage in ((0, "a"), (0, "a"), (0, "b"), (1, "a")):
        with seeded(seed, stage):
            draws.append(float(torch.rand(1)))
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)
