"""What was left out arrives later."""

import pytest
import torch

from compress.codec_case import gradient
from sonde.compress import (
    PowerSgdCodec,
    RandomKCodec,
    SignCodec,
    TopKCodec,
    error_feedback,
)
from sonde.core import ShapeError

CODECS = [
    TopKCodec(keep=0.2),
    SignCodec(),
    RandomKCodec(keep=0.3, scaled=False),
    PowerSgdCodec(rank=1),
]


@pytest.mark.truth("the sum of the gradients")
@pytest.mark.parametrize("codec", CODECS, ids=lambda c: type(c).__name__)
def test_sent_and_left_add_up_to_the_gradients(codec):
    gradients = [gradient(6, 5, seed=s) for s in range(30)]
    sent, error = torch.zeros(6, 5), None
    for g in gradients:
        stream, decoded, error = error_feedback(codec, g, error)
        assert codec.decode(stream).equal(decoded)
        sent += decoded
    assert error is not None
    torch.testing.assert_close(sent + error, torch.stack(gradients).sum(0), atol=2e-5, rtol=1e-5)


def test_small_entries_arrive_in_time():
    g = torch.tensor([1.0, 0.3])
    error, arrived = None, torch.zeros(2)
    for _ in range(20):
        _, decoded, error = error_feedback(TopKCodec(keep=0.5), g, error)
        arrived += decoded
    assert float(arrived[1]) == pytest.approx(6.0, abs=1.0)


def test_the_error_of_another_tensor_is_refused():
    with pytest.raises(ShapeError, match=r"an error of shape \(2,\), got \(3,\)"):
        error_feedback(SignCodec(), torch.ones(2), torch.ones(3))
