"""Fits: which rows meet which instruments, what is shared, held out, and learnt by steps."""

import inspect
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy import stats

from models import mlp
from narrow import present
from probe_learner import MinibatchProbe, ProbeSteps
from run_case import Stopping, rows, stream
from sonde.core.errors import InputError, SondeWarning, StateError
from sonde.core.instrument import Instrument
from sonde.core.result import Result
from sonde.core.site import Reducer
from sonde.core.state import equal
from sonde.core.stream import Stream
from sonde.detect import KNN, MSP, GradNorm, Mahalanobis
from sonde.engine.progress import Bar
from sonde.measure import (
    CKA,
    LayerCKA,
    ParticipationRatio,
    StableRank,
    UnitEntropy,
    UpdateSize,
    cka,
    unit_entropy,
)
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.instruments.entries import place_of
from sonde.run.instruments.tasks import assign
from sonde.run.passes.driver import Interrupted
from sonde.run.passes.ledger import Ledger
from sonde.run.reading.read import read
from sonde.run.scoring.score import score
from sonde.stats import Moments

QUIET: dict[str, Any] = {"progress": False}


def three_sites(n=300):
    x = rows(n, 4)
    return Stream.of({"a": x, "b": x * 2 + 1, "c": rows(n, 4, seed=1)})


def test_each_span_meets_its_sites():
    schema = three_sites().schema
    tasks = assign([ParticipationRatio(), UpdateSize(), LayerCKA()], schema, None)
    assert [t.keys for t in tasks] == [
        ("a",), ("b",), ("c",),
        ("a", "b"), ("b", "c"),
        ("a", "b", "c"),
    ]  # fmt: skip


@pytest.mark.truth("the same rows with their text as the group")
def test_the_tokens_of_a_text_are_a_group_of_rows():
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(90, 5, generator=source), torch.randn(90, 3, generator=source)
    text = torch.arange(9).repeat_interleave(torch.tensor([4, 21, 7, 9, 2, 17, 11, 13, 6]))
    position = torch.cat([torch.arange(int(n)) for n in text.bincount()])
    stream = Stream.of({"x": x, "y": y}, ids=text, position=position)
    found = fit([CKA(), CKA(grouped=False)], stream, **QUIET)
    one, other = (found.result(name) for name in ("cka(grouped=True)", "cka(grouped=False)"))
    assert one.value == pytest.approx(cka(x, y, group=text).value, rel=1e-9)
    assert other.value == pytest.approx(cka(x, y).value, rel=1e-9)
    assert (one.n, other.n) == (9, 90)
    tokens = [replace(s, reducer=Reducer("tokens")) for s in stream.schema]
    assert [t.instrument for t in assign([CKA()], tokens, None)] == [CKA(grouped=True)]
    few = Stream.of({"x": x[:30], "y": y[:30]}, ids=text[:30], position=position[:30])
    with pytest.raises(InputError, match="at least 4 groups, got 3"):
        fit(CKA(), few, **QUIET).result("cka")


def test_what_reads_the_logits_alone_stands_once():
    x, logits = rows(300, 4), rows(300, 3, seed=2)
    both = Stream.of({"a": x, "b": x * 2 + 1, "c": rows(300, 4, seed=1)}, logits=logits)
    fitted = fit([MSP(), GradNorm(), Mahalanobis()], both, **QUIET)
    places = [(place_of(*name), name[1]) for name in fitted.names]
    assert places == [("logits", "c"), *[(site, site) for site in "abc"] * 2]
    mine = fitted.result("msp")
    scores = -torch.softmax(logits[:5].double(), dim=1).max(dim=1).values
    assert torch.allclose(mine.score(logits[:5]).double(), scores)


def test_a_pair_needs_two_sites():
    with pytest.raises(InputError, match=r"UpdateSize: expected at least two sites, got \['x'\]"):
        fit(UpdateSize(), stream(), **QUIET)


def two_widths():
    return Stream.of({"a": rows(300, 4), "b": rows(300, 4, seed=1), "c": rows(300, 6)})


def test_pairs_of_unequal_width_are_left_out_and_named():
    with pytest.warns(SondeWarning, match=r"left out: UpdateSize: .*got b \(4\) & c \(6\)\.$"):
        fitted = fit([UpdateSize(), ParticipationRatio()], two_widths(), **QUIET)
    assert [place for _, place in fitted.names] == ["a & b", "a", "b", "c"]
    assert fitted.result("update_size").n == 300


def test_what_needs_two_sites_is_left_out_at_one():
    with pytest.warns(SondeWarning, match=r"LayerCKA: expected at least two sites, got \['x'\]"):
        fitted = fit([LayerCKA(), ParticipationRatio()], stream(), **QUIET)
    assert len(fitted) == 1


def test_too_few_rows_are_refused_by_name_and_number():
    four = {"a": rows(4, 3), "b": rows(4, 3, seed=1)}
    assert LayerCKA().fit(four).n == 4
    with pytest.raises(InputError, match=r"LayerCKA: expected at least 4 rows, got 3 at a & b\."):
        LayerCKA().fit({key: x[:3] for key, x in four.items()})
    fitted = fit(StableRank(), stream(1), **QUIET)
    with pytest.raises(InputError, match=r"StableRank: expected at least 2 rows, got 1 at x\."):
        fitted.result("stable_rank")


def test_nothing_left_is_an_error():
    uneven = Stream.of({"a": rows(50, 4), "b": rows(50, 6)})
    with pytest.raises(InputError, match=r"UpdateSize: .*a \(4\) & b \(6\)\. Name other sites"):
        fit([UpdateSize(), UpdateSize()], uneven, **QUIET)


@pytest.mark.truth("numpy covariance and eigenvalues")
def test_one_site_one_pair_and_all_sites_in_one_pass():
    fitted = fit([ParticipationRatio(), UpdateSize(), LayerCKA()], three_sites(), **QUIET)
    assert len(fitted) == 6
    values = np.linalg.eigvalsh(np.cov(rows(300, 4).double().numpy().T))
    expected = values.sum() ** 2 / (values**2).sum()
    assert fitted.result("participation_ratio", "a").value == pytest.approx(expected, rel=1e-6)
    assert fitted.result(LayerCKA).value.shape == (3, 3)


@pytest.mark.truth("forward of the net by hand")
def test_a_live_net():
    net = mlp(n_in=8, width=16)
    x = torch.randn(90, 8, generator=torch.Generator().manual_seed(2))
    fitted = fit(StableRank(), read(net, list(x), sites=["0", "2"]), **QUIET)
    with torch.no_grad():
        hidden = net[0](x).double().numpy()
    values = np.linalg.eigvalsh(np.cov(hidden.T))
    found = fitted.result("stable_rank", "0").value
    assert found == pytest.approx(values.sum() / values.max(), rel=1e-5)


@dataclass(frozen=True)
class Trace(Instrument):
    """One of many that read the same statistic."""

    power: float = 1.0
    examples: ClassVar = ({},)

    def reads(self):
        return {"moments": Moments()}

    def result(self, moments) -> Result:
        return Result(value=float(moments.scatter.detach().trace()) ** self.power, n=moments.n)


def test_a_dozen_instruments_share_one_statistic(monkeypatch):
    calls: Counter[str] = Counter()

    def counted(name):
        original = getattr(Moments, name)

        def wrapped(self, *columns):
            calls[name] += 1
            return original(self, *columns)

        # needs() reads parameter names off the function
        wrapped.__signature__ = inspect.signature(original)
        wrapped.__annotations__ = original.__annotations__
        return wrapped

    alone, many = Counter(), Counter()
    for instruments, kept in (
        ([Trace()], alone),
        ([Trace(1 + i / 12) for i in range(12)], many),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Moments, "observe", counted("observe"))
            patch.setattr(Moments, "update", counted("update"))
            calls.clear()
            fitted = fit(instruments, stream(700), **QUIET)
            kept.update(calls)
    assert len(fitted) == 12
    assert sum(alone.values()) > 0
    assert alone == many
    assert len({round(float(r), 9) for _, r in fitted}) == 12


def test_instruments_of_one_class_are_told_apart_by_their_parameters():
    fitted = fit([KNN(k=3), KNN(k=9), KNN(k=3)], stream(), **QUIET)
    assert fitted.names == [("knn(k=3)", "x"), ("knn(k=9)", "x")]
    a, b = (fitted.result(KNN(k=k)).scorer.k for k in (3, 9))
    assert (a, b) == (3, 9)
    with pytest.raises(StateError, match=r"expected one result of 'knn'.*got 2"):
        fitted.result("knn")
    table = score(fitted, stream(50, seed=3), progress=False)
    assert set(table["instrument"].to_pylist()) == {"knn(k=3)", "knn(k=9)"}


@pytest.mark.truth("split by the keyed hash of each row, brute force")
def test_detectors_are_fitted_on_one_part_and_calibrated_on_the_other():
    source = stream(500)
    fitted = fit(Mahalanobis(), source, calibrate=0.3, **QUIET)
    held = present(fitted.split).is_held(next(iter(source.batches(0, 500))).split_draw)
    scorer = fitted.result("mahalanobis")
    assert scorer.n == int((~held).sum())
    assert scorer.calibration.n == int(held.sum())
    alone = Mahalanobis().fit(rows(500)[~held]).score(rows(500)[held])
    between = alone.sort().values[40:42].mean()
    expected = (1 + (alone >= between).sum()) / (1 + held.sum())
    assert scorer.calibration.p_value(between[None]).item() == pytest.approx(expected.item())


def test_five_groups_calibrate_and_say_which_rate_they_can_promise(capsys):
    seen = set()
    for seed in range(8):
        group = [f"{seed}-{i % 5}" for i in range(60)]
        fitted = fit(Mahalanobis(), Stream.of(rows(60), group=group))
        told, n_held = capsys.readouterr().err, fitted.result("mahalanobis").calibration.n
        assert f"{n_held} of 5 groups" in told
        assert f"below {1 / (n_held + 1):.0%} can be guaranteed; a rate of 10% needs 9" in told
        seen.add(present(fitted.split).cut is None)
    assert seen == {True, False}
    fit(Mahalanobis(), Stream.of(rows(60), group=[1] * 60))
    assert "with only one group, no rows can be held out" in capsys.readouterr().err
    fit(Mahalanobis(), stream(200))
    assert "promised" not in capsys.readouterr().err


@pytest.mark.truth("binomial quantiles")
def test_p_values_of_fresh_rows_hold_their_promise():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(3000, 3, generator=generator)
    fitted = fit(Mahalanobis(), Stream.of(x[:2000]), calibrate=0.5, **QUIET)
    table = score(fitted, Stream.of(x[2000:]), progress=False)
    p = np.array(table["p"].to_pylist())
    n_held = fitted.result("mahalanobis").calibration.n
    for alpha in (0.05, 0.2):
        alarms = int((p <= alpha).sum())
        k = int(alpha * (n_held + 1))
        low, high = stats.betabinom.ppf([1e-4, 1 - 1e-4], 1000, k, n_held + 1 - k)
        assert low <= alarms <= high, (alpha, alarms)


@pytest.mark.truth("the same question on plain arrays")
def test_two_stages_give_what_the_arrays_give(tmp_path):
    x = rows(900, 3)
    fitted = fit(UnitEntropy(n_bins=8), Stream.of(x), **QUIET)
    direct = unit_entropy(x, n_bins=8)
    result = fitted.result("unit_entropy")
    assert result.value == pytest.approx(direct.value, rel=1e-12)
    assert torch.equal(result.edges, direct.edges)
    fitted.save(tmp_path / "a.sonde")
    again = Fitted.load(tmp_path / "a.sonde")
    assert again.names == [("unit_entropy", "x")]
    assert again.result("unit_entropy").value == result.value
    assert again.save(tmp_path / "b.sonde") == fitted.save(tmp_path / "c.sonde")


def test_two_stages_do_not_merge():
    a = fit(UnitEntropy(), stream(300), **QUIET)
    b = fit(UnitEntropy(), stream(300, seed=1), **QUIET)
    with pytest.raises(StateError, match="two passes cannot be merged"):
        a.merge(b)


@pytest.mark.truth("the states of a run with a directory, which commits every unit")
@pytest.mark.parametrize("n", [5 * 32, 8 * 32 + 1])
def test_a_run_that_keeps_nothing_is_one_commit_of_the_same_bits(tmp_path, monkeypatch, n):
    commits: list[tuple[int, int]] = []
    put = Ledger.put

    def counted(self, start, stop, states, counters):
        commits.append((start, stop))
        put(self, start, stop, states, counters)

    monkeypatch.setattr(Ledger, "put", counted)
    instruments, n_units = [Mahalanobis(), StableRank()], -(-n // 32)
    kept = fit(instruments, stream(n), unit_size=32, directory=tmp_path / "a.run", **QUIET)
    assert commits == [(i, i + 1) for i in range(n_units)]
    commits.clear()
    brief = fit(instruments, stream(n), unit_size=32, **QUIET)
    assert commits == [(0, n_units)]
    assert all(equal(brief.states[i], kept.states[i]) for i in kept.states)
    commits.clear()
    monkeypatch.setattr("sonde.run.passes.driver.HELD_BYTES", 0)
    large = fit(instruments, stream(n), unit_size=32, **QUIET)
    assert len(commits) == n_units
    assert all(equal(large.states[i], kept.states[i]) for i in kept.states)


@pytest.mark.truth("a fit of the rows before the interruption")
def test_an_interrupted_run_that_keeps_nothing_tells_what_it_has():
    source = stream(7 * 32)
    with pytest.raises(Interrupted, match="after 5 of 7 units") as stopped:
        fit(Mahalanobis(), Stopping(source, after=5), unit_size=32, calibrate=0.0, **QUIET)
    first = fit(Mahalanobis(), stream(5 * 32), unit_size=32, calibrate=0.0, **QUIET)
    found = stopped.value.partial.states
    assert found.keys() == first.states.keys()
    assert all(equal(found[i], first.states[i]) for i in found)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_goes_on_tells_first_what_was_done(tmp_path, monkeypatch, workers):
    told: list[int] = []
    monkeypatch.setattr(Bar, "advance", lambda _, n: told.append(n))
    how = {"unit_size": 32, "directory": tmp_path / "a.run", "threads": 1, **QUIET}
    source = stream(7 * 32)
    with pytest.raises(Interrupted, match="after 5 of 7 units"):
        fit(Mahalanobis(), Stopping(source, after=5), **how)
    assert told == 5 * [32]
    told.clear()
    fit(Mahalanobis(), source, workers=workers, **how)
    assert told[0] == 5 * 32
    assert sum(told) == 7 * 32


@pytest.mark.truth("the same steps by hand")
def test_a_learner_takes_its_steps_in_plan_order():
    x = rows(300, 4)
    y = (x[:, 0] > 3).long()
    fitted = fit(MinibatchProbe(), Stream.of(x, label=y), unit_size=50, **QUIET)
    statistic = ProbeSteps()
    state = statistic.start(4)
    for first in range(0, 300, 50):
        state = statistic.update(state, x[first : first + 50], y[first : first + 50])
    result = fitted.result(MinibatchProbe)
    assert result.value == state.steps
    assert torch.equal(result.weight, state.weight)
    share = ((x.double() @ state.weight + state.bias > 0) == y.bool()).double().mean()
    assert share > 0.7


def test_an_interrupted_learner_goes_on_from_its_checkpoint(tmp_path):
    x = rows(2560, 4)
    source = Stream.of(x, label=(x[:, 0] > 3).long())
    whole = fit([MinibatchProbe(), Trace()], source, unit_size=256, **QUIET)
    stopping = Stopping(source, after=10 + 6)  # ten units for the trace, six for the probe
    with pytest.raises(Interrupted):
        fit(
            [MinibatchProbe(), Trace()],
            stopping,
            unit_size=256,
            directory=tmp_path / "a.run",
            **QUIET,
        )
    assert (tmp_path / "a.run" / "chain.sonde").exists()
    resumed = Stopping(source)
    again = fit(
        [MinibatchProbe(), Trace()], resumed, unit_size=256, directory=tmp_path / "a.run", **QUIET
    )
    assert resumed.asked == [(u * 256, u * 256 + 256) for u in range(6, 10)]
    assert again.states.keys() == whole.states.keys()
    assert all(equal(again.states[i], whole.states[i]) for i in whole.states)


def test_a_learner_of_several_walks_goes_on_in_the_one_that_was_interrupted(tmp_path):
    x = rows(1024, 4)
    source = Stream.of(x, label=(x[:, 0] > 3).long())
    place = tmp_path / "a.run"
    once, thrice = MinibatchProbe(), MinibatchProbe(passes=3)
    whole = fit([once, thrice], source, unit_size=256, **QUIET)
    assert [whole.result(p).value for p in (once, thrice)] == [64, 192]
    stopping = Stopping(source, after=4 + 4 + 2)  # counting, the first walk, half of the second
    with pytest.raises(Interrupted, match="after 4 of 4 units, in training") as stopped:
        fit([once, thrice], stopping, unit_size=256, directory=place, **QUIET)
    assert not stopped.value.partial.complete
    resumed = Stopping(source)
    again = fit([once, thrice], resumed, unit_size=256, directory=place, **QUIET)
    assert resumed.asked == [(512, 768), (768, 1024), *((u, u + 256) for u in range(0, 1024, 256))]
    assert all(equal(again.states[i], whole.states[i]) for i in whole.states)


def test_a_learner_refuses_to_merge():
    y = torch.arange(300) % 2
    a = fit(MinibatchProbe(), stream(300, label=y), **QUIET)
    b = fit(MinibatchProbe(), stream(300, seed=1, label=y), **QUIET)
    with pytest.raises(StateError, match="a trained state cannot be merged"):
        a.merge(b)


@pytest.mark.parametrize(
    ("instruments", "message"),
    [
        ([], "expected at least one instrument, got none"),
        ([Mahalanobis], r"got .*Mahalanobis.*Call it: add \(\)"),
    ],
)
def test_what_is_no_instrument_is_refused(instruments, message):
    with pytest.raises(InputError, match=message):
        fit(iter(instruments), stream(), **QUIET)


def test_a_stream_in_the_place_of_the_instruments_or_of_an_array_is_answered_with_the_right_call():
    with pytest.raises(InputError, match="expected instruments, then a stream"):
        fit(stream(), stream(), **QUIET)
    with pytest.raises(InputError, match=r"sonde\.fit\(Mahalanobis\(\.\.\.\), stream\)"):
        Mahalanobis().fit(stream())


def test_no_rows_are_refused():
    with pytest.raises(InputError, match="The data is empty"):
        fit(Mahalanobis(), Stream.of(torch.zeros(0, 3)), **QUIET)


def test_more_memory_than_allowed_is_refused_before_the_start():
    stopping = Stopping(stream(), after=0)
    with pytest.raises(InputError, match=r"this run needs about .* 1 KiB are allowed.*--mem"):
        fit(Mahalanobis(), stopping, memory=1000, **QUIET)
    assert stopping.asked == []


def test_rows_that_are_not_finite_are_dropped_counted_and_score_inf():
    x = rows(400)
    x[[3, 28], 1] = torch.nan
    stream = Stream.of(x, ids=[str(i) for i in range(400)])  # which are held out hangs on the ids
    fitted = fit(Mahalanobis(), stream, **QUIET)
    assert fitted.header["counters"]["nonfinite|x"] == 2
    table = score(fitted, stream, progress=False)
    scores = np.array(table["score"].to_pylist())
    assert np.flatnonzero(np.isinf(scores)).tolist() == [3, 28]
    scorer = fitted.result("mahalanobis")
    n_infinite = int(scorer.calibration.scores.isinf().sum())  # held out, where they calibrate
    assert n_infinite == 1
    assert scorer.n + scorer.calibration.n == 398 + n_infinite


def test_all_nan_says_so():
    with pytest.raises(StateError, match=r"no row to fit on at x.*states are finite"):
        fit(Mahalanobis(), Stream.of(torch.full((80, 3), torch.nan)), **QUIET).result("mahalanobis")


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    source = stream(2000, 6)
    instruments = [Mahalanobis(), ParticipationRatio()]
    paths = []
    for n in (1, 3):
        fitted = fit(instruments, source, workers=n, directory=tmp_path / f"{n}.run", **QUIET)
        fitted.save(tmp_path / f"{n}.sonde")
        paths.append(tmp_path / f"{n}.sonde")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    fit(instruments, source, threads=1, **QUIET).save(tmp_path / "0.sonde")
    assert (tmp_path / "0.sonde").read_bytes() == paths[0].read_bytes()


def test_what_cannot_be_sent_to_a_process_is_named():
    class Local(Stopping):
        pass

    with pytest.raises(InputError, match=r"cannot be sent to other processes.*--workers 0"):
        fit(Mahalanobis(), Local(stream()), workers=1, **QUIET)
