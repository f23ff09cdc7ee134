"""Two thin matrices: exact at their rank, best after some rounds."""

import pytest
import torch

from compress.codec_case import gradient
from sonde.compress import PowerSgdCodec
from sonde.core import InputError


@pytest.mark.truth("the singular values: no matrix of the rank is nearer (Eckart and Young)")
def test_rounds_come_near_the_best_matrix():
    u, v = torch.linalg.qr(gradient(20, 20)).Q, torch.linalg.qr(gradient(16, 16, seed=5)).Q
    values = 2.0 ** -torch.arange(16.0)
    x = (u[:, :16] * values) @ v.mT
    codec = PowerSgdCodec(rank=2)
    best = float(values[2:].square().sum())
    lost = []
    for _ in range(12):
        stream = codec.encode(x)
        lost.append(float((codec.decode(stream) - x).square().sum()))
        codec = codec.after(stream)
    assert lost[0] > 1.05 * best
    assert lost[-1] == pytest.approx(best, rel=1e-4)


def test_what_is_sent_is_a_projection_of_few_bytes():
    x = gradient(20, 3, 6)
    stream = PowerSgdCodec(rank=2).encode(x)
    found = PowerSgdCodec().decode(stream)
    assert len(stream) == 4 * 2 * (20 + 18) + 13 + 5
    assert float((found * (x - found)).sum()) == pytest.approx(0.0, abs=1e-5)


def test_vectors_are_sent_as_they_are():
    codec, x = PowerSgdCodec(), gradient(9)
    stream = codec.encode(x)
    assert codec.decode(stream).equal(x)
    assert codec.after(stream) is codec


def test_the_codec_of_another_tensor_is_refused():
    codec = PowerSgdCodec(rank=1)
    other = codec.after(codec.encode(gradient(6, 8)))
    with pytest.raises(InputError, match=r"a start of shape \(9, 1\), got \(8, 1\)"):
        other.encode(gradient(6, 9))
