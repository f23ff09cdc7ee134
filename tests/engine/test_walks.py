"""Learners: trained in the order of the plan, in as many walks over the rows as they want."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kept_rows import Rows
from narrow import expect
from sonde.core.errors import StateError
from sonde.core.instrument import Every
from sonde.core.state import equal
from sonde.core.statistic import Learner, Statistic
from sonde.core.stream import Stream
from sonde.engine.folding import observe_stream
from sonde.engine.requests import Request
from sonde.stats import Moments


@dataclass(frozen=True)
class Walk(Learner[Rows]):
    seed: int = 0

    def start(self, dim: int) -> Rows:
        return Rows(torch.randn(dim, generator=torch.Generator().manual_seed(self.seed)), 0)

    def update(self, state: Rows, x: Tensor) -> Rows:
        return Rows(0.5 * state.x + x.mean(0), state.calls + 1)


@dataclass(frozen=True)
class Centring(Learner[Rows]):
    """One walk for the mean, then the mean square around it, until a walk was seen to be enough."""

    passes: int = 2
    enough: int = 99

    def start(self, dim: int) -> Rows:
        return Rows(torch.zeros(4, dtype=torch.float64), 0)

    def n_passes(self) -> int:
        return self.passes

    def update(self, state: Rows, x: Tensor) -> Rows:
        mean, total, n, _ = state.x.tolist()
        value = x.double()[:, 0] if state.calls == 0 else (x.double()[:, 0] - mean).square()
        return Rows(
            torch.tensor([mean, total + float(value.sum()), n + len(x), 0.0], dtype=torch.float64),
            state.calls,
        )

    def close_pass(self, state: Rows) -> Rows:
        mean, total, n, _ = state.x.tolist()
        first = state.calls == 0
        found = torch.tensor([total / n if first else mean, 0, 0, total / n], dtype=torch.float64)
        return Rows(found, state.calls + 1)

    def is_trained(self, state: Rows) -> bool:
        return state.calls >= self.enough


def one(statistic: Statistic, key: str) -> dict[str, Request]:
    """Return the request for all rows of one site."""
    request = Request(statistic, (key,), Every(), "all")
    return {request.id: request}


@pytest.mark.truth("the same steps in a plain loop")
def test_a_learner_walks_the_units_in_order_from_its_seed():
    x = torch.randn(700, 3)
    stream = Stream.of(x)
    wanted = {**one(Walk(5), "x"), **one(Moments(), "x")}
    states = observe_stream(stream, wanted)
    learned = expect(
        Rows, next(s for i, s in states.items() if isinstance(wanted[i].statistic, Walk))
    )
    w = torch.randn(3, generator=torch.Generator().manual_seed(5))
    for start in range(0, 700, 256):
        w = 0.5 * w + x[start : start + 256].mean(0)
    assert torch.equal(learned.x, w)
    assert learned.calls == 3
    assert equal(observe_stream(stream, one(Walk(5), "x"))[next(iter(one(Walk(5), "x")))], learned)
    other = next(iter(observe_stream(stream, one(Walk(6), "x")).values()))
    assert not torch.equal(expect(Rows, other).x, w)


@pytest.mark.truth("mean of squares around the mean, in numpy")
def test_a_learner_walks_over_the_rows_as_often_as_it_wants():
    x = torch.randn(700, 1, dtype=torch.float64) + 50

    def learned(statistic: Centring) -> Rows:
        states = observe_stream(Stream.of(x), {**one(statistic, "x"), **one(Walk(5), "x")})
        found = [s for s in map(lambda s: expect(Rows, s), states.values()) if len(s.x) == 4]
        return found[0]

    two = learned(Centring())
    assert float(two.x[3]) == pytest.approx(float(x.numpy().var()), rel=1e-9)
    assert [learned(Centring(passes=n)).calls for n in (1, 3)] == [1, 3]
    assert learned(Centring(passes=9, enough=2)).calls == 2
    assert equal(learned(Centring(passes=9, enough=2)), two)


def test_a_learner_that_saw_no_row_does_not_walk_on():
    states = observe_stream(Stream.of(torch.full((3, 1), torch.nan)), one(Centring(), "x"))
    assert list(states.values()) == [None]


def test_a_learner_has_no_state_of_a_batch_and_no_sum():
    with pytest.raises(StateError, match="updated in plan order"):
        Walk().observe(torch.zeros(1, 1))
    state = Walk().start(1)
    with pytest.raises(StateError, match="cannot be merged"):
        Walk().merge(state, state)
    assert Walk().needs() == ("x",)
