"""Tokens that the last query attends to stay."""

import pytest

from compress.cache_case import attentions, best, kept
from sonde.compress import TOVA


@pytest.mark.truth("the model's own attention of its last query")
def test_what_the_last_query_attends_to_stays():
    assert kept(TOVA(5)) == best(attentions()[:, -1], 5)
