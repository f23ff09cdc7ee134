"""Every rule and every packing of key-value caches against every law."""

import pytest

from contract.test_rewrites import members
from sonde.core import CachePacking, CacheRule
from sonde.testing import check

RULES = {kind.__name__: kind for base in (CacheRule, CachePacking) for kind in members(base)}


@pytest.mark.parametrize("name", sorted(RULES))
def test_laws(name):
    check(RULES[name])
