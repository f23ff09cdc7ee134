"""Maps of classes over tokens that are alike."""

import math

import pytest
import torch

from sonde.core.errors import InputError, ShapeError
from sonde.explain import aligned_map


def drawn(*shape, seed):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.truth("a loop over pairs of tokens")
def test_tokens_take_over_values_of_tokens_alike_in_every_source():
    maps, colours, features = drawn(2, 5, 3, seed=0), drawn(2, 5, 3, seed=1), drawn(2, 5, 4, seed=2)
    attention = drawn(2, 5, 5, seed=3)
    attention = attention / attention.sum(2, keepdim=True)
    found = aligned_map(maps, colours=colours, features=features - 0.5, attention=attention,
                        width=0.4, temperature=0.7)  # fmt: skip
    row, i = 1, 3
    weights = []
    for j in range(5):
        away = sum((float(a) - float(b)) ** 2 for a, b in zip(colours[row, i], colours[row, j],
                                                              strict=True))  # fmt: skip
        f, g = features[row, i] - 0.5, features[row, j] - 0.5
        cosine = float(f @ g) / math.sqrt(float(f @ f) * float(g @ g))
        mean = float(attention[row, i, j] + attention[row, j, i]) / 2
        weights.append(math.exp(-away / 0.32 + cosine / 0.7) * mean)
    wanted = [
        sum(w * float(maps[row, j, k]) for j, w in enumerate(weights)) / sum(weights)
        for k in range(3)
    ]
    torch.testing.assert_close(found[row, i], torch.tensor(wanted, dtype=torch.float64))


def test_values_stay_within_the_tokens_of_one_colour():
    colours = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).double().unsqueeze(-1)
    maps = torch.tensor([[4.0, 0.0, 0.0, 2.0]]).double().unsqueeze(-1)
    found = aligned_map(maps, colours=colours, steps=3).flatten()
    torch.testing.assert_close(found, torch.tensor([2.0, 2.0, 1.0, 1.0]).double())
    assert torch.equal(aligned_map(maps, colours=colours, steps=0), maps)


def test_what_cannot_be_aligned_is_refused():
    maps = torch.zeros(1, 4, 2)
    with pytest.raises(InputError, match="expected colours, features or attention, got none"):
        aligned_map(maps)
    with pytest.raises(ShapeError, match=r"colours of 1 rows and 4 tokens.*got \(1, 3, 3\)"):
        aligned_map(maps, colours=torch.zeros(1, 3, 3))
    with pytest.raises(InputError, match="width and temperature above 0"):
        aligned_map(maps, colours=torch.zeros(1, 4, 3), width=0.0)
