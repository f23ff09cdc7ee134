"""Models that several threads load at once."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from lm_twin_case import FOLDER
from sonde.data import load


def is_tied(_):
    module = load(str(FOLDER)).module
    return module.lm_head.weight is module.model.embed_tokens.weight


@pytest.mark.slow
def test_tied_weights_stay_tied():
    # transformers itself unties all later models of the process when two threads load at once
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(is_tied, range(8)))
    assert is_tied(0)
