import numpy as np
import pytest
import torch

from sonde_studies._language import language_model
from sonde_studies._plain_readings import PROMPTS, rows_of
from sonde_studies._questions import LONGEST, World, reading, words


@pytest.mark.slow
@pytest.mark.truth("the same items read one at a time")
def test_rows_are_in_the_order_of_the_items_though_prompts_differ_in_length():
    draw = np.random.default_rng(0)
    world = World.drawn(draw)
    questions = [world.question("first", 4, 0.6, draw) for _ in range(3)]
    items = [reading(q, mode, q.right) for q in questions for mode in PROMPTS]
    assert len({len(item["text"].split()) for item in items}) > 1
    model = language_model(words(), LONGEST, 0)
    together = rows_of(model, items)
    alone = [rows_of(model, [item]) for item in items]
    for site, rows in together.items():
        want = torch.cat([one[site] for one in alone])
        torch.testing.assert_close(rows, want, rtol=1e-4, atol=1e-5)
