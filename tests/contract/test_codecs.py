"""Every codec against every law."""

import pytest

from contract.test_rewrites import members
from sonde.compress import SequenceCoder
from sonde.core import Codec
from sonde.testing import causal_model, check

CODECS = {codec.__name__: codec for codec in members(Codec) - {SequenceCoder}}


@pytest.mark.parametrize("name", sorted(CODECS))
def test_laws(name):
    check(CODECS[name])


@pytest.mark.parametrize("parameters", SequenceCoder.examples)
def test_laws_of_a_coder_with_a_model(parameters):
    check(SequenceCoder(causal_model(), **parameters))
