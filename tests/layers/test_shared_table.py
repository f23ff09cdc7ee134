"""Hashed tables of fields: places, collisions, gradients of two tables."""

import pytest
import torch

from sonde.core import InputError
from sonde.layers import SharedTable
from sonde.layers.shared_table import PRIME, collision_rate


@pytest.mark.truth("the linear hash in Python's integers, one value at a time")
@pytest.mark.parametrize("lookups", [1, 3])
def test_a_value_stands_where_its_hash_says(lookups):
    table = SharedTable(2, 6, size=97, lookups=lookups, seed=4)
    ids = torch.tensor([[5, 2**31 - 2], [123_456, 0]])
    found = table(ids)
    scale, shift = (m.tolist() for m in table.maps)
    for row, values in enumerate(ids.tolist()):
        for f, v in enumerate(values):
            at = [(a * v + b) % PRIME % 97 for a, b in zip(scale[f], shift[f], strict=True)]
            assert torch.equal(found[row, f], torch.cat([table.entries[0][i] for i in at]))


@pytest.mark.truth("1 - (1 - 1/size)^(n - 1) of a random hash; its square for two places")
@pytest.mark.parametrize("lookups", [1, 2])
def test_collisions_are_those_of_a_random_hash(lookups):
    draw = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randperm(10**6, generator=draw)[:500] for _ in range(20)], 1)
    found = SharedTable(20, 4, size=1000, lookups=lookups, seed=2).collisions(ids)
    assert float(found.mean()) == pytest.approx(collision_rate(500, 1000, lookups), abs=0.012)


@pytest.mark.truth("two uses that pull apart: (e - 1)^2 and (e + 1)^2 leave a shared entry at 0")
def test_two_tables_end_a_conflict_that_one_cannot():
    ids, losses = torch.tensor([[3]]), {}
    for tables in ("shared", "decoupled"):
        table = SharedTable(1, 1, size=8, tables=tables, search_width=1)
        optimiser = torch.optim.SGD(table.parameters(), 0.1)
        for _ in range(200):
            seen = table.search(ids) if tables == "decoupled" else table(ids)
            loss = (seen - 1).square().sum() + (table.represent(ids) + 1).square().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses[tables] = loss.item()
    assert losses["shared"] == pytest.approx(2.0, abs=1e-4)
    assert losses["decoupled"] == pytest.approx(0.0, abs=1e-4)


def test_each_field_has_its_own_table_and_searching_leaves_the_other_alone():
    table = SharedTable(2, 3, size=5, tables="per_field")
    found = table(torch.tensor([[4, 4]]))[0]
    assert torch.equal(found, table.entries[:, 4])
    two = SharedTable(1, 3, size=5, tables="decoupled")
    two.search(torch.tensor([[1]])).sum().backward()
    assert two.entries.grad is None


@pytest.mark.truth("y = the value's own effect; values without an effect need no vector")
def test_gates_of_values_keep_those_that_matter():
    """The field is useful, half of its values are not: a gate of the field could not tell."""
    table = SharedTable(2, 1, size=6, tables="per_field", gated=True)
    assert torch.equal(table(torch.tensor([[3, 4]])), table.entries[[0, 1], [3, 4]][None])
    effect = torch.tensor([[2.0, -1.5, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, -2.0]])
    ids = torch.cartesian_prod(torch.arange(6), torch.arange(6))
    y = effect[0][ids[:, 0]] + effect[1][ids[:, 1]]
    optimiser = torch.optim.Adam(table.parameters(), 0.03)
    for step in range(400):
        table.gate.progress.fill_(step / 400)
        error = (table(ids).sum((1, 2)) - y).square().mean() + 0.05 * table.gate.gates().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    table.gate.harden()
    kept = table.gate.gates().reshape(2, 6) > 0
    assert kept.equal(effect != 0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SharedTable(1, 4, gated=True), "expected tables='per_field' for gates"),
        (lambda: SharedTable(2, 5, lookups=2), "a width that is a multiple of the lookups"),
        (lambda: SharedTable(1, 4, tables="per_field", lookups=2), "for several lookups"),
        (lambda: SharedTable(1, 4).search(torch.tensor([[1]])), "expected tables='decoupled'"),
        (lambda: SharedTable(1, 4)(torch.tensor([[-1]])), "from 0 to 2147483646"),
        (lambda: SharedTable(1, 4, 9, "per_field")(torch.tensor([[9]])), "from 0 to 8"),
    ],
)
def test_what_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()
