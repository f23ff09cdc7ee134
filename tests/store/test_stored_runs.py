"""Fits, scores and scans of stored rows are those of the live ones."""

from typing import Any

import pytest
import torch

import sonde
from models import mlp
from run_case import rows, stream
from sonde.core.errors import InputError, SiteError, StateError, StoreError
from sonde.core.stream import Stream
from sonde.detect import KNN, Energy, Mahalanobis, ViM
from sonde.findings.evidence.facts import data_evidence
from sonde.findings.evidence.inputs.unusual_rows import copies
from sonde.findings.scan import scan_stream
from sonde.findings.settings import ScanSettings
from sonde.run.fitting.fit import fit
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.opening import open_for
from sonde.run.scoring.score import score
from sonde.store import Store, write_store
from sonde.tap import LiveStream

QUIET: dict[str, Any] = {"progress": False}
SITES = ["0", "2", "3", "4"]


def live(n=150, sites=SITES, seed=0, n_in=8, items=3):
    x = torch.randn(n, n_in, generator=torch.Generator().manual_seed(items))
    return sonde.read(mlp(n_in, seed=seed), list(x), sites=list(sites), logits=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(live(), tmp_path_factory.mktemp("store") / "acts", unit_size=64)


@pytest.mark.truth("a fit on the live stream")
def test_a_fit_is_the_same_file(store, tmp_path):
    instruments = [Mahalanobis(), KNN(k=3), Energy(), ViM()]
    one = fit(instruments, live(), unit_size=64, **QUIET).save(tmp_path / "live.sonde")
    assert fit(instruments, store, unit_size=64, **QUIET).save(tmp_path / "a.sonde") == one
    assert fit(instruments, store, **QUIET).save(tmp_path / "b.sonde") == one


@pytest.mark.truth("a fit on the live stream at fewer sites")
def test_a_fit_at_some_sites_is_the_same_file(store, tmp_path):
    one = fit(KNN(k=3), live(sites=["2"]), unit_size=64, **QUIET).save(tmp_path / "live.sonde")
    part = sonde.read(store, sites="2")
    assert [s.key for s in part.schema] == ["2:out"]
    assert fit(KNN(k=3), part, **QUIET).save(tmp_path / "a.sonde") == one


@pytest.mark.truth("scores of the live model")
def test_a_state_scores_stored_and_live_rows_alike(store):
    x = torch.randn(150, 8, generator=torch.Generator().manual_seed(3))
    on_live = fit([Mahalanobis(), Energy()], live(), unit_size=64, **QUIET)
    on_store = fit([Mahalanobis(), Energy()], store, **QUIET)
    wanted = score(on_live, mlp(), list(x), **QUIET)
    for fitted in (on_live, on_store):
        assert score(fitted, store, **QUIET).equals(wanted)
        assert score(fitted, mlp(), list(x), **QUIET).equals(wanted)


@pytest.mark.truth("a calibration on the live stream")
def test_a_state_is_calibrated_by_prediction_on_stored_rows(store, tmp_path):
    fitted = fit(Mahalanobis(), live(items=4), calibrate=0, **QUIET)
    want = calibrate(fitted, live(), by="predicted", **QUIET).save(tmp_path / "live.sonde")
    found = calibrate(fitted, store, by="predicted", **QUIET)
    assert found.save(tmp_path / "store.sonde") == want


def test_only_the_sites_of_the_state_are_read(store):
    fitted = fit(KNN(k=3), sonde.read(store, sites=["0"]), **QUIET)
    found = open_for(fitted, store, None)
    assert [s.key for s in found.schema] == ["0:out"]


def test_a_store_of_another_model_is_refused(store, tmp_path):
    fitted = fit(KNN(k=3), live(seed=1), **QUIET)
    with pytest.raises(StateError, match=r"another model: its weights differ"):
        score(fitted, store, **QUIET)


def test_a_store_without_a_site_of_the_state_is_refused(tmp_path):
    fitted = fit(KNN(k=3), live(), **QUIET)
    place = write_store(live(sites=["0"]), tmp_path / "a")
    with pytest.raises(StateError, match=r"at 2:out .as fitted., got nothing"):
        score(fitted, place, **QUIET)


@pytest.mark.slow
@pytest.mark.truth("a scan of the arrays")
def test_a_scan_is_the_same(tmp_path):
    settings = ScanSettings(progress=False)
    label = [i % 3 for i in range(300)]
    source = Stream.of({"a": rows(300), "b": rows(300, 6, 1)}, label=label)
    place = write_store(source, tmp_path / "acts")
    checks = [
        {c.code: (c.state, c.reason, repr(c)) for c in scan_stream(s, settings=settings).checks}
        for s in (source, Store(place))
    ]
    assert checks[0] == checks[1]
    assert sonde.scan(place, settings=settings).json()["schema"] == "sonde-scan/1"


@pytest.mark.slow
@pytest.mark.truth("the listing of the data that the store was read from")
def test_pieces_of_a_text_are_told_from_copies_of_it(tmp_path):
    texts = [{"text": f"line {i} " * (60 if i < 2 else 3)} for i in range(12)]
    texts += [{"text": "line 0 " * 60}]
    stream = sonde.read("sonde:stdlib", texts, sites=["model.layers.1", "model.layers.2"])
    want, got = (
        data_evidence(s, "texts") for s in (stream, Store(write_store(stream, tmp_path / "acts")))
    )
    assert want.piece is not None
    assert got.piece is not None
    assert want.size is not None
    assert got.size is not None
    assert want.piece.max() == 1
    assert got.piece.tolist() == want.piece.tolist()
    assert got.size.tolist() == want.size.tolist()
    assert vars(copies(got)) == vars(copies(want))
    assert copies(got).n_extra == 1


@pytest.mark.slow
def test_a_scan_of_two_stores_of_which_one_knows_no_attention_kernel(store, tmp_path, monkeypatch):
    known, settings = LiveStream.identity, ScanSettings(progress=False)
    for kernel in ("eager", "sdpa"):
        monkeypatch.setattr(LiveStream, "identity", lambda s, k=kernel: known(s) | {"attn": k})
        write_store(live(items=4), tmp_path / kernel, unit_size=64)
    sonde.scan(store, versus=tmp_path / "sdpa", settings=settings)
    with pytest.raises(StateError, match="attn is 'eager' here and was 'sdpa'"):
        sonde.scan(tmp_path / "eager", versus=tmp_path / "sdpa", settings=settings)


@pytest.mark.slow
def test_a_scan_of_two_stores(store, tmp_path):
    settings = ScanSettings(progress=False)
    other = write_store(live(items=4), tmp_path / "b", unit_size=64)
    report = sonde.scan(store, versus=other, settings=settings).json()
    assert report["schema"] == "sonde-scan/1"
    with pytest.raises(StateError, match="its weights differ"):
        sonde.scan(store, versus=write_store(live(seed=1), tmp_path / "c"), settings=settings)
    with pytest.raises(InputError, match="expected another store"):
        sonde.scan(store, versus="sonde:digits/test", settings=settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "x.npz"}, "contains its data, got x.npz in addition"),
        ({"limit": 3}, "leave out limit"),
        ({"batch_size": 3}, "leave out batch_size"),
        ({"further": ["tokens"]}, "leave out further"),
        ({"seed": 3}, "leave out seed"),
        ({"objective": "nll"}, "read with objective=None, but 'nll' is needed"),
        ({"keep_special": True}, "keep_special=False"),
    ],
)
def test_what_only_a_model_does_is_refused(store, options, message):
    with pytest.raises(InputError, match=message):
        sonde.read(store, **options)


def test_logits_that_were_not_read_are_refused(tmp_path):
    net, items = mlp(), list(torch.zeros(4, 8))
    place = write_store(sonde.read(net, items, sites="0", logits=False), tmp_path / "a")
    with pytest.raises(InputError, match="read with logits=False, but True is needed"):
        sonde.read(place, logits=True)
    assert len(sonde.read(place, logits=False)) == 4


def test_sites_and_reducers_that_are_not_there_are_named(store):
    with pytest.raises(SiteError, match=r"has no site '1'. It has 0:out, 2:out, 3:out"):
        sonde.read(store, sites="1")
    with pytest.raises(SiteError, match="no rows of the reducer 'tokens', only"):
        sonde.read(store, reducer="tokens")


def test_a_missing_file_is_named_before_work_starts(tmp_path):
    place = write_store(stream(60), tmp_path / "a")
    path = sorted((place / "rows").rglob("*.arrow"))[-1]
    path.unlink()
    with pytest.raises(StoreError, match=f"{path.name} is missing. Run the command"):
        sonde.read(place)
    with pytest.raises(StoreError, match=r"is missing\. Run the command"):
        list(Store(place))


def test_another_unit_size_is_named_before_work_starts(store):
    with pytest.raises(InputError, match=r"unit size of the store, 64 examples, got 30"):
        fit(KNN(), store, unit_size=30, **QUIET)


@pytest.mark.truth("the rows that were written")
def test_any_range_of_examples_comes_back():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = Store(write_store(stream(100), f"{folder}/a", unit_size=30))
        for start, stop in ((0, 1), (29, 31), (10, 100), (0, 100), (99, 100)):
            batches = list(store.batches(start, stop))
            assert torch.cat([b.order for b in batches]).tolist() == list(range(start, stop))
            found = torch.cat([b.rows["x"] for b in batches])
            assert torch.equal(found, rows(100)[start:stop])
            assert all(len(b.ids) == len(b.keys) == len(b.order) for b in batches)
