"""What models, streams, inputs and bundles print: what they are, on one line, and nothing runs."""

from dataclasses import dataclass

import torch
from torch import nn

from narrow import expect
from run_case import rows
from sonde.core.inputs import Model
from sonde.core.result import Result
from sonde.core.stream import Stream
from sonde.detect import KNN, Mahalanobis
from sonde.measure import Norms
from sonde.run.fitting.fit import fit
from sonde.run.reading.read import read
from sonde.run.training.track import Track
from sonde.run.watching.guard import Guard
from sonde.tap import LiveStream


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(5)])
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        for block in self.layers:
            x = block(x)
        return x


def test_a_stream_of_a_model_names_model_data_and_sites_without_a_forward():
    net = Counted().eval()
    model = Model(net, name="my/net")
    stream = expect(LiveStream, read(model, list(rows(40, 4)), sites="blocks", reducer="mean"))
    assert repr(stream) == "LiveStream(my/net on 40 examples, 1 site: blocks, reducer mean)"
    assert net.calls == 0
    assert len(stream.schema) == 5
    assert repr(stream) == (
        "LiveStream(my/net on 40 examples, 5 sites: layers.0:out (4), layers.1:out (4) ... "
        "layers.4:out (4), reducer mean)"
    )
    assert repr(stream.inputs) == "ItemInputs(40 examples)"
    assert repr(stream.model) == "Model('my/net', Counted, tensor, 100 parameters)"


def test_rows_name_their_sites():
    both = Stream.of({"a": rows(300, 4), "b": rows(300, 6)})
    assert repr(both) == "ArrayStream(300 examples, 2 sites: a (4), b (6))"


def test_a_bundle_names_methods_sites_and_examples():
    both = Stream.of({"a": rows(300, 4), "b": rows(300, 6)})
    fitted = fit([Mahalanobis(), KNN(k=3), Norms()], both, progress=False)
    assert repr(fitted) == (
        "Fitted(mahalanobis, knn, norms at 2 sites: a, b; 300 examples, 20% held out)"
    )
    assert all(len(repr(result)) < 300 for _, result in fitted)


def test_a_notebook_shows_tables_of_a_stream_a_bundle_a_guard_and_a_track(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    stream = read(net, list(rows(300, 4)), sites="1")
    assert stream._repr_html_() is None, "shown as text before a forward has run"
    fitted = fit(["mahalanobis", "knn(k=3)"], stream, progress=False)
    assert "<td>1:out</td><td>mean</td><td>4</td>" in str(stream._repr_html_())
    n = fitted.result("mahalanobis").calibration.n
    assert fitted._repr_html_().count(f"<td>{n}</td></tr>") == 2
    with Guard(net, fitted) as guard:
        net(torch.full((2, 4), 50.0))
    assert "Guard: 1 forward, 2 alarms" in guard._repr_html_()
    assert guard._repr_html_().count("<td>2</td></tr>") == 1, "knn sees directions, not sizes"
    track = Track(tmp_path / "run")
    assert "nothing recorded" in track._repr_html_()
    for step in (0, 7):
        track.add(step, fit("norms", stream, progress=False))
    assert "<th scope='col'>step 7</th>" in track._repr_html_()


def test_a_repr_of_ones_own_is_kept():
    @dataclass(frozen=True, kw_only=True)
    class Mine(Result):
        def __repr__(self) -> str:
            return "mine"

    @dataclass(frozen=True, kw_only=True)
    class Below(Mine):
        rows: torch.Tensor

    assert repr(Mine()) == repr(Below(rows=torch.ones(3))) == "mine"
