"""Add the error of a codec to the gradient of the next round (error feedback)."""

from typing import NamedTuple

import torch
from torch import Tensor

from sonde.core.codec import Codec
from sonde.core.errors import ShapeError


class Sent(NamedTuple):
    """One round of a gradient codec with error feedback.

    Parameters
    ----------
    stream : bytes
        What goes over the wire.
    decoded : Tensor
        What the receiver decodes.
    error : Tensor
        What is left for the next round.
    """

    stream: bytes
    decoded: Tensor
    error: Tensor


def error_feedback(codec: Codec, gradient: Tensor, error: Tensor | None = None) -> Sent:
    """Encode a gradient plus the error of earlier rounds, and return the error that remains.

    The decoded gradients of all rounds plus the last error sum to the gradients, up to rounding.
    The error is the caller's: keep one for each tensor and save it with the optimizer.

    Parameters
    ----------
    codec : Codec
        Codec of the gradient.
    gradient : Tensor
        Gradient of this round.
    error : Tensor or None, default=None
        ``error`` of the round before; None in the first round.

    Examples
    --------
    >>> from sonde.compress import SignCodec
    >>> sent = error_feedback(SignCodec(), torch.tensor([3.0, -1.0]))
    >>> sent.decoded, sent.error
    (tensor([ 2., -2.]), tensor([1., 1.]))

    References
    ----------
    karimireddy2019error
    """
    kept = torch.zeros_like(gradient, dtype=torch.float32) if error is None else error
    if kept.shape != gradient.shape:
        raise ShapeError(
            f"error_feedback: expected an error of shape {tuple(gradient.shape)}, got "
            f"{tuple(kept.shape)}. Keep one error for each tensor."
        )
    wanted = kept + gradient.detach().to(kept)
    stream = codec.encode(wanted)
    decoded = codec.decode(stream).to(wanted)
    return Sent(stream, decoded, wanted - decoded)
