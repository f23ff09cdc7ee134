"""Chain rules of small pictures, turns of blocks, and a decoder that sees its own pixel."""

import pytest
import torch
from torch import nn

from sonde_studies import raster_decoding
from sonde_studies.raster_decoding import (
    SMALL,
    Pixels,
    expected,
    log_p_of,
    pictures_of,
    pixels_by_lot,
    random_table,
    rows_of,
)
from sonde_studies.worlds.learning import drawn


def _wild(kind, grid=SMALL):
    net = drawn(lambda: Pixels(kind, grid, 2, 16, 3), 1)
    draw = torch.Generator().manual_seed(2)
    for p in net.parameters():
        nn.init.normal_(p, std=0.5, generator=draw)
    return net.double()


@pytest.mark.truth("chain rule: probabilities of all pictures of an alphabet add up to one")
@pytest.mark.parametrize("kind", ["decoder", "raster", "axes"])
@pytest.mark.parametrize("grid", [(2, 3), (3, 2)])
def test_probabilities_of_all_pictures_add_up_to_one(kind, grid):
    log_p = log_p_of(_wild(kind, grid), pictures_of(6))
    assert float(log_p.std()) > 0.5
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-12)


def test_a_net_that_gives_the_table_needs_its_entropy():
    table = random_table(0)

    class Table(nn.Module):
        def forward(self, x):
            """Return the conditionals of the table, bit by bit."""
            out = torch.zeros(len(x), 6, 2, dtype=torch.float64)
            every = pictures_of(6)
            for row, picture in enumerate(x):
                fits = torch.ones(len(every), dtype=torch.bool)
                for pixel in range(6):
                    p = torch.stack([table[fits & (every[:, pixel] == v)].sum() for v in (0, 1)])
                    out[row, pixel] = p.log()
                    fits &= every[:, pixel] == picture[pixel]
            return out

    entropy = -float((table * table.log()).sum()) / 6
    assert expected(Table(), table) == pytest.approx(entropy)
    kinds = (rows_of(table, 40_000, 0) * 2 ** torch.arange(6)).sum(1).bincount(minlength=64)
    assert torch.allclose(kinds / 40_000, table.float(), atol=1e-4)


def test_blocks_in_turn_are_those_that_decode_runs():
    net = drawn(lambda: Pixels("decoder", (4, 5), 3, 8, 6), 0)
    ran = list[str]()
    for name in ("outer", "inner"):
        for block in getattr(net.decoder, name):
            block.register_forward_hook(lambda *_, name=name: ran.append(name))
    net.decoder.decode(2, lambda context, _: context)
    assert len(ran) == net.turns == 4 * 4 + 2 * 20
    assert drawn(lambda: Pixels("raster", (4, 5), 3, 8, 6), 0).turns == 6 * 20


@pytest.mark.slow
def test_a_decoder_that_sees_its_own_pixel_is_seen_by_pixels_by_lot(monkeypatch):
    x = pixels_by_lot(0)
    assert raster_decoding.by_lot(x, 0, 40) == pytest.approx(0.25, abs=0.01)
    monkeypatch.setattr("sonde.layers.axial_decoder._moved", lambda states, _: states)
    assert raster_decoding.by_lot(x, 0, 40) > 0.4
