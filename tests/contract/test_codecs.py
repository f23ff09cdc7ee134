"""Every codec against every law."""

import pytest
import torch

from contract.test_rewrites import members
from sonde.compress import (
    ConditionalCodec,
    EntropyBottleneck,
    FeaturePCA,
    SequenceCoder,
    SliceContext,
)
from sonde.core import Codec
from sonde.testing import causal_model, check

ROWS = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7)
FITTED = [FeaturePCA.fit(ROWS, bits) for bits in (0.0, 0.7, 5.0)]
FITTED += [ConditionalCodec.fit(ROWS, n, 0.5) for n in (1, 9)]
FITTED += [ConditionalCodec.fit(ROWS, 9, 0.5, references=3, updates=5)]
FITTED += [EntropyBottleneck(4).codec(), SliceContext(5).eval().codec()]
CODECS = {c.__name__: c for c in members(Codec) - {SequenceCoder, *map(type, FITTED)}}


@pytest.mark.parametrize("name", sorted(CODECS))
def test_laws(name):
    check(CODECS[name])


@pytest.mark.parametrize("codec", FITTED, ids=lambda c: type(c).__name__)
def test_laws_of_a_fitted_codec(codec):
    check(codec)


@pytest.mark.slow
@pytest.mark.parametrize("parameters", SequenceCoder.examples)
def test_laws_of_a_coder_with_a_model(parameters):
    check(SequenceCoder(causal_model(), **parameters))
