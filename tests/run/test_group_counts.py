"""How many groups the rows of a state come from: of a part, of a merge, of arrays of examples."""

from collections import Counter

import pytest
import torch

from sonde.core import Stream
from sonde.core.batch import Batch
from sonde.core.errors import StateError
from sonde.detect import Hotelling, Mahalanobis
from sonde.engine.derived import DerivedStream
from sonde.files.state_file import read_state, state_type, write_state
from sonde.measure import ParticipationRatio
from sonde.run.comparing.drift import drift
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.fitting.merge import merge

GROUPS, ROWS = 100, 8


def _side(seed, groups=GROUPS, rows=ROWS):
    """Return rows that are nearly alike in each group, and the group of each."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(groups, 4, generator=generator).repeat_interleave(rows, 0)
    x = centre + 0.05 * torch.randn(groups * rows, 4, generator=generator)
    return x, [f"{seed} {i // rows}" for i in range(groups * rows)]


def _weeks(seed, groups=GROUPS, rows=ROWS, shared=True):
    """Return two streams of the same people, or of others, and one stream of all rows."""
    x, group = _side(seed, groups, rows)
    first = torch.arange(len(x)) % rows < rows // 2
    if not shared:
        first = torch.arange(len(x)) < len(x) // 2
    ids = [f"{seed} {i}" for i in range(len(x))]

    def part(chosen):
        at = torch.nonzero(chosen).flatten().tolist()
        return Stream.of(x[at], ids=[ids[i] for i in at], group=[group[i] for i in at])

    return part(first), part(~first), part(first | ~first)


@pytest.mark.truth("the groups of the rows not held out, counted by hand")
@pytest.mark.parametrize("calibrate", [0.2, 0.8])
def test_a_part_counts_its_own_groups(calibrate):
    bundles, wanted = [], []
    for seed in (1, 2):
        x, group = _side(seed)
        stream = Stream.of(x, group=group)
        bundles.append(fit(Mahalanobis(), stream, calibrate=calibrate, progress=False))
        (batch,) = stream.batches(0, len(stream))
        held = bundles[-1].split.is_held(batch.split_draw).tolist()
        wanted.append(len({g for g, out in zip(group, held, strict=True) if not out}))
    assert drift(bundles[0], bundles[1], Hotelling())["hotelling", "x"].sides == tuple(wanted)


@pytest.mark.slow
@pytest.mark.truth("no change: p-values are uniform")
def test_a_part_alarms_as_often_as_promised():
    alarms = 0
    for seed in range(20):
        sides = (Stream.of(x, group=g) for x, g in (_side(2 * seed), _side(2 * seed + 1)))
        bundles = [fit(Mahalanobis(), s, calibrate=0.8, progress=False) for s in sides]
        alarms += drift(bundles[0], bundles[1], Hotelling())["hotelling", "x"].p <= 0.05
    assert alarms <= 5, f"{alarms} alarms of 20 at 5 %"


@pytest.mark.truth("one pass over all rows")
def test_groups_that_two_bundles_share_count_once():
    parts = [fit(ParticipationRatio(), s, progress=False) for s in _weeks(0)]
    merged, one = merge(*parts[:2]), parts[2]
    assert merged.header["data"]["n_groups"] == one.header["data"]["n_groups"] == GROUPS
    found, want = (bundle.result("participation_ratio") for bundle in (merged, one))
    assert found.se == pytest.approx(want.se, rel=1e-6)


@pytest.mark.slow
@pytest.mark.truth("the groups in both parts, counted by hand")
@pytest.mark.parametrize("shared", [True, False])
def test_a_merge_counts_more_groups_than_it_knows_by_draw(shared, tmp_path):
    first, second, whole = _weeks(0, 2_000, 2, shared)
    a, b, one = (fit(Hotelling(), s, progress=False) for s in (first, second, whole))
    a.save(tmp_path / "a.sonde")
    found = merge(Fitted.load(tmp_path / "a.sonde"), b)
    assert found.header["data"]["n_groups"] == len(Counter(whole.group_keys)) == 2_000
    assert found.header["group_draws"] == one.header["group_draws"]
    held = [fit(Mahalanobis(), s, calibrate=0.1, progress=False) for s in (first, second, whole)]
    assert merge(*held[:2]).header["data"]["held"] == held[2].header["data"]["held"]


@pytest.mark.truth("the groups in both parts, counted by hand")
def test_a_merge_of_many_groups_of_which_some_are_shared():
    x, group = _side(0, 3_000, 1)
    ids = [f"{i}" for i in range(len(x))]
    first = Stream.of(x[:2_000], group=group[:2_000], ids=ids[:2_000])
    second = Stream.of(x[1_000:], group=group[1_000:], ids=[f"{i} again" for i in ids[1_000:]])
    merged = merge(*(fit(Hotelling(), s, progress=False) for s in (first, second)))
    assert merged.header["data"]["n_groups"] == pytest.approx(3_000, rel=0.08)


@pytest.mark.truth("the same rows with their ids as groups")
@pytest.mark.parametrize("calibrate", [0, 0.9])
def test_rows_of_one_example_are_a_group(calibrate):
    found = []
    for names in ("ids", "group"):
        sides = [_side(seed) for seed in (1, 2)]
        position = [i % ROWS for i in range(len(sides[0][0]))]
        own = [{"ids": g, "position": position, names: g} for _, g in sides]
        bundles = [
            fit(Mahalanobis(), Stream.of(x, **o), calibrate=calibrate, progress=False)
            for (x, _), o in zip(sides, own, strict=True)
        ]
        found.append(drift(bundles[0], bundles[1], Hotelling())["hotelling", "x"])
    assert found[0].sides == found[1].sides
    assert max(found[0].sides) <= GROUPS
    assert found[0].p == found[1].p


def test_arrays_of_one_row_for_each_example_have_no_groups():
    x, group = _side(0, 20, 1)
    assert not Stream.of(x, ids=group, position=range(20)).grouped
    assert not Stream.of(x, position=range(20)).grouped
    assert not Stream.of(x, ids=["one"] * 20).grouped


@pytest.mark.parametrize("change", [{"group_draws": "12"}, {"data": {"n_groups": 3, "held": 2}}])
def test_damaged_counts_are_refused(tmp_path, change):
    path, (x, group) = tmp_path / "a.sonde", _side(0)
    bundle = fit(Hotelling(), Stream.of(x, group=group), progress=False)
    bundle.save(path)
    types = {i: state_type(r.statistic) for i, r in bundle.requests.items()}
    header, states = read_state(path, types)
    write_state(path, {**header, **change}, states)
    with pytest.raises(StateError, match="damaged at"):
        Fitted.load(path)


@pytest.mark.slow
@pytest.mark.truth("spread of the value over 24 simulated data sets")
def test_error_bars_of_several_rows_an_example_count_examples():
    """Examples without a group column, of more rows together than a sample holds."""
    errors, values, wide = [], [], torch.tensor([1.0, 2.0, 3.0, 5.0])
    for seed in range(24):
        x, group = _side(seed, 200, 30)
        rows = Stream.of(x * wide, ids=group, position=[i % 30 for i in range(len(x))])
        found = fit(ParticipationRatio(), _Ungrouped(rows), progress=False)
        errors.append(found.result("participation_ratio").se)
        values.append(float(found.result("participation_ratio").value))
    spread = float(torch.tensor(values).std())
    assert sum(errors) / 24 == pytest.approx(spread, rel=0.4)


class _Ungrouped(DerivedStream):
    """Rows as a model gives them that reads each token of short texts."""

    @property
    def grouped(self) -> bool:
        return False

    def __init__(self, inner: Stream) -> None:
        self.inner = inner

    def changed(self, batch: Batch) -> Batch:
        return batch
