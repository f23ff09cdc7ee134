"""Every rule and packing of key-value caches, and every rule of tokens, against every law."""

import pytest

from contract.test_rewrites import members
from sonde.core import CachePacking, CacheRule, TokenRule
from sonde.testing import check

BASES = (CacheRule, CachePacking, TokenRule)
RULES = {kind.__name__: kind for base in BASES for kind in members(base)}


@pytest.mark.parametrize("name", sorted(RULES))
def test_laws(name):
    check(RULES[name])
