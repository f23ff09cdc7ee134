"""Every rule of key-value caches against every law."""

import pytest

from contract.test_rewrites import members
from sonde.core import CacheRule
from sonde.testing import check

RULES = {rule.__name__: rule for rule in members(CacheRule)}


@pytest.mark.parametrize("name", sorted(RULES))
def test_laws(name):
    check(RULES[name])
