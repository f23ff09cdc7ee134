"""Reading inputs back: least squares by numpy, a map that loses nothing, bad input, the command."""

import numpy as np
import pytest
import torch
from torch import nn

from cli_case import run_words
from sonde import InputError, Model
from sonde_studies.recipes.decode_states import decode_states


def net(widths, seed=0):
    torch.manual_seed(seed)
    return Model(nn.Sequential(*(nn.Linear(a, b) for a, b in widths)).eval())


def items(n=200, dim=6):
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(1)) * torch.arange(1, dim + 1)
    return x, [{"x": row} for row in x]


@pytest.mark.truth("numpy's least squares on the rows that fit, judged on the others")
def test_the_share_missed_is_that_of_least_squares():
    model, (x, rows) = net([(6, 3), (3, 4)]), items()
    found = decode_states(model, rows, sites="0,1", seed=5, progress=False)
    order = np.random.default_rng(5).permutation(200)
    kept, held = order[80:], order[:80]
    with torch.no_grad():
        states = model.module[0](x).double().numpy()
    x, one = x.double().numpy(), np.ones((200, 1))
    fit = np.linalg.lstsq(np.hstack([states, one])[kept], x[kept], rcond=None)[0]
    left = ((np.hstack([states, one])[held] @ fit - x[held]) ** 2).sum()
    wanted = left / ((x[held] - x[kept].mean(0)) ** 2).sum()
    assert found.rows[0]["missed"] == pytest.approx(wanted, rel=2e-3)
    assert found.rows[0]["missed"] > 0.05


@pytest.mark.truth("a layer that can be inverted loses nothing")
def test_a_wide_linear_layer_is_read_back_whole():
    found = decode_states(net([(6, 9), (9, 3)]), items()[1], sites="0", progress=False)
    assert found.rows[0]["missed"] == pytest.approx(0.0, abs=1e-4)
    assert found.rows[0]["same"] == pytest.approx(1.0, abs=0.03)


def test_few_rows_and_tokens_are_refused():
    with pytest.raises(InputError, match="60 or more inputs"):
        decode_states(net([(6, 3)]), items(20)[1], sites="0", progress=False)


def test_the_command_asks_it():
    ran = run_words("recipe", "decode-states", "sonde:digits", "sonde:digits/test",
                    "--limit", "120", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert all(0 <= row["same"] <= 1 for row in ran.json()["rows"])
