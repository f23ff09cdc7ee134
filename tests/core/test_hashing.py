"""Draws: the printed numbers of splitmix64, and the formula in plain integers."""

import random
from hashlib import blake2b

import numpy as np
import pytest
import torch

from sonde.core.hashing import (
    Purpose,
    base_hashes,
    bytes_key,
    draws,
    fraction,
    rank_key,
    splitmix64,
    tensor_key,
)
from sonde.core.instrument import Subsample
from sonde.core.plan import Split
from sonde.core.stream import Stream

M = (1 << 64) - 1


def splitmix_by_hand(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) & M
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M
    return z ^ (z >> 31)


def draw_by_hand(key: bytes, purpose: str, seed: int, position: int, occurrence: int) -> int:
    base = blake2b(key, digest_size=8, key=f"{purpose}|{seed}".encode()).digest()
    return splitmix_by_hand((int.from_bytes(base, "little") + (position << 20) + occurrence) & M)


@pytest.mark.truth("printed reference numbers of splitmix64")
def test_splitmix_prints_the_reference_numbers():
    found = splitmix64(np.arange(3, dtype=np.uint64))
    assert [f"{int(v):x}" for v in found] == [
        "e220a8397b1dcdaf",
        "910a2dec89025cc1",
        "975835de1c9756ce",
    ]


@pytest.mark.truth("brute force in Python integers")
def test_draws_follow_the_formula():
    rng = random.Random(3)
    keys = [rng.randbytes(16) for _ in range(300)]
    position = [rng.choice([0, 1, 77, rng.randrange(1 << 30)]) for _ in keys]
    occurrence = [rng.choice([0, 1, 5]) for _ in keys]
    cases: list[tuple[Purpose, int]] = [("sample", 0), ("subsample", 0), ("split", 7), ("tie", -1)]
    for purpose, seed in cases:
        found = draws(base_hashes(keys, purpose, seed), np.array(position), np.array(occurrence))
        assert found.dtype == torch.int64
        expected = [
            draw_by_hand(k, purpose, seed, p, o)
            for k, p, o in zip(keys, position, occurrence, strict=True)
        ]
        assert [int(d) & M for d in found] == expected


@pytest.mark.truth("brute force in Python integers")
def test_ranks_and_fractions_are_those_of_unsigned_numbers():
    rng = random.Random(4)
    numbers = [0, 1, M, 1 << 63, (1 << 63) - 1, *(rng.randrange(1 << 64) for _ in range(200))]
    draw = torch.tensor([n - (1 << 64) if n >> 63 else n for n in numbers])
    order = torch.argsort(rank_key(draw)).tolist()
    assert [numbers[i] for i in order] == sorted(numbers)
    assert fraction(draw).tolist() == [(n >> 11) * 2.0**-53 for n in numbers]
    assert float(fraction(draw).max()) < 1.0


@pytest.mark.truth("brute force in Python integers")
def test_a_batch_draws_by_id_position_and_occurrence():
    ids = ["a", "b", "a", "c", "a"]
    batch = next(iter(Stream.of(torch.zeros(5, 2), ids=ids, seed=9)))
    expected = [
        draw_by_hand(i.encode(), "sample", 9, 0, o)
        for i, o in zip(ids, [0, 0, 1, 0, 2], strict=True)
    ]
    assert [int(d) & M for d in batch.column("draw", "x")] == expected
    group = [draw_by_hand(i.encode(), "sample", 9, 0, 0) for i in ids]
    assert [int(d) & M for d in batch.column("group_draw", "x")] == group


@pytest.mark.truth("brute force in Python integers")
def test_rows_of_one_id_at_several_positions_are_one_example():
    stream = Stream.of(torch.zeros(5, 2), ids=["a", "a", "a", "b", "a"], position=[0, 1, 2, 0, 1])
    batch = next(iter(stream))
    expected = [
        draw_by_hand(i.encode(), "sample", 0, p, o)
        for i, p, o in [("a", 0, 0), ("a", 1, 0), ("a", 2, 0), ("b", 0, 0), ("a", 1, 1)]
    ]
    assert [int(d) & M for d in batch.column("draw", "x")] == expected


@pytest.mark.truth("brute force in Python integers")
@pytest.mark.parametrize("every", [2, 3, 8])
def test_a_subsample_keeps_multiples_of_the_unsigned_draw(every):
    ids = [str(i) for i in range(400)]
    batch = next(iter(Stream.of(torch.zeros(400, 1), ids=ids)))
    keep = Subsample(every).mask(batch, "x")
    expected = [draw_by_hand(i.encode(), "subsample", 0, 0, 0) % every == 0 for i in ids]
    assert keep.tolist() == expected[: len(keep)]


@pytest.mark.truth("brute force in Python integers")
def test_a_split_follows_the_group():
    groups = [f"g{i % 50}" for i in range(200)]
    batch = next(iter(Stream.of(torch.zeros(200, 1), group=groups)))
    held = Split(0.2).is_held(batch.split_draw)
    expected = [(draw_by_hand(g.encode(), "split", 0, 0, 0) >> 11) * 2.0**-53 < 0.2 for g in groups]
    assert held.tolist() == expected


@pytest.mark.truth("hashlib over the bytes as the contract states them")
def test_keys_of_content():
    assert bytes_key("text é".encode()) == blake2b("text é".encode(), digest_size=16).digest()
    x = torch.tensor([[1.0, 2.0]])
    head = b"float32|(1, 2)|"
    assert tensor_key(x) == blake2b(head + x.numpy().tobytes(), digest_size=16).digest()
    assert tensor_key(x) != tensor_key(x.T)
    assert tensor_key(x) != tensor_key(x.double())
    rows = torch.randn(4, 3)
    keys = next(iter(Stream.of(rows))).keys
    assert list(keys) == [tensor_key(row) for row in rows]


def test_equal_rows_are_told_apart_by_occurrence():
    batch = next(iter(Stream.of(torch.ones(3, 2))))
    assert batch.column("occurrence", "x").tolist() == [0, 1, 2]
    assert len(set(batch.column("draw", "x").tolist())) == 3
