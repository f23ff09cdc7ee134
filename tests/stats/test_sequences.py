"""Rows that belong to one example, against loops over them."""

import pytest
import torch

from sonde.stats.sequences import by_example, example_numbers


@pytest.mark.truth("loops over the rows")
@pytest.mark.parametrize("n", [0, 1, 200])
@pytest.mark.parametrize("descending", [False, True])
def test_rows_of_each_example_stand_together_and_in_order(n, descending):
    made = torch.Generator().manual_seed(n)
    example = torch.randint(-20, 20, (n,), generator=made) * 7
    position = torch.randint(0, 6, (n,), generator=made)
    found = by_example(example, position, descending=descending)
    sign = -1 if descending else 1
    truth: dict[int, list[int]] = {}
    for row in sorted(range(n), key=lambda i: (sign * int(position[i]), i)):
        truth.setdefault(int(example[row]), []).append(row)
    names = sorted(truth)
    assert found.example.tolist() == names
    assert [rows.tolist() for rows in found.each() if len(rows)] == [truth[k] for k in names]
    assert found.first.tolist() == [truth[k][0] for k in names]
    assert found.rank.tolist() == [i for k in names for i in range(len(truth[k]))]
    assert found.continues.tolist() == [i > 0 for k in names for i in range(len(truth[k]))]
    assert [names[m] for m in found.member.tolist()] == example[found.rows].tolist()


def test_rows_without_positions_stay_as_they_came():
    assert by_example(torch.tensor([1, 0, 1, 0])).rows.tolist() == [1, 3, 0, 2]


@pytest.mark.truth("the sorted set of names")
def test_examples_are_numbered_by_all_that_names_them():
    made = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 3, (60, 2), generator=made)
    occurrence = torch.randint(0, 2, (60,), generator=made)
    names = [(*i, o) for i, o in zip(ids.tolist(), occurrence.tolist(), strict=True)]
    truth = [sorted(set(names)).index(name) for name in names]
    assert example_numbers(ids, occurrence).tolist() == truth
