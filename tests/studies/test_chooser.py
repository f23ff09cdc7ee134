"""Answers of pairs, read from the inputs alone."""

import pytest
import torch

from sonde_studies._chooser import MANNERS, OBJECTS, choice_pairs, trained_chooser


@pytest.mark.truth("objects and queries decoded from the inputs, row by row")
def test_the_expected_object_is_the_base_object_that_the_source_queries():
    base, source, expected = choice_pairs(60, 7)
    for one, other, wanted in zip(base, source, expected.tolist(), strict=True):
        hot = one.nonzero().flatten().tolist()
        objects = [hot[0], hot[1] - OBJECTS]
        assert objects[0] != objects[1]
        assert sum(other[2 * OBJECTS : 2 * OBJECTS + MANNERS]) == 1
        assert wanted == objects[0 if other[-1] < 0 else 1]
    assert len(set(expected.tolist())) == OBJECTS


def test_a_trained_net_names_the_queried_object():
    base, _, _ = choice_pairs(200, 1)
    objects = base[:, : 2 * OBJECTS].unflatten(1, (2, OBJECTS)).argmax(2)
    wanted = objects.gather(1, (base[:, -1:] > 0).long())[:, 0]
    said = trained_chooser(0, 200)(base).argmax(1)
    assert float((said == wanted).double().mean()) > 0.9
    assert torch.is_grad_enabled()
