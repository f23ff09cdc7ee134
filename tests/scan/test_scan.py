"""``sonde.scan`` from Python: what the report holds, and a pass that was stopped."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from models import mlp
from run_case import Stopping
from sonde.core.errors import InputError
from sonde.core.stream import Stream
from sonde.findings.document import document
from sonde.findings.scan import scan_stream
from sonde.findings.settings import ScanSettings
from sonde.report import Report, check_report, load_report, scan, schema
from sonde.run.passes.driver import Interrupted

QUIET = ScanSettings(progress=False)


def items(n=120, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(n, 8, generator=generator) + shift)


@pytest.fixture(scope="module")
def report() -> Report:
    return scan(mlp(), items(), settings=QUIET, sites=["0", "2"])


@pytest.mark.slow
def test_a_live_net_gives_a_report(report, tmp_path):
    found = report.json()
    check_report(found)
    assert found["schema"] == "sonde-scan/1"
    assert len(found["sites"]) == 2
    assert not [c for c in found["checks"] if c["state"] == "failed"]
    assert "sonde scan" in str(report)
    assert repr(report).startswith("Report(")
    report.save(tmp_path / "r.json")
    assert load_report(tmp_path / "r.json") == found
    report.save(tmp_path / "r.html")
    assert "://" not in (tmp_path / "r.html").read_text().split("<body")[0]


def test_no_label_is_called_wrong_where_labels_leave_no_trace(tmp_path):
    rng = np.random.default_rng(3)
    x, label = rng.normal(size=(400, 8)).astype(np.float32), rng.integers(0, 2, 400)
    np.savez(tmp_path / "rows.npz", x=x, label=label)
    found = scan("-", tmp_path / "rows.npz", settings=QUIET).json()
    assert [c["state"] for c in found["checks"] if c["code"] == "SND034"] == ["withheld"]
    assert found["rows"]["mislabelled"] == []


@pytest.mark.slow
def test_what_the_first_block_receives_is_no_site_of_its_own():
    found = scan("sonde:digits", "sonde:digits/test", settings=QUIET, limit=64).json()
    where = found["provenance"]
    assert where["sites"] == f"{len(found['sites'])} sites"
    named = schema()["$defs"]["provenance"]["properties"]
    assert {name for name in named if where.get(name) is None} == {"other"}


def test_a_call_is_told_as_a_call(report):
    assert report.json()["provenance"]["command"] == "sonde.scan('Sequential', 'list of items')"


def test_a_norm_without_running_statistics_is_scanned():
    net = torch.nn.Sequential(
        torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8, track_running_stats=False)
    )
    found = scan(net, items(), items(shift=2.0), settings=QUIET, sites=["0", "1"]).json()
    assert len(found["sites"]) == 2
    assert "SND006" in {f["code"] for f in found["findings"]}


def test_the_model_is_handed_back_as_it_was():
    net = mlp()
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    scan(net, items(40), settings=QUIET, sites="0")
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())


@pytest.fixture
def stopped_after(monkeypatch):
    """Stop the pass when so many units are done."""
    from sonde.run.passes import ranges

    original, calls = ranges.observe_unit, []

    def patch(n):
        def observe(*arguments, **options):
            calls.append(1)
            if len(calls) > n:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        monkeypatch.setattr(ranges, "observe_unit", observe)

    yield patch
    monkeypatch.setattr(ranges, "observe_unit", original)


def test_an_interrupted_scan_reports_what_it_has_and_goes_on(tmp_path, stopped_after, monkeypatch):
    source = Stream.of(torch.stack(items(300)))
    settings = ScanSettings(progress=False, unit_size=50, directory=tmp_path / "r.run")
    stopped_after(3)
    stopped = scan_stream(source, settings=settings)
    assert stopped.partial == (3, 6)
    assert document(stopped)["partial"] == {"done": 3, "total": 6}
    monkeypatch.undo()
    again = document(scan_stream(source, settings=settings))
    whole = document(scan_stream(source, settings=ScanSettings(progress=False, unit_size=50)))
    assert again["partial"] is None
    for name in ("findings", "checks", "sites", "similarity", "units"):
        assert again[name] == whole[name]


def test_nothing_committed_is_an_interruption(tmp_path, stopped_after):
    settings = ScanSettings(progress=False, unit_size=50, directory=tmp_path / "r.run")
    stopped_after(0)
    with pytest.raises(Interrupted, match="interrupted after 0 of 6 units"):
        scan_stream(Stream.of(torch.stack(items(300))), settings=settings)


@pytest.mark.parametrize(
    ("rows", "message"), [(0, "is empty"), (1, "at least two examples, got one")]
)
def test_too_little_data_is_refused(rows, message):
    with pytest.raises(InputError, match=message):
        scan_stream(Stream.of(torch.zeros(rows, 3)), settings=QUIET)


def test_unknown_codes_are_refused_before_the_pass():
    source = Stopping(Stream.of(torch.stack(items(80))), after=0)
    cases: list[dict[str, Any]] = [{"ignore": ("SND999",)}, {"only": ("SND999",)}]
    for wrong in cases:
        with pytest.raises(InputError, match="SND999"):
            scan_stream(source, settings=ScanSettings(progress=False, **wrong))


@pytest.mark.truth("rms(out - in) / std(in) by numpy from the layer's weights")
def test_what_the_first_layer_receives_is_no_row_of_its_own():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)).eval()
    rows = items()
    found = scan(net, rows, settings=QUIET).json()
    check_report(found)
    assert [s["site"] for s in found["sites"]] == ["0:out", "1:out"]
    assert {i["rows"] for i in found["provenance"]["instruments"]} == {"pooled"}
    assert "entry" not in json.dumps(found)
    x = torch.stack(rows).double().numpy()
    weight, bias = (p.detach().double().numpy() for p in net[0].parameters())
    change = x @ weight.T + bias - x
    expected = sorted(((change**2).mean(0) / x.var(0)) ** 0.5)[3]
    figure = found["sites"][0]["values"]["update_per_spread"]["value"]
    assert figure == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_single_check_costs_the_forwards_that_it_needs(tmp_path):
    net, rows = mlp(), []
    np.savez(tmp_path / "rows.npz", x=torch.stack(items(400)), label=np.arange(400) % 2)
    net.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    counts = {}
    for only in ((), ("SND011",)):
        rows.clear()
        settings = ScanSettings(progress=False, only=only)
        scan(net, tmp_path / "rows.npz", settings=settings, sites="0")
        counts[only] = sum(rows)
    assert counts[("SND011",)] < 1.25 * 400 < 2 * 400 < counts[()]


@pytest.mark.slow
@pytest.mark.truth("the texts that were passed, and the length of a piece by the tokenizer")
def test_the_head_counts_pieces_and_the_texts_that_they_were_cut_from():
    texts = [f"def name_{i}(x):\n    return x + {i}\n" * 12 for i in range(9)]
    quick = ScanSettings(progress=False, only=("SND009",))
    found = scan("sonde:stdlib", [{"text": t} for t in texts], settings=quick, max_length=100)
    pieces = sum(-(-len(text.encode()) // 100) for text in texts)
    data = found.json()["provenance"]["data"]
    assert (data["n_rows"], data["n_texts"]) == (pieces, 9)
    assert f"{pieces} pieces of 9 texts" in str(found)
    whole = scan("sonde:stdlib", [{"text": t[:90]} for t in texts], settings=quick)
    assert "n_texts" not in whole.json()["provenance"]["data"]
    assert "9 rows" in str(whole)


def test_settings_of_a_scan_are_taken_by_name() -> None:
    found = scan(mlp(), items(40), sites=["0"], only="SND011", show_inputs=True, progress=False)
    assert [one["code"] for one in found.json()["checks"]] == ["SND011"]
    assert found.json()["shows_inputs"]
    both = scan(mlp(), items(40), sites=["0"], settings=QUIET, only=["SND011", "SND041"])
    assert {one["code"] for one in both.json()["checks"]} == {"SND011", "SND041"}
    with pytest.raises(InputError, match="colours"):
        scan(mlp(), items(40), colours="SND011")
