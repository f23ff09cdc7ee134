"""Steps of a training compared by the rows that their states keep: planted states, and arrays."""

import pytest
import torch
from torch import nn

import sonde
from sonde.core import Stream
from sonde.measure import LayerCKA, Norms, ParticipationRatio, emergence, layer_cka
from sonde.report.documents import to_page, to_terminal
from sonde.run.training.callback import Recorder
from sonde.run.training.track import Track
from sonde.run.training.track_document import track_document

N, DIM = 400, 6
STEPS = (0, 10, 20, 30)


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def inputs():
    return randn(N, 2 * DIM, seed=0)


@pytest.fixture(scope="module")
def layers():
    """The first layer by step: other units; half of the last; the last turned and scaled; they."""
    last, other = torch.eye(2 * DIM, dtype=torch.float64).split(DIM)
    turn = torch.linalg.qr(randn(DIM, DIM, seed=1)).Q
    half = torch.cat([last[: DIM // 2], other[: DIM // 2]])
    return dict(zip(STEPS, (other, half, 3 * turn @ last, last), strict=True))


@pytest.fixture(scope="module")
def document(inputs, layers, tmp_path_factory):
    net = nn.Sequential(nn.Linear(2 * DIM, DIM), nn.Linear(DIM, 500)).double()
    folder = tmp_path_factory.mktemp("runs") / "run.track"
    recorder = Recorder([LayerCKA(N), ParticipationRatio()], inputs, folder, sites=["0", "1"])
    for step, weight in layers.items():
        with torch.no_grad():
            next(net.parameters()).copy_(weight)
        recorder.record(net, step)
    return track_document(Track(folder))


@pytest.mark.truth("planted states; the measures on whole arrays in their own order")
def test_rows_of_each_step_are_those_of_the_others(document, inputs, layers):
    states = {step: inputs @ weight.T for step, weight in layers.items()}
    narrow, wide = document["across_steps"]
    unrelated, half, turned, last = narrow["to_last"]
    assert abs(unrelated) < 0.02
    assert half == pytest.approx(0.5, abs=0.03)
    assert turned == pytest.approx(1.0, abs=1e-6)
    assert last == pytest.approx(1.0, abs=1e-9)
    whole = torch.as_tensor(layer_cka(list(states.values()), m=N).value)[:, -1]
    assert narrow["to_last"] == pytest.approx(whole.tolist(), abs=1e-6)
    told = emergence(states, k=10)
    assert narrow["explained"] == pytest.approx(told.r2.clamp(min=0).mean(1).tolist(), abs=1e-6)
    assert narrow["explained"][2] == pytest.approx(1.0, abs=1e-6)
    assert narrow["lateness"] == pytest.approx(float(told), abs=1e-6)
    assert wide["explained"] is None, "more units than rows tell nothing"


@pytest.mark.slow
def test_the_page_and_the_text_show_them(document):
    text, page = to_terminal(document), to_page(document)
    (line,) = [line for line in text.splitlines() if line.split()[:1] == ["0"] and " 20 " in line]
    assert line.split()[2] == "20", "from step 20 on it is like the last"
    assert max(map(len, text.splitlines())) <= 80
    assert page.count("Similarity of the steps at") >= 2
    assert "the states of each step predict" in page


def test_a_vector_is_the_median_of_its_entries(document):
    (curve,) = [c for c in document["curves"] if c["method"] == "layer_cka"]
    assert curve["entries"] == 4
    assert curve["low"][0] <= curve["values"][0] <= curve["high"][0]
    numbers = [c for c in document["curves"] if c["method"] == "participation_ratio"]
    assert all("low" not in c for c in numbers)


def test_states_without_a_sample_have_curves_alone(tmp_path):
    track = Track(tmp_path / "run.track")
    own = sonde.fit(Norms(), Stream.of(randn(N, DIM, seed=0)), progress=False)
    for step in (0, 1):
        track.add(step, own)
    found = track_document(track)
    assert found["across_steps"] == []
    assert "CKA" not in to_terminal(found)
