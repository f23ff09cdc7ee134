"""Keys in one block of memory: what a list of them gives, and less memory."""

import pickle
import sys
from collections import Counter

import numpy as np
import pytest

from sonde.data.packed_keys import PackedKeys


@pytest.mark.truth("a list and a counter")
@pytest.mark.parametrize("n_bytes", [16, None])
def test_keys_and_their_occurrences_are_those_of_a_list(n_bytes):
    draw = np.random.default_rng(0)
    pool = [draw.bytes(n_bytes or int(draw.integers(0, 20))) for _ in range(40)]
    keys = [pool[i] for i in draw.integers(0, 40, 300)]
    packed = pickle.loads(pickle.dumps(PackedKeys(keys)))
    assert list(packed) == keys
    assert packed == keys
    assert packed[-1] == keys[-1]
    assert packed[np.int64(7)] == keys[7]
    assert packed[3:90:4] == keys[3:90:4]
    with pytest.raises(IndexError):
        packed[300]
    seen, earlier = Counter[bytes](), []
    for key in keys:
        earlier.append(seen[key])
        seen[key] += 1
    assert packed.occurrences().tolist() == earlier
    assert PackedKeys().occurrences().tolist() == []


def test_a_key_takes_half_the_memory_of_an_object():
    n = 1000
    packed = PackedKeys(i.to_bytes(16, "big") for i in range(n))
    held = sys.getsizeof(packed._content) + sys.getsizeof(packed._ends)
    assert held < 0.5 * n * (sys.getsizeof(bytes(16)) + 8)
