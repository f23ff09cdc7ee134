"""Methods that hold rows out hold whole groups out, and their errors count groups."""

import math

import pytest
import torch
from tests.narrow import present
from tests.student import student
from torch import nn

from sonde.core.errors import InputError
from sonde.explain import Comet, ConceptBottleneck, Das, InterchangeIntervention, SurrogateRules
from sonde.explain._held_groups import RowGroups


def test_groups_are_held_out_as_a_whole_in_the_given_order() -> None:
    groups = RowGroups.of("test", torch.tensor([7, 3, 7, 9, 3, 5]), torch.zeros(6, 2))
    assert groups.member.tolist() == [0, 1, 0, 2, 1, 3]
    held, used = groups.parted("test", 0.5, torch.tensor([2, 0, 1, 3]))
    assert (held.tolist(), used.tolist()) == ([3, 0, 2], [1, 4, 5])
    held, used = groups.parted("test", 0.99, torch.tensor([2, 0, 1, 3]))
    assert used.tolist() == [5]
    alone = RowGroups.of("test", torch.arange(6), torch.zeros(6, 2))
    order = torch.tensor([4, 1, 0, 5, 2, 3])
    assert torch.cat(alone.parted("test", 0.5, order)).tolist() == order.tolist()


def test_one_group_and_groups_of_other_rows_are_refused() -> None:
    one = RowGroups.of("test", torch.zeros(6, dtype=torch.int64), torch.zeros(6, 2))
    with pytest.raises(InputError, match="rows of at least two groups"):
        one.parted("test", 0.5, torch.arange(1))
    with pytest.raises(InputError, match=r"a group for each of 6 rows, got shape \(5,\)"):
        RowGroups.of("test", torch.arange(5), torch.zeros(6, 2))


@pytest.mark.truth("the share of draws whose interval holds the true fraction .7")
def test_the_error_of_a_fraction_counts_groups() -> None:
    random, holds, alone = torch.Generator().manual_seed(3), 0, 0
    member = torch.arange(60) // 4
    for _ in range(400):
        right = (torch.rand(15, generator=random) < 0.7)[member].double()
        off = abs(float(right.mean()) - 0.7)
        holds += off <= 1.959964 * present(RowGroups(member).error(right))
        alone += off <= 1.959964 * math.sqrt(float(right.var()) / 60)
    assert 0.92 <= holds / 400 <= 0.98
    assert alone / 400 < 0.75


DRAW = torch.Generator().manual_seed(0)
ROWS = torch.randn(60, 5, generator=DRAW)
LOT = torch.randint(2, (60,), generator=DRAW)
OFTEN = torch.arange(60).repeat(6)


class ByHeart(nn.Module):
    """Answers each known row with a class by lot."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.eye(2)[LOT[torch.cdist(x, ROWS).argmin(1)]]


@pytest.mark.truth("labels by lot: what was learned of a row says nothing of another")
@pytest.mark.parametrize("named", [False, True])
def test_copies_of_rows_are_never_on_both_sides(named: bool) -> None:
    group = OFTEN if named else None
    rows, label = ROWS[OFTEN], LOT[OFTEN]
    bank = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    made = {
        "concepts": ConceptBottleneck("l1", steps=60, held_out=0.4).fit(rows, bank, label, group),
        "rules": SurrogateRules(depth=12, held_out=0.4).explain(ByHeart(), rows, group=group),
    }
    for name, found in made.items():
        assert abs(float(found.value) - 0.5) < 0.3, name
        assert found.n == 24, name
        assert ("copies" in found.flags) == (not named), name


class Cut(nn.Module):
    """Says whether the first number is above 0, by a layer that exchanges it."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.same(x)[:, 0]
        return torch.stack([-first, first], 1)


@pytest.mark.truth("a mean of groups of equal size, and its spread over them")
def test_pairs_and_pictures_count_groups_too() -> None:
    random = torch.Generator().manual_seed(2)
    base, source = (torch.randn(20, 3, generator=random) for _ in "bs")
    expected = (source[:, 0] > 0).long()
    wrong = torch.arange(20) % 4 == 0
    expected[wrong] = 1 - expected[wrong]
    often = torch.arange(20).repeat_interleave(5)
    model = Cut()
    one, many = (
        InterchangeIntervention(units=[0]).explain(
            model, base[i], source=source[i], expected=expected[i], site="same", group=i
        )
        for i in (torch.arange(20), often)
    )
    assert (one.value, many.value, many.n) == (0.75, 0.75, 20)
    want = math.sqrt(0.75 * 0.25 / 19) * student(20)
    assert present(one.se) == pytest.approx(want) == present(many.se)
    das = Das(k=1, steps=5).fit(
        model, base[often], source[often], expected[often], "same", group=often
    )
    assert das.n == 5
    assert "few_groups" in das.flags
    x = torch.rand(12, 1, 4, 4, generator=random)
    label, lot = torch.arange(12) % 2, torch.arange(12).repeat(3)

    def net() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))

    few = Comet(steps=3, patch=2, batch=4).fit(net, x, label, (x[lot], label[lot]), lot)
    assert few.n == 12
    own = RowGroups(torch.arange(12)).error((few(x).argmax(1) == label).double())
    assert present(few.se) == pytest.approx(present(own))
