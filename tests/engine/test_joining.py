import pytest
import torch

from sonde.core.batch import Batch
from sonde.core.stream import Stream
from sonde.engine.joining import BUFFER_ROWS, join, joined_batches

COLUMNS = ("label", "order", "position", "draw", "ids", "group", "occurrence")


def slices(stream: Stream, size: int) -> list[Batch]:
    return [
        batch
        for first in range(0, len(stream), size)
        for batch in stream.batches(first, min(first + size, len(stream)))
    ]


def two_layouts(n: int = 12) -> list[Batch]:
    """Batches of three examples with a pooled row and two token rows each."""
    draw = torch.Generator().manual_seed(0)
    pooled, tokens = torch.randn(n, 4, generator=draw), torch.randn(2 * n, 3, generator=draw)
    found = []
    for i in range(0, n, 3):
        one, two = torch.arange(3), torch.arange(3).repeat_interleave(2)
        zero = torch.zeros_like(one)
        place = torch.tensor([0, 1] * 3)
        keys = [f"e{j}".encode() for j in range(i, i + 3)]
        found.append(
            Batch(
                rows={"a": pooled[i : i + 3], "t": tokens[2 * i : 2 * i + 6], "b": pooled[:3]},
                ids=[k.decode() for k in keys],
                keys=keys,
                order=torch.arange(i, i + 3),
                occurrence=[0, 0, 1],
                example={"a": one, "t": two, "b": one},
                position={"a": zero, "t": place, "b": zero},
                group_keys=keys,
                label=torch.arange(i, i + 3) % 2,
                special={"t": place == 0},
            )
        )
    return found


@pytest.mark.truth("the same rows in one batch")
def test_joined_batches_carry_the_rows_and_columns_of_one_batch():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(1))
    stream = Stream.of(x, label=torch.arange(100) % 3)
    whole, (found,) = next(stream.batches(0, 100)), list(joined_batches(slices(stream, 7)))
    assert torch.equal(found.rows["x"], x)
    for name in COLUMNS:
        assert torch.equal(found.column(name, "x"), whole.column(name, "x")), name
    assert list(found.ids) == list(whole.ids)


def test_rows_of_other_layouts_stay_with_their_examples():
    batches = two_layouts()
    found = join(batches)
    assert found.example["t"].tolist() == [i // 2 for i in range(24)]
    assert found.position["t"].tolist() == [0, 1] * 12
    assert found.column("special", "t").tolist() == [True, False] * 12
    assert found.column("order", "t").tolist() == [i // 2 for i in range(24)]
    for key in ("a", "t"):
        parts = torch.cat([b.draw(key) for b in batches])
        assert torch.equal(found.draw(key), parts)


def test_a_layout_that_sites_share_stays_shared():
    found = join(two_layouts())
    assert found.example["a"] is found.example["b"]
    assert found.position["a"] is found.position["b"]
    assert found.example["a"] is not found.example["t"]


def test_large_batches_pass_through_and_small_ones_wait_for_enough_rows():
    x = torch.zeros(BUFFER_ROWS + 500, 2)
    stream = Stream.of(x)
    sizes = [len(b) for b in joined_batches(slices(stream, 300))]
    assert sizes == [2100, 448]
    large = list(stream.batches(0, BUFFER_ROWS))
    assert next(iter(joined_batches(large))) is large[0]


def test_batches_with_other_columns_are_not_joined():
    first, second, third, _ = two_layouts()
    second.special.clear()
    assert [len(b) for b in joined_batches([first, second, third])] == [3, 3, 3]
    assert list(joined_batches([])) == []
