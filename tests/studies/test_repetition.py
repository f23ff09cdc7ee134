"""Repeated 8-grams of texts counted by hand."""

import pytest
import torch

from sonde_studies._repetition import repeated


@pytest.mark.truth("8-grams counted by hand")
def test_repeated_grams_are_those_that_a_text_has_already():
    """Fifteen tokens hold eight 8-grams; with a period of three tokens, three of these differ."""
    ids = torch.stack([torch.arange(15) % 3, torch.arange(15), torch.zeros(15).long()])
    assert repeated(ids).tolist() == pytest.approx([5 / 8, 0.0, 7 / 8])
