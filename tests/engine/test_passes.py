"""One pass for many instruments: shared, joined, filtered, split, in stages and in chains."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from kept_rows import Keep, Rows, one
from narrow import expect, present
from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import InputError, StateError
from sonde.core.finite import largest
from sonde.core.hashing import rank_key
from sonde.core.instrument import Detector, Every, Instrument, Read, Subsample
from sonde.core.plan import Split
from sonde.core.result import Result
from sonde.core.site import Reducer, Site
from sonde.core.state import State, equal
from sonde.core.statistic import Statistic
from sonde.core.stream import Stream
from sonde.engine.folding import fold, grow, observe_stream
from sonde.engine.passes import merge_pair, observe_unit, states_of
from sonde.engine.requests import Request, Task, requests
from sonde.engine.selection import FiniteRows
from sonde.stats import HashSample, HashSampleState, Moments


@dataclass(frozen=True)
class KeepPairs(Statistic[Rows]):
    span: ClassVar = "pair"

    def observe(self, x: Tensor, y: Tensor) -> Rows:
        return Rows(torch.cat([x, y], dim=1))

    def merge(self, a: Rows, b: Rows) -> Rows:
        return Rows(torch.cat([a.x, b.x]))


@dataclass(frozen=True)
class Percentile(Instrument):
    q: float = 0.5

    def reads(self) -> dict[str, Any]:
        return {"rows": Keep()}

    def result(self, rows: Rows) -> Result:
        return Result(value=float(rows.x[:, 0].quantile(self.q)), n=len(rows.x))


@dataclass(frozen=True)
class Centred(Instrument):
    """First the mean, then the mean square around it, for which a second pass is needed."""

    centre: float | None = None

    def reads(self) -> dict[str, Any]:
        return {"rows": Keep() if self.centre is None else Squares(self.centre)}

    def result(self, rows: Rows) -> Result:
        return Result(value=float(rows.x.mean()), n=len(rows.x))

    def then(self, result: Result) -> "Centred | None":
        return Centred(float(result)) if self.centre is None else None


@dataclass(frozen=True)
class Squares(Statistic[Rows]):
    centre: float

    def observe(self, x: Tensor) -> Rows:
        return Rows((x - self.centre).square())

    def merge(self, a: Rows, b: Rows) -> Rows:
        return Rows(torch.cat([a.x, b.x]))


@dataclass(frozen=True)
class Products(Keep):
    def observe(self, x: Tensor) -> Rows:
        return Rows(x @ x.T)


@pytest.mark.truth("the products in float64")
def test_products_are_made_in_the_type_of_the_rows_under_autocast():
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    request = Request(Products(), ("x",), Every(), "all")
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = observe_stream(Stream.of(x), {request.id: request}).values()
    products = expect(Rows, found).x
    assert products.dtype == torch.float32
    torch.testing.assert_close(products.double(), x.double() @ x.double().T, rtol=1e-5, atol=1e-5)


class Layouts(Stream):
    """Examples with a pooled row and a number of token rows; positions as given."""

    def __init__(self, tokens: Sequence[Sequence[int]], later: Sequence[Sequence[int]]) -> None:
        self.tokens, self.later = tokens, later

    @property
    def schema(self) -> tuple[SiteSchema, ...]:
        return tuple(
            SiteSchema(k, Site(k, order=i), Reducer("flat"), 2) for i, k in enumerate("atb")
        )

    @property
    def group_keys(self) -> Sequence[bytes]:
        return [f"e{i}".encode() for i in range(len(self.tokens))]

    @property
    def grouped(self) -> bool:
        return False

    def identity(self) -> dict[str, Any]:
        return {}

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        positions = {
            "a": [[0] for _ in self.tokens],
            "t": self.tokens,
            "u": self.later,
            "b": [[0] for _ in self.tokens],
        }
        example, position, rows = {}, {}, {}
        for key, lists in positions.items():
            pairs = [(i, p) for i in range(start, stop) for p in lists[i]]
            example[key] = torch.tensor([i - start for i, _ in pairs])
            position[key] = torch.tensor([p for _, p in pairs])
            offset = {"a": 0.0, "t": 0.1, "u": 0.2, "b": 0.3}[key]
            rows[key] = torch.tensor([[i + offset, float(p)] for i, p in pairs]).reshape(-1, 2)
        example["b"], position["b"] = example["a"], position["a"]
        n = stop - start
        yield Batch(
            rows=rows,
            ids=[f"e{i}" for i in range(start, stop)],
            keys=self.group_keys[start:stop],
            order=torch.arange(start, stop),
            occurrence=[0] * n,
            example=example,
            position=position,
            group_keys=self.group_keys[start:stop],
            label=torch.full((n,), -1),
        )


def rows_of(stream: Stream, statistic: Statistic, *keys: str, **options) -> Tensor:
    (state,) = observe_stream(stream, one(statistic, *keys, **options)).values()
    return expect(Rows, state).x


def test_a_dozen_instruments_share_one_statistic():
    stream = Stream.of(torch.randn(100, 2))
    tasks = [Task(Percentile(i / 12), ("x",)) for i in range(12)]
    wanted = requests(tasks)
    assert len(wanted) == 1
    Keep.seen.clear()
    states = observe_stream(stream, wanted)
    assert Keep.seen == [100]
    answers = [float(t.instrument.result(**states_of(t, states))) for t in tasks]
    assert answers == sorted(answers)
    assert len(set(answers)) == 12


def test_sites_filters_and_parts_are_distinct_requests_and_equal_parameters_are_not():
    reads = [
        Read(Keep()),
        Read(Keep("label")),
        Read(Keep(), Subsample(2)),
        Read(Keep(), Subsample(2)),
    ]

    @dataclass(frozen=True)
    class Many(Instrument):
        def reads(self) -> dict[str, Any]:
            return {f"r{i}": r for i, r in enumerate(reads)}

        def result(self, **states: Rows) -> Result:
            return Result()

    assert len(requests([Task(Many(), ("x",))])) == 3
    assert len(requests([Task(Many(), ("x",)), Task(Many(), ("y",))])) == 6
    assert len(requests([Task(Many(), ("x",))], Split(0.5))) == 6


def test_sites_may_have_other_numbers_of_rows():
    stream = Layouts([[0, 1, 2], [], [5]], [[], [7], [8, 9]])
    wanted = {**one(Keep(), "a"), **one(Keep(), "t"), **one(Keep(), "u")}
    counters: dict[str, int] = {}
    states = observe_unit(stream.batches(0, 3), wanted, None, counters)
    sizes = {wanted[i].keys[0]: len(expect(Rows, s).x) for i, s in states.items()}
    assert sizes == {"a": 3, "t": 4, "u": 3}
    assert counters["examples"] == 3
    assert counters["rows|t"] == 4
    positions = rows_of(stream, Keep("position"), "t")
    assert positions.tolist() == [0, 1, 2, 5]


@pytest.mark.truth("brute force over all pairs of rows")
def test_pairs_are_joined_by_example_and_position():
    tokens = [[0, 1, 2, 3], [4, 5], [], [9]]
    later = [[3, 1], [5, 4, 6], [0], [8]]
    stream = Layouts(tokens, later)
    found = rows_of(stream, KeepPairs(), "t", "u")
    expected = [
        [i + 0.1, p, i + 0.2, p] for i in range(4) for p in sorted({*tokens[i]} & {*later[i]})
    ]
    assert torch.allclose(found, torch.tensor(expected))
    same = rows_of(stream, KeepPairs(), "a", "b")
    assert torch.allclose(same[:, 0] + 0.3, same[:, 2])


def with_nan(stream: Layouts, where: dict[str, list[int]]) -> Batch:
    batch = next(stream.batches(0, len(stream)))
    for key, rows in where.items():
        batch.rows[key][rows, 0] = torch.nan
    return batch


def test_a_row_that_is_not_finite_is_dropped_there_and_at_later_sites():
    x = torch.randn(10, 2)
    sites = {"first": x.clone(), "second": x.clone(), "third": x.clone()}
    sites["second"][3, 1] = math.inf
    sites["third"][[3, 5], 0] = math.nan
    stream = Stream.of(sites)
    counters: dict[str, int] = {}
    wanted = {**one(Keep(), "first"), **one(Keep(), "second"), **one(Keep(), "third")}
    wanted |= one(KeepPairs(), "first", "third")
    states = observe_unit(stream.batches(0, 10), wanted, None, counters)
    kept = {wanted[i].keys: expect(Rows, s).x[:, -2:] for i, s in states.items()}
    without = lambda *bad: x[[i for i in range(10) if i not in bad]]  # noqa: E731
    assert torch.equal(kept[("first",)], x)
    assert torch.equal(kept[("second",)], without(3))
    assert torch.equal(kept[("third",)], without(3, 5))
    assert torch.equal(kept[("first", "third")], without(3, 5))
    assert {k: v for k, v in counters.items() if k.startswith("nonfinite")} == {
        "nonfinite|first": 0,
        "nonfinite|second": 1,
        "nonfinite|third": 2,
    }


def test_across_layouts_the_example_is_dropped():
    stream = Layouts([[0, 1], [0, 1], [0, 1]], [[0], [0], [0]])
    finite = FiniteRows(with_nan(stream, {"a": [1], "t": [0]}))
    assert present(finite.kept("a")).tolist() == [True, False, True]
    assert present(finite.kept("t")).tolist() == [False, True, False, False, True, True]
    assert present(finite.kept("u")).tolist() == [False, False, True]
    assert present(finite.kept("b")).tolist() == [False, False, True]
    assert finite.n_bad == {"a": 1, "t": 1, "u": 0, "b": 0}


def test_a_clean_batch_has_no_masks():
    finite = FiniteRows(next(Layouts([[0]], [[0]]).batches(0, 1)))
    assert [finite.kept(k) for k in "atub"] == [None] * 4


def test_many_numbers_of_the_largest_size_are_finite():
    x = torch.full((4, 2), largest(torch.float64), dtype=torch.float64)
    assert len(rows_of(Stream.of(x), Keep(), "x")) == 4


@pytest.mark.truth("mean of squares around the mean, in numpy")
def test_a_second_pass_uses_the_result_of_the_first():
    x = torch.randn(1000, 1, dtype=torch.float64) + 50
    found = Centred().fit(x)
    assert float(found) == pytest.approx(float(x.numpy().var()), rel=1e-12)


@pytest.mark.truth("sorting by unsigned draw in Python")
def test_a_subsample_takes_at_most_cap_rows_of_an_example_those_of_smallest_draw():
    stream = Layouts([list(range(60)), list(range(5)), []], [[], [], []])
    batch = next(stream.batches(0, 3))
    draw = [int(d) & ((1 << 64) - 1) for d in batch.draw("t", "subsample")]
    expected = []
    for example in (0, 1):
        mine = [i for i in range(65) if int(batch.example["t"][i]) == example and draw[i] % 2 == 0]
        expected += sorted(sorted(mine, key=lambda i: draw[i])[:7])
    keep = Subsample(every=2, cap=7).mask(batch, "t")
    assert torch.nonzero(keep).flatten().tolist() == expected
    assert keep[:60].sum() == 7


def test_fit_and_held_are_all():
    x = torch.arange(600.0).reshape(300, 2)
    groups = [f"g{i // 3}" for i in range(300)]
    stream, split = Stream.of(x, group=groups), Split(0.3)
    task = Task(Percentile(), ("x",))
    wanted = requests([task], split)
    assert sorted(r.part for r in wanted.values()) == ["fit", "held"]
    states = observe_stream(stream, wanted, split)
    parts = {
        wanted[i].part: {int(v) // 2 for v in expect(Rows, s).x[:, 0]} for i, s in states.items()
    }
    assert parts["fit"] | parts["held"] == set(range(300))
    assert not parts["fit"] & parts["held"]
    assert not {i // 3 for i in parts["fit"]} & {i // 3 for i in parts["held"]}
    drawn = torch.cat([split.is_held(batch.split_draw) for batch in stream])
    assert parts["held"] == set(torch.nonzero(drawn).flatten().tolist())
    assert len(states_of(task, states, split)["rows"].x) == 300


def test_a_detector_sees_the_fit_part_alone():
    @dataclass(frozen=True)
    class Alarm(Detector):
        def reads(self) -> dict[str, Any]:
            return {
                "rows": Keep(),
                "held": Read(Keep(), part="held"),
                "both": Read(Keep(), part="all"),
            }

        def result(self, **states: Rows) -> Any:
            return None

    stream, split = Stream.of(torch.randn(300, 2)), Split(0.3)
    task = Task(Alarm(), ("x",))
    wanted = requests([task], split)
    assert len(wanted) == 2
    arguments = states_of(task, observe_stream(stream, wanted, split), split)
    sizes = {name: len(s.x) for name, s in arguments.items()}
    assert sizes["rows"] + sizes["held"] == sizes["both"] == 300


@pytest.mark.truth("recursion over halves of the next power of two")
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 11, 16])
def test_the_tree_of_merges_is_that_of_aligned_halves(n):
    @dataclass(frozen=True)
    class Text(State):
        text: str

    @dataclass(frozen=True)
    class Brackets(Statistic[Text]):
        def observe(self, x: Tensor) -> Text:
            return Text(str(len(x)))

        def merge(self, a: Text, b: Text) -> Text:
            return Text(f"({a.text} {b.text})")

    def by_halves(start: int, length: int) -> str | None:
        if start >= n:
            return None
        if length == 1:
            return str(start)
        left, right = by_halves(start, length // 2), by_halves(start + length // 2, length // 2)
        return left if right is None else f"({left} {right})"

    wanted = one(Brackets(), "x")
    (name,) = wanted
    tree: list = []
    for i in range(n):
        tree = grow(wanted, tree, (0, {name: Text(str(i))}))
    assert expect(Text, fold(wanted, tree)[name]).text == by_halves(0, 1 << n.bit_length())
    assert fold(wanted, []) == {name: None}


def test_no_rows_yet_is_none_and_belongs_to_the_runner():
    state = Rows(torch.ones(1, 1))
    assert merge_pair(Keep(), None, None) is None
    assert merge_pair(Keep(), state, None) is merge_pair(Keep(), None, state) is state
    task = Task(Percentile(), ("x",))
    nothing = observe_stream(Stream.of(torch.full((3, 2), torch.nan)), requests([task]))
    assert list(nothing.values()) == [None]
    with pytest.raises(StateError, match="Percentile: no row to fit on at x"):
        states_of(task, nothing)
    with pytest.raises(StateError, match=r"Percentile: no row .* \(part 'fit'\)"):
        states_of(task, dict.fromkeys(requests([task], Split(0.1))), Split(0.1))


def test_what_the_stream_does_not_bring_is_named():
    stream = Stream.of(torch.randn(5, 2))
    with pytest.raises(InputError, match=r"no rows \['z'\], only \['x'\]"):
        rows_of(stream, Keep(), "z")
    with pytest.raises(InputError, match=r"'logits'.*does not have"):
        rows_of(stream, Keep("logits"), "x")
    with pytest.raises(InputError, match=r"'grad'.*objective="):
        rows_of(stream, Keep("grad"), "x")
    with pytest.raises(InputError, match="at least one row, got none"):
        Percentile().fit(torch.zeros(0, 2))
    with pytest.raises(InputError, match="expected one array, got 2"):
        Percentile().fit({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)})


def test_what_is_stored_does_not_depend_on_which_other_instruments_run():
    stream = Stream.of(torch.randn(5000, 3))
    alone = observe_stream(stream, one(Keep(), "x"))
    wanted = {**one(Keep(), "x"), **one(Keep("draw"), "x"), **one(Keep(), "x", where=Subsample())}
    together = observe_stream(stream, wanted)
    assert all(equal(alone[i], together[i]) for i in alone)


def test_rank_keys_order_a_capped_example():
    draw = torch.tensor([-1, 0, 5])
    assert torch.argsort(rank_key(draw)).tolist() == [1, 2, 0]


@pytest.mark.truth("the rows of smallest draw, sorted; the tree of merges unit by unit")
def test_a_full_sample_absorbs_rows_beside_statistics_that_wait_in_the_tree():
    x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(7))
    stream = Stream.of(x)
    wanted = {**one(HashSample(600), "x"), **one(Moments(), "x")}
    sampled, moments = wanted
    states = observe_stream(stream, wanted, unit_size=256)
    draws = torch.cat([b.column("draw", "x") for b in stream])
    smallest = torch.argsort(rank_key(draws))[:600]
    kept = present(states[sampled])
    assert isinstance(kept, HashSampleState)
    assert torch.equal(kept.rows, x[smallest])
    assert kept.n == 5000
    tree: list[Any] = []
    for start in range(0, 5000, 256):
        unit = observe_unit(stream.batches(start, min(start + 256, 5000)), wanted)
        tree = grow(wanted, tree, (0, unit))
    folded = fold(wanted, tree)
    assert equal(present(states[moments]), present(folded[moments]))
    assert equal(kept, present(folded[sampled]))


def test_only_a_full_sample_absorbs():
    sample, rows = HashSample(8), torch.zeros(20, 1)
    draw = torch.arange(20)
    few = sample.observe(rows[:7], draw[:7], draw[:7], draw[:7])
    assert not sample.absorbs(few)
    assert sample.absorbs(few, few)
    assert sample.absorbs(sample.observe(rows, draw, draw, draw))
    assert not Moments().absorbs(Moments().observe(rows))
