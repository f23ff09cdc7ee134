"""Every rule of key-value caches against every law."""

import pytest

from contract.test_rewrites import members
from sonde.core import CacheRule
from sonde.testing import check


@pytest.mark.parametrize("rule", sorted(members(CacheRule), key=lambda m: m.__name__))
def test_laws(rule):
    check(rule)
