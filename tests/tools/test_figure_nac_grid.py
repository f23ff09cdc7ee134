"""The table of what the width of NAC's grid does, on few images."""

import numpy as np
import pytest
from PIL import Image
from tools.figures.nac_grid import lines, text, unusual_images


@pytest.mark.slow
@pytest.mark.truth("which images are digits")
def test_a_grid_that_spans_nearly_all_rows_tells_more():
    ((site, found),) = lines(["vit.layers.0"], n=150)
    assert site == "vit.layers.0"
    assert list(found) == ["noise", "negatives", "turned"]
    for kind, (narrow, wide) in found.items():
        assert narrow < wide, kind
        assert wide > 0.6, kind


def test_the_table_has_a_line_for_each_site():
    shown = text([("a", {"noise": (0.25, 0.875)}), ("b", {"noise": (1.0, 0.5)})])
    assert shown.splitlines() == [
        "| block | noise, nine tenths | auto |",
        "|---|---|---|",
        "| a | .25 | .88 |",
        "| b | 1.00 | .50 |",
    ]


@pytest.mark.truth("worked out by hand")
def test_unusual_images_are_made_of_the_usual_ones():
    pixels = np.array([[0, 255], [10, 20]], dtype=np.uint8)
    made = unusual_images([Image.fromarray(pixels)])
    assert np.asarray(made["negatives"][0]).tolist() == [[255, 0], [245, 235]]
    assert np.asarray(made["turned"][0]).tolist() == [[255, 20], [0, 10]]
    assert made["noise"][0].size == (2, 2)
