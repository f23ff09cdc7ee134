"""Batches with more or fewer examples: every column follows its example."""

import pytest
import torch

from sonde.core.batch import Batch
from sonde.store._subset import first_examples, with_copies

LENGTHS = {"tokens": [3, 1, 2], "mean": [1, 1, 1]}


def batch():
    generator = torch.Generator().manual_seed(0)
    counts = {key: torch.tensor(n) for key, n in LENGTHS.items()}
    return Batch(
        rows={key: torch.randn(sum(n), 4, generator=generator) for key, n in LENGTHS.items()},
        ids=["a", "b", "c"],
        keys=[b"a" * 16, b"b" * 16, b"c" * 16],
        order=torch.arange(3),
        occurrence=torch.zeros(3, dtype=torch.int64),
        example={key: torch.arange(3).repeat_interleave(n) for key, n in counts.items()},
        position={key: torch.cat([torch.arange(k) for k in n]) for key, n in LENGTHS.items()},
        group_keys=[b"a" * 16, b"b" * 16, b"c" * 16],
        label=torch.tensor([4, -1, 7]),
        logits=torch.randn(3, 5, generator=generator),
        extra={"size": torch.tensor([10, 11, 12])},
    )


@pytest.mark.truth("the rows of the last example, written out")
def test_copies_are_examples_of_their_own_with_all_columns_of_the_last():
    given = batch()
    found = with_copies(given, 2)
    assert (len(found), found.ids) == (5, ["a", "b", "c", "c", "c"])
    assert found.example["tokens"].tolist() == [0, 0, 0, 1, 2, 2, 3, 3, 4, 4]
    assert found.position["tokens"].tolist() == [0, 1, 2, 0, 0, 1, 0, 1, 0, 1]
    assert found.example["mean"].tolist() == [0, 1, 2, 3, 4]
    for key, rows in given.rows.items():
        last = rows[given.example[key] == 2]
        assert torch.equal(found.rows[key], torch.cat([rows, last, last]))
    assert found.label.tolist() == [4, -1, 7, 7, 7]
    assert torch.equal(found.logits[3:], given.logits[2:].expand(2, -1))
    assert found.extra["size"].tolist() == [10, 11, 12, 12, 12]
    assert len({*zip(found.keys, found.occurrence.tolist(), strict=True)}) == 5
    again = first_examples(found, 3)
    assert again.ids == given.ids
    assert all(torch.equal(again.rows[key], rows) for key, rows in given.rows.items())
    assert with_copies(given, 0) is given
