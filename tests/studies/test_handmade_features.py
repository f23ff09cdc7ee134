"""Features of digits that are made by hand."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from sonde_studies._handmade_features import as_model, line_entropies, moments_and_ink
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.parts.states import last_states

DIGITS = shuffled_digits(0)[0][:5]


@pytest.mark.truth("scipy.stats.entropy of each line")
def test_entropies_of_lines():
    lines = DIGITS.reshape(-1, 8, 8).double().numpy() + 1e-6
    np.testing.assert_allclose(line_entropies(DIGITS), entropy(lines, axis=2), rtol=1e-4, atol=1e-5)


@pytest.mark.truth("loops over pixels")
def test_ink_and_moments():
    for picture, found in zip(DIGITS.reshape(-1, 8, 8), moments_and_ink(DIGITS), strict=True):
        ink = float(picture.sum())
        weight = {(i, j): float(picture[i, j]) / ink for i in range(8) for j in range(8)}
        moments = [sum(w * at[axis] ** power for at, w in weight.items())
                   for power in (1, 2) for axis in (0, 1)]  # fmt: skip
        wanted = [*picture.sum(1).tolist(), *picture.sum(0).tolist(), *moments, ink,
                  float((picture > 0).sum())]  # fmt: skip
        assert found.tolist() == pytest.approx(wanted, rel=1e-4)


def test_a_function_is_read_like_an_encoder():
    found = last_states(as_model(lambda x: 2 * x), list(DIGITS), progress=False)
    torch.testing.assert_close(found, 2 * DIGITS.double())
