"""Bundles: saved, loaded, merged, refused; passes that were interrupted; tables of scores."""

import json
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import csv, parquet
from torch import Tensor

from contract.statistics import CASES
from models import mlp
from narrow import present
from run_case import Stopping, rows, stream
from sonde.core.errors import InputError, StateError, StoreError
from sonde.core.instrument import Instrument
from sonde.core.result import Result
from sonde.core.statistic import Statistic
from sonde.core.stream import Stream
from sonde.detect import KNN, Hotelling, Mahalanobis
from sonde.engine.running import Running
from sonde.files.state_file import read_header, read_state, write_state
from sonde.measure import ParticipationRatio, StableRank
from sonde.run.comparing.drift import drift
from sonde.run.fitting._soundness import flaw_of
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.fitting.merge import merge
from sonde.run.instruments.catalogue import detectors, find, methods
from sonde.run.passes.directory import remove_run, run_directory
from sonde.run.passes.driver import Interrupted
from sonde.run.reading.read import read
from sonde.run.scoring.batches import SCHEMA
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.score import score
from sonde.run.scoring.tables import write_table
from sonde.stats import Moments
from sonde.stats.moments import MomentsState
from sonde.store.outputs import check_file
from sonde.testing.rows import make_columns
from sonde.testing.statistic_laws import state_of

QUIET: dict[str, Any] = {"progress": False}


@dataclass(frozen=True)
class Spread(Instrument):
    """Total variance."""

    examples: ClassVar = ({},)

    def reads(self):
        return {"moments": Moments()}

    def result(self, moments) -> Result:
        return Result(value=moments.scatter.trace() / moments.n, n=moments.n)


@final
@dataclass(frozen=True)
class TooLarge(Statistic[MomentsState]):
    """Sums that leave their type."""

    def observe(self, x: Tensor) -> MomentsState:
        return MomentsState(len(x), x[0] + math.inf, x[0])

    def merge(self, a, b):
        return a


@dataclass(frozen=True)
class Overflowing(Instrument):
    """Reads it."""

    examples: ClassVar = ({},)

    def reads(self):
        return {"moments": TooLarge()}

    def result(self, moments) -> Result:
        return Result(n=moments.n)


@pytest.fixture(scope="module")
def bundle():
    return fit([Mahalanobis(), ParticipationRatio()], stream(400), **QUIET)


def test_saved_and_loaded_it_says_the_same(tmp_path, bundle):
    identity = bundle.save(tmp_path / "a.sonde")
    again = Fitted.load(tmp_path / "a.sonde")
    assert again.names == bundle.names
    assert again.result("participation_ratio").value == bundle.result("participation_ratio").value
    fresh = stream(60, seed=9)
    assert score(again, fresh, **QUIET).equals(score(bundle, fresh, **QUIET))
    assert again.save(tmp_path / "b.sonde") == identity


def test_a_file_names_no_place_time_or_importable_path(tmp_path, bundle):
    bundle.save(tmp_path / "a.sonde")
    text = json.dumps(read_header(tmp_path / "a.sonde"))
    assert str(tmp_path) not in text
    assert "sonde." not in text


def test_classes_of_ones_own_are_named_on_loading(tmp_path):
    fit(Spread(), stream(), **QUIET).save(tmp_path / "a.sonde")
    with pytest.raises(StateError, match="no method is called 'spread'"):
        Fitted.load(tmp_path / "a.sonde")
    again = Fitted.load(tmp_path / "a.sonde", instruments=[Spread])
    assert again.result(Spread).n == 600


@pytest.mark.truth("one pass over all rows")
def test_two_halves_merge_to_one_pass(tmp_path):
    x = rows(800, 5)
    instruments = [Mahalanobis(), StableRank()]
    whole = fit(instruments, Stream.of(x), **QUIET)
    parts = [fit(instruments, Stream.of(p), **QUIET) for p in (x[:300], x[300:])]
    for i, part in enumerate(parts):
        part.save(tmp_path / f"{i}.sonde")
    both = merge(*(Fitted.load(tmp_path / f"{i}.sonde") for i in range(2)))
    assert both.header["data"]["n_examples"] == 800
    assert both.header["counters"]["rows|x"] == 800
    one, two = whole.result("stable_rank"), both.result("stable_rank")
    assert two.value == pytest.approx(one.value, rel=1e-6)
    assert two.se == pytest.approx(one.se, rel=1e-4)
    fresh = Stream.of(rows(50, 5, seed=4))
    a, b = (score(f, fresh, **QUIET) for f in (whole, both))
    np.testing.assert_allclose(a["score"].to_numpy(), b["score"].to_numpy(), rtol=1e-5)
    assert a["p"].equals(b["p"])


def test_rows_never_count_twice(bundle):
    with pytest.raises(StateError, match=r"twice|overlap|same unit"):
        merge(bundle, bundle)
    other_cut = fit([Mahalanobis(), ParticipationRatio()], stream(400), unit_size=100, **QUIET)
    with pytest.raises(StateError, match=r"the same data.*under different plans"):
        merge(bundle, other_cut)


@pytest.mark.parametrize(
    ("instruments", "options", "message"),
    [
        ([Mahalanobis()], {}, "hold different states"),
        ([Mahalanobis(shrinkage=0.5), KNN()], {}, "hold different states"),
        ([Mahalanobis(), ParticipationRatio()], {"calibrate": 0.5}, "hold out different rows"),
    ],
)
def test_what_was_fitted_otherwise_does_not_merge(bundle, instruments, options, message):
    other = fit(instruments, stream(400, seed=8), **options, **QUIET)
    with pytest.raises(StateError, match=message):
        merge(bundle, other)


def test_other_parameters_of_the_same_states_do_not_merge():
    five, seven = (fit(KNN(k=k), stream(200, seed=k), **QUIET) for k in (5, 7))
    assert five.requests.keys() == seven.requests.keys()
    assert five.spec != seven.spec
    with pytest.raises(StateError, match=r"different methods .*KNN\(k=5.*KNN\(k=7"):
        merge(five, seven)
    again = fit(KNN(k=5), stream(200, seed=9), **QUIET)
    assert again.spec == five.spec
    assert merge(five, again).spec == five.spec


def of_groups(names, seed):
    x, group = rows(12 * len(names), 5, seed=seed), [n for n in names for _ in range(12)]
    return fit(Mahalanobis(), Stream.of(x, group=group), **QUIET)


def test_cuts_that_few_groups_moved_merge_unless_a_shared_group_lies_between(tmp_path):
    """Seed and names are such that the hash alone holds out no group of ``few``."""
    few, many = (of_groups([f"{i}" for i in each], 1) for each in (range(2, 7), range(20, 60)))
    assert present(few.split).cut is not None
    few.save(tmp_path / "few.state")
    assert Fitted.load(tmp_path / "few.state").split == few.split
    both = merge(few, many)
    assert both.split == many.split == merge(many, few).split
    n = [f.header["data"]["held"]["n_groups"] for f in (few, many, both)]
    assert n == [1, n[1], 1 + n[1]]
    assert both.result("mahalanobis").calibration.n == n[2]
    shared = of_groups([f"{i}" for i in [*range(2, 7), *range(20, 50)]], 2)
    with pytest.raises(StateError, match="1 group of both bundles is held out in one"):
        merge(few, shared)


def test_other_models_do_not_merge():
    x = list(torch.randn(80, 8, generator=torch.Generator().manual_seed(0)))
    parts = [
        fit(StableRank(), read(mlp(seed=s), x[40 * s : 40 * s + 40], sites="0"), **QUIET)
        for s in (0, 1)
    ]
    with pytest.raises(StateError, match="bundles of the same model"):
        merge(*parts)


def test_nothing_to_merge():
    with pytest.raises(InputError, match="at least one fitted bundle"):
        merge()


def test_damaged_files_are_refused(tmp_path, bundle):
    path = tmp_path / "a.sonde"
    bundle.save(path)
    content = path.read_bytes()
    for at in (10, len(content) // 2, len(content) - 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(StateError):
            Fitted.load(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(StateError):
        Fitted.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"entries": 3},
        {"entries": [{"instrument": "knn"}]},
        {"entries": [{"instrument": "../../x", "params": {}, "sites": [], "calibrated": None}]},
        {"sites": [{"text": 1}]},
        {"units": None},
        {"data": {}},
        {"split": {"held": "much"}},
        {"sample": {"columns": 4}},
        {"version": 99},
        {"format": "other"},
    ],
)
def test_hostile_headers_are_refused(tmp_path, bundle, change):
    path = tmp_path / "a.sonde"
    bundle.save(path)
    header, states = read_state(path, _types(bundle))
    write_state(path, {**header, **change}, states)
    with pytest.raises(StateError, match=r"header of|expected a fitted state of version"):
        Fitted.load(path)


@pytest.mark.parametrize(("version", "advice"), [(99, "A later sonde wrote it"), (0, "Fit it ag")])
def test_what_to_do_with_another_version(tmp_path, bundle, version, advice):
    path = tmp_path / "a.sonde"
    bundle.save(path)
    header, states = read_state(path, _types(bundle))
    write_state(path, {**header, "version": version}, states)
    with pytest.raises(StateError, match=rf"got 'sonde-state' version {version} at .*{advice}"):
        Fitted.load(path)


def _types(bundle):
    from sonde.files.state_file import state_type

    return {i: state_type(r.statistic) for i, r in bundle.requests.items()}


class Twice(torch.nn.Sequential):
    """The layers of a network, all of which run twice."""

    def __init__(self, net):
        super().__init__(*net)

    def forward(self, x):
        """Return the second of two equal answers."""
        super().forward(x)
        return super().forward(x)


def test_scores_belong_to_the_model_site_and_reducer_of_the_fit():
    x = list(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)))
    net = mlp()
    fitted = fit(Mahalanobis(), read(net, x, sites=["0", "2"]), **QUIET)
    assert score(fitted, net, x, **QUIET).num_rows == 120
    with pytest.raises(StateError, match=r"fitted for another model: its weights differ"):
        score(fitted, mlp(seed=3), x, **QUIET)
    with pytest.raises(StateError, match=r"cannot be read from this model: .*got '0'"):
        score(fitted, torch.nn.Linear(8, 4).eval(), x, **QUIET)
    with pytest.raises(StateError, match=r"'0' is called 2 times .* @last or @all\. If this is"):
        score(fitted, Twice(net), x, **QUIET)
    with pytest.raises(StateError, match=r"expected dim=16, reducer .* at 2:out.*got nothing"):
        score(fitted, net, x, sites="0", **QUIET)
    with pytest.raises(StateError, match=r"holds no detector\. Fit one"):
        score(fit(StableRank(), stream(), **QUIET), stream(), **QUIET)
    with pytest.raises(InputError, match="The data is empty"):
        score(fitted, Stream.of(torch.zeros(0, 4)), **QUIET)


@pytest.mark.truth("the scorer's own scores and p-values")
def test_columns_of_a_score(bundle):
    x = rows(30, seed=5)
    table = score(bundle, Stream.of(x, ids=[f"r{i}" for i in range(30)]), **QUIET)
    assert table.schema.equals(SCHEMA)
    assert table["id"].to_pylist() == [f"r{i}" for i in range(30)]
    assert set(table["instrument"].to_pylist()) == {"mahalanobis"}
    scorer = bundle.result("mahalanobis")
    expected = scorer.score(x).double()
    assert table["score"].to_pylist() == expected.tolist()
    assert table["p"].to_pylist() == scorer.calibration.p_value(expected).tolist()


def test_without_calibration_there_is_no_p():
    fitted = fit(Mahalanobis(), stream(), calibrate=0, **QUIET)
    assert score(fitted, stream(20, seed=1), **QUIET)["p"].null_count == 20


@pytest.mark.truth("pyarrow and json read what was written")
def test_formats_of_tables(tmp_path, bundle):
    table = score(bundle, stream(10, seed=2), **QUIET)
    for suffix in ("parquet", "csv", "json", "jsonl"):
        write_table(table, tmp_path / f"t.{suffix}")
    assert parquet.read_table(tmp_path / "t.parquet").equals(table)
    assert csv.read_csv(tmp_path / "t.csv")["score"].to_pylist() == table["score"].to_pylist()
    lines = (tmp_path / "t.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == table.to_pylist()
    assert json.loads((tmp_path / "t.json").read_text()) == table.to_pylist()
    write_table(table[:0], tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text()) == []
    with pytest.raises(InputError, match=r"ends in .parquet, .csv, .json, .jsonl, got t.xls"):
        write_table(table, tmp_path / "t.xls")
    assert not (tmp_path / "t.xls").exists()


def test_json_has_no_infinity(tmp_path):
    table = pa.Table.from_pylist(
        [{"id": "a", "position": 0, "site": "x", "instrument": "knn", "score": np.inf, "p": 0.1}],
        schema=SCHEMA,
    )
    write_table(table, tmp_path / "t.jsonl")
    assert json.loads((tmp_path / "t.jsonl").read_text())["score"] is None
    write_table(table, tmp_path / "t.parquet")
    assert parquet.read_table(tmp_path / "t.parquet")["score"].to_pylist() == [np.inf]


@pytest.mark.parametrize("after", [1, 3, 6])
def test_an_interrupted_pass_goes_on_with_the_same_bytes(tmp_path, after):
    source, instruments = stream(700), [Mahalanobis(), ParticipationRatio()]
    options = {"unit_size": 100, **QUIET}
    fit(instruments, source, **options).save(tmp_path / "whole.sonde")
    directory = tmp_path / "a.run"
    with pytest.raises(Interrupted, match=rf"interrupted after {after} of 7 units.*a\.run") as stop:
        fit(instruments, Stopping(source, after), directory=directory, **options)
    assert stop.value.partial.done == after
    assert any(state is not None for state in stop.value.partial.states.values())
    resumed = Stopping(source)
    fitted = fit(instruments, resumed, directory=directory, **options)
    assert len(resumed.asked) == 7 - after
    fitted.save(tmp_path / "resumed.sonde")
    assert (tmp_path / "resumed.sonde").read_bytes() == (tmp_path / "whole.sonde").read_bytes()
    remove_run(directory)
    assert not directory.exists()


@pytest.mark.truth("a fit of the committed rows alone")
def test_what_an_interrupted_pass_holds_is_valid():
    source = stream(700)
    with pytest.raises(Interrupted) as stop:
        fit(ParticipationRatio(), Stopping(source, 3), unit_size=100, **QUIET)
    partial = stop.value.partial
    moments = next(s for s in partial.states.values() if isinstance(s, MomentsState))
    x = rows(700)[:300].double()
    torch.testing.assert_close(moments.mean, x.mean(0), rtol=1e-6, atol=1e-6)
    assert partial.counters["rows|x"] == 300


def test_a_directory_of_another_plan_is_refused_until_fresh(tmp_path):
    directory = tmp_path / "a.run"
    with pytest.raises(Interrupted):
        fit(KNN(), Stopping(stream(700), 2), unit_size=100, directory=directory, **QUIET)
    with pytest.raises(StoreError, match=r"another plan.*--fresh"):
        fit(KNN(), stream(500, seed=1), directory=directory, **QUIET)
    fitted = fit(KNN(), stream(500, seed=1), directory=directory, fresh=True, **QUIET)
    assert fitted.header["data"]["n_examples"] == 500


def test_another_number_of_threads_is_another_plan(tmp_path):
    options = {"unit_size": 100, "directory": tmp_path / "a.run", **QUIET}
    with pytest.raises(Interrupted):
        fit(KNN(), Stopping(stream(700), 2), threads=1, **options)
    with pytest.raises(StoreError, match=r"another plan \(threads=1 in each worker, not 2"):
        fit(KNN(), stream(700), threads=2, **options)
    for method, source, reason in (
        (ParticipationRatio(), stream(700), "other methods or options"),
        (KNN(), stream(600), "other data or sites"),
    ):
        with pytest.raises(StoreError, match=rf"another plan \({reason}"):
            fit(method, source, threads=1, **options)


def test_outputs_are_checked_before_work(tmp_path):
    assert run_directory(tmp_path / "p.sonde") == tmp_path / "p.run"
    check_file(tmp_path / "p.sonde")
    check_file(tmp_path / "p.sonde", "-", tmp_path / "none.npz", "sonde:digits/test", "")
    with pytest.raises(StoreError, match=r"there is no folder .*none"):
        check_file(tmp_path / "none" / "p.sonde")
    with pytest.raises(StoreError, match="it is a folder"):
        check_file(tmp_path)


def test_a_path_stands_for_the_bundle_that_it_holds(tmp_path, bundle):
    path = tmp_path / "probe.sonde"
    bundle.save(path)
    fresh = stream(100, seed=5)
    assert score(path, fresh, progress=False) == score(bundle, fresh, progress=False)
    ours = calibrate(str(path), fresh, progress=False)
    theirs = calibrate(bundle, fresh, progress=False)
    assert score(ours, fresh, progress=False) == score(theirs, fresh, progress=False)
    assert merge(path).header == merge(Fitted.load(path)).header
    assert drift(path, str(path), Hotelling()).moved() == []


def test_the_catalogue_has_words_and_near_ones():
    words = methods()
    assert list(words) == sorted(words)
    assert {"knn", "mahalanobis", "relative_mahalanobis", "nac", "layer_cka"} <= words.keys()
    assert {"knn", "energy"} <= detectors().keys() < words.keys()
    for word, method in words.items():
        assert find(word) is method.cls
    with pytest.raises(InputError, match=r"'mahalanobs'.*mahalanobis.*sonde methods"):
        find("mahalanobs")


def _asymmetric(state):
    scatter = state.scatter.clone()
    scatter[0, 1] += 1.0
    return replace(state, scatter=scatter)


NONSENSE = {
    "asymmetric": (_asymmetric, "scatter is not symmetric"),
    "negative n": (lambda s: replace(s, n=-5), "n is negative"),
    "NaN": (lambda s: replace(s, mean=s.mean * math.nan), "mean is not finite"),
    "negative spread": (lambda s: replace(s, scatter=-s.scatter), "scatter is negative"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_a_whole_file_of_nonsense_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr("sonde.run.fitting.fitted.require_finite", lambda _: None)
    path = tmp_path / "a.sonde"
    fitted = fit(ParticipationRatio(), stream(300), **QUIET)
    damage, said = NONSENSE[name]
    states = {i: damage(s) if isinstance(s, MomentsState) else s for i, s in fitted.states.items()}
    replace(fitted, states=states).save(path)
    with pytest.raises(StateError, match=rf"a\.sonde holds an invalid state .*: {said}"):
        Fitted.load(path)


def test_what_is_not_finite_is_not_written(tmp_path):
    path, x = tmp_path / "a.sonde", torch.zeros(8, 2)
    said = r"write_state: expected a finite state .*, got NaN or infinity in mean, although"
    with pytest.raises(StateError, match=said):
        fit(Overflowing(), Stream.of(x), **QUIET)
    running = Running(Overflowing())
    running.update(x)
    with pytest.raises(StateError, match=said):
        running.save(path)
    fitted = fit(ParticipationRatio(), stream(300), **QUIET)
    states = {i: TooLarge().observe(torch.zeros(8, 2)) for i in fitted.states}
    with pytest.raises(StateError, match=said):
        replace(fitted, states=states).save(path)
    assert not path.exists()


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.parametrize("n", [1, 60])
def test_honest_states_are_no_nonsense(case, n):
    assert flaw_of(state_of(case, make_columns(n, 3))) is None
