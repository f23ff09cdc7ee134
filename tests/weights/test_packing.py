"""Codes as bytes: round trips, the layout bit by bit, what does not fit."""

import numpy as np
import pytest
import torch

from sonde.core.errors import InputError, ShapeError
from sonde.weights import pack, unpack
from sonde.weights.packing import packed_length


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("n", [0, 1, 7, 8, 31])
def test_every_width_comes_back(bits, n):
    draw = torch.Generator().manual_seed(bits * 100 + n)
    codes = torch.randint(0, 2**bits, (3, n), generator=draw)
    packed = pack(codes, bits)
    assert packed.shape == (3, packed_length(n, bits))
    assert unpack(packed, bits, n).tolist() == codes.tolist()


@pytest.mark.truth("numpy.packbits, lowest bit first")
def test_bits_lie_where_numpy_puts_them():
    codes = torch.randint(0, 8, (2, 13), generator=torch.Generator().manual_seed(0))
    planes = [np.packbits(codes.numpy() >> i & 1, axis=1, bitorder="little") for i in range(3)]
    assert pack(codes, 3).tolist() == np.concatenate(planes, 1).tolist()
    fours = codes[:, :4].numpy()
    assert pack(codes[:, :4], 4).tolist() == (fours[:, ::2] | fours[:, 1::2] << 4).tolist()


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"in \[0, 8\) for 3 bits, got 0 to 8"):
        pack(torch.tensor([0, 8]), 3)
    with pytest.raises(InputError, match="expected 1 to 8 bits, got 9"):
        pack(torch.tensor([0]), 9)
    with pytest.raises(ShapeError, match="expected 6 bytes for 9 numbers of 3 bits, got 5"):
        unpack(torch.zeros(5, dtype=torch.uint8), 3, 9)
