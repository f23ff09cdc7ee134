"""Laws of codecs: bytes from a tensor, and the tensor from the bytes."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sonde.core.codec import Codec
from sonde.core.errors import InputError, StateError

SHAPES = ((7, 5), (33,), (3, 2, 2, 2), (), (0,), (4, 0, 2))
N_TOKENS = (50, 1, 0)
N_FLIPS = 64


def inputs(codec: Codec) -> Iterator[Tensor]:
    """Yield inputs of a codec: ids if it has an alphabet, otherwise real numbers in many shapes."""
    generator = torch.Generator().manual_seed(11)
    if codec.alphabet is not None:
        for n in N_TOKENS:
            yield torch.randint(codec.alphabet, (n,), generator=generator)
        return
    width = codec.width
    shapes = SHAPES if width is None else [(*shape, width) for shape in ((7,), (), (2, 3), (0,))]
    for shape in shapes:
        yield torch.randn(shape, generator=generator)
    yield torch.zeros(4, width or 3)
    yield torch.full((6, width or 2), -2.5)
    yield torch.randn(5, width or 9, generator=generator).to(torch.bfloat16)
    yield torch.randn(width or 9, 5, generator=generator).mT.to(torch.float16)


def law_round_trip(codec: Codec) -> None:
    """Decoding gives a tensor of the encoded shape, with at most the loss ``most_lost``."""
    for x in inputs(codec):
        before = x.clone()
        decoded = codec.decode(codec.encode(x))
        assert torch.equal(x, before), "the input changed"
        wanted = x if codec.alphabet is not None else x.to(torch.float32)
        assert (decoded.shape, decoded.dtype) == (wanted.shape, wanted.dtype), (
            f"{decoded.dtype} of shape {tuple(decoded.shape)} from {x.dtype} of {tuple(x.shape)}"
        )
        lost = float((decoded.double() - wanted.double()).square().sum())
        norm = float(wanted.double().square().sum())
        allowed = codec.most_lost(wanted)
        most = norm * (allowed + (1e-6 if allowed else 0.0)) if norm else allowed
        assert lost <= most, (
            f"{lost:.3g} of the squared norm {norm:.3g} is lost, {allowed:.3g} of it allowed"
        )


def law_same_bytes(codec: Codec) -> None:
    """Equal tensors give equal bytes, and torch's random state does not change."""
    x = next(inputs(codec))
    state = torch.random.get_rng_state()
    assert codec.encode(x) == codec.encode(x.clone()), "two streams of one tensor differ"
    codec.decode(codec.encode(x))
    assert torch.equal(state, torch.random.get_rng_state()), "another random state"


def law_truncated(codec: Codec) -> None:
    """A truncated stream, or a stream with extra bytes, raises a StateError."""
    stream = codec.encode(next(inputs(codec)))
    for end in sorted({*range(min(len(stream), N_FLIPS)), len(stream) - 1}):
        _refused(codec, stream[:end], f"a stream of {end} of {len(stream)} bytes")
    _refused(codec, stream + b"\0", "a stream with a byte behind it")


def law_flipped(codec: Codec) -> None:
    """A stream with one flipped bit raises a StateError."""
    stream = codec.encode(next(inputs(codec)))
    for bit in range(0, 8 * len(stream), max(8 * len(stream) // N_FLIPS, 1)):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << bit % 8
        _refused(codec, bytes(damaged), f"a stream with bit {bit} flipped")


def law_refused(codec: Codec) -> None:
    """Non-finite numbers, or ids outside the alphabet, raise an InputError."""
    if codec.alphabet is None:
        n = codec.width or 2
        wrong = [torch.full((2, n), torch.nan), torch.full((n,), torch.inf), torch.ones(n).long()]
        if codec.width is not None:
            wrong.append(torch.zeros(2, codec.width + 1))
    else:
        wrong = [torch.tensor([codec.alphabet]), torch.tensor([-1]), torch.tensor([0.0])]
    for x in wrong:
        try:
            codec.encode(x)
        except InputError:
            continue
        raise AssertionError(f"{x.tolist()} of {x.dtype} was encoded")


def _refused(codec: Codec, stream: bytes, what: str) -> None:
    try:
        codec.decode(stream)
    except StateError:
        return
    raise AssertionError(f"{what} was decoded")
