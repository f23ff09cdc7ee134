"""``sonde info``: every kind of file, from its header, within 80 columns, and rows never opened."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ledger_case import case
from run_case import stream
from sonde.core.stream import Stream
from sonde.detect import Mahalanobis
from sonde.engine.running import Running
from sonde.files.state_file import read_header, write_state
from sonde.measure import Covariance, UnitEntropy
from sonde.run.fitting.fit import fit
from sonde.run.fitting.merge import merge
from sonde.run.passes.ledger import Ledger
from sonde.run.scoring.calibrate import calibrate
from sonde.run.training.track import Track
from sonde.stats import Moments
from sonde.store import Store, write_store
from sonde.store.exporting import export_store


@pytest.fixture(scope="module")
def acts(tmp_path_factory) -> Path:
    x = {f"a.very.long.module.path.layers.{i}.mlp": torch.randn(120, 4) for i in range(12)}
    place = tmp_path_factory.mktemp("info") / "acts"
    kinds = {"kind": ["a"] * 120}
    return write_store(
        Stream.of(x, group=[i // 3 for i in range(120)]), place, unit_size=30, columns=kinds
    )


def described(run, path: Path) -> dict:
    """Return the facts; the text must fit and say the kind."""
    ran = run("info", path)
    assert ran.code == 0, ran.err
    assert max(map(len, ran.out.splitlines())) <= 80
    facts = run("info", path, "--json").json()
    assert facts["kind"].split(",")[0] in ran.out
    return facts


@pytest.mark.truth("what was written")
def test_a_store(run, acts):
    facts = described(run, acts)
    assert (facts["n_examples"], facts["n_groups"], facts["n_units"]) == (120, 40, 4)
    assert facts["size_bytes"] == sum(p.stat().st_size for p in (acts / "rows").rglob("*.arrow"))
    assert len(facts["sites"]) == 12
    assert {(s["dim"], s["reducer"]) for s in facts["sites"]} == {(4, "flat")}
    assert facts["columns"] == {"kind": "text"}
    assert facts["in_use_by"] is None


@pytest.mark.truth("the stream of the store")
def test_sites_count_once_every_data_set_has_them(run, tmp_path):
    rng = np.random.default_rng(0)
    for name, n in (("a", 60), ("b", 50)):
        x = rng.normal(size=(n, 4)).astype("f4")
        np.savez(tmp_path / f"{name}.npz", p=x, q=x[:, :3], id=[f"{name}{i}" for i in range(n)])
    acts, first, second = tmp_path / "acts", tmp_path / "a.npz", tmp_path / "b.npz"
    assert run("read", "-", first, "-o", acts, "--sites", "p").code == 0
    assert run("read", "-", second, "-o", acts, "--sites", "p", "--append").code == 0

    def said_by(ran):
        assert ran.code == 0, ran.err
        found = described(run, acts)
        assert [s["key"] for s in found["sites"]] == [s.key for s in Store(acts).schema]
        assert [line.split()[0] for line in ran.out.splitlines()] == [
            s["key"] for s in found["sites"]
        ]
        return [(s["key"], s["n_data_sets"]) for s in found["partial_sites"]]

    ran = run("read", "-", second, "-o", acts, "--sites", "q", "--add-sites")
    assert said_by(ran) == [("q", 1)]
    assert "q (1 of 2 data sets). Add them to the other data sets with --add-sites" in ran.err
    assert said_by(run("read", "-", first, "-o", acts, "--sites", "q", "--add-sites")) == []


def test_no_row_is_read(run, tmp_path):
    place = write_store(stream(90), tmp_path / "a", unit_size=30)
    before = described(run, place)
    for path in (place / "rows").rglob("*.arrow"):
        path.write_bytes(b"\0" * path.stat().st_size)
    for path in (place / "ranges").glob("*"):
        path.write_bytes(b"")
    assert described(run, place) == before


@pytest.mark.truth("what was committed")
def test_a_run_directory(run, tmp_path):
    job, place = case(0), tmp_path / "a.run"
    ledger = Ledger(place, job.plan, job.wanted)
    for unit in (0, 1, 2, 5):
        ledger.put(unit, unit + 1, *job.leaf(unit))
    ledger.compact()
    one = described(run, place)["passes"][0]
    assert (one["n_done"], one["n_units"], one["n_files"]) == (4, 11, 3)
    assert one["n_examples"] == job.plan.n_examples
    facts = described(run, place / "states" / "0-2.sonde")
    assert (facts["kind"], facts["units"]) == ("state of a run", [[0, 1]])
    (place / "plan.json").write_text("{")
    assert "sonde verify" in run("info", place).error()


def test_a_running_state(run, tmp_path):
    running = Running(Moments())
    running.update(torch.randn(7, 2))
    running.save(tmp_path / "a.sonde")
    facts = described(run, tmp_path / "a.sonde")
    assert (facts["kind"], facts["n_rows"]) == ("running state", 7)


@pytest.mark.slow
@pytest.mark.truth("what was written")
def test_the_pages_of_other_commands(run, tmp_path):
    for seed, name in enumerate(("a", "b")):
        found = fit(Covariance(), stream(60, seed=seed), progress=False)
        found.save(tmp_path / f"{name}.sonde")
    pages = [tmp_path / "d.html", tmp_path / "d.json"]
    for page in pages:
        assert run("drift", tmp_path / "a.sonde", tmp_path / "b.sonde", "-o", page).code == 0
        facts = described(run, page)
        assert (facts["kind"], facts["schema"]) == ("drift", "sonde-drift/1")
        assert (facts["n_sites"], facts["level"]) == (1, 0.05)
        assert run("verify", page).code == 0


@pytest.mark.truth("what was written")
def test_a_track(run, tmp_path):
    track = Track(tmp_path / "run.track")
    for step in (0, 10):
        track.add(step, fit(Covariance(), stream(60), progress=False))
    facts = described(run, tmp_path / "run.track")
    assert facts["kind"] == "track of a training"
    assert [facts[f"{name}_step"] for name in ("first", "last")] == [0, 10]
    assert (facts["n_steps"], facts["methods"], facts["sites"]) == (2, ["covariance"], ["x"])


@pytest.mark.truth("the units of the data")
@pytest.mark.parametrize("instrument", [Covariance(), UnitEntropy()])
def test_units_count_once_for_all_passes(run, tmp_path, instrument):
    parts = [fit(instrument, Stream.of(torch.randn(n, 3)), progress=False) for n in (600, 300)]
    parts[0].save(tmp_path / "a.sonde")
    assert described(run, tmp_path / "a.sonde")["n_units"] == 3
    if isinstance(instrument, Covariance):
        merge(*parts).save(tmp_path / "b.sonde")
        assert described(run, tmp_path / "b.sonde")["n_units"] == 5


@pytest.mark.truth("what was written")
@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".safetensors", ".lance"])
def test_an_export(run, acts, tmp_path, suffix):
    if suffix == ".lance":
        pytest.importorskip("lance")
    path = tmp_path / f"b{suffix}"
    export_store(acts, path)
    facts = described(run, path)
    if suffix in (".npz", ".safetensors"):
        assert facts["kind"] == "arrays"
        shown = {v.lower() for k, v in facts["arrays"].items() if k.startswith("a.very")}
        assert shown == {"f4 120 x 4"} or shown == {"f32 120 x 4"}
    else:
        assert (facts["kind"], facts["n_rows"]) == ("table of rows of a store", 120)
        assert len(facts["sites"]) == 12
        assert ("indexed" in facts) == (suffix == ".lance")


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".safetensors"])
def test_what_is_no_such_file_is_named(run, tmp_path, suffix):
    path = tmp_path / f"b{suffix}"
    for content in (b"", b"\xff" * 200, json.dumps({"a": 1}).encode()):
        path.write_bytes(content)
        assert "info:" in run("info", path).error()


def test_a_model_is_no_file_of_ours(run, tmp_path):
    folder = tmp_path / "my model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    said = run("info", folder).error()
    assert "my model is a model" in said
    assert f"sonde scan '{folder}' DATA" in said


def test_what_is_none_of_ours_is_named(run, tmp_path):
    assert "no file" in run("info", tmp_path / "none").error()
    assert "store.json" in run("info", tmp_path).error()
    (tmp_path / "a.txt").write_text("x")
    assert "expected a .sonde file" in run("info", tmp_path / "a.txt").error()


def test_a_fitted_state_says_what_it_is_calibrated_on(run, tmp_path):
    rows, others = map(Stream.of, torch.randn(600, 4).split(300))
    for held, wanted in ((0.25, ["25% held out, each row"]), (0.0, [])):
        path = tmp_path / f"{held}.sonde"
        fitted = fit(Mahalanobis(), rows, calibrate=held, progress=False)
        fitted.save(path)
        assert described(run, path)["calibration"] == wanted
        assert ("calibrated on" in run("info", path).out) == bool(wanted)
    calibrate(fitted, others, progress=False).save(path)
    assert described(run, path)["calibration"] == ["other rows, each row"]


@pytest.mark.parametrize("where", ["header", "file", "plan"])
def test_what_a_later_version_wrote_is_not_described(run, place, tmp_path, where):
    path = tmp_path / "a.sonde"
    if where == "plan":
        job, path = case(0), tmp_path / "a.run"
        Ledger(path, job.plan, job.wanted).put(0, 1, *job.leaf(0))
        plan = path / "plan.json"
        plan.write_text(json.dumps({**json.loads(plan.read_text()), "version": 9}))
    elif where == "header":
        write_state(path, {**read_header(place / "probe.sonde"), "version": 9}, {})
    else:
        write_state(path, {"plan": 1}, {})
        path.write_bytes(path.read_bytes().replace(b'\\"version\\":1', b'\\"version\\":9'))
    assert "was written by a later sonde (version 9, this one knows 1)" in run("info", path).error()
