"""Pictures of coloured digits, and what is read back from them."""

import pytest
import torch

from sonde_studies.worlds.painter import DIGITS, SILENT, colours_in, colours_of, explained, studio


@pytest.mark.truth("the colours and digits that were painted")
def test_what_was_painted_is_read_back():
    at, draw = studio(0, 0), torch.Generator().manual_seed(0)
    digit = torch.arange(DIGITS).repeat(3)
    free = torch.full_like(digit, SILENT)
    canvas = at.paint(digit, colours_of(free, draw), colours_of(free, draw))
    ink, ground = colours_in(canvas.picture, at.on_canvas[digit])
    torch.testing.assert_close(ink, canvas.ink, atol=1e-4, rtol=0)
    torch.testing.assert_close(ground, canvas.ground, atol=1e-4, rtol=0)
    assert at.judged(canvas.picture, digit, canvas) == pytest.approx(
        {"digit": 1.0, "ink": 1.0, "ground": 1.0}, abs=1e-4
    )
    assert at.judged(canvas.picture, digit.roll(1), canvas)["digit"] == 0.0
    assert explained(canvas.ink.mean(0).expand_as(ink), canvas.ink) == pytest.approx(0, abs=1e-5)
