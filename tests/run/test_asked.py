"""What methods ask of a reading: on the command line, and as a check of a stream."""

import pytest
import torch
from torch import nn

from lm_twin_case import TEXTS, twin
from models import gpt2
from sonde.cli.fit import reading_of
from sonde.core.errors import InputError
from sonde.core.stream import Stream
from sonde.detect import ODIN, PAWN, Energy, Mahalanobis, TokenStatistics
from sonde.measure import LayerCKA
from sonde.run.fitting.fit import fit
from sonde.run.instruments.asked import asked, asking_logits, check_reading
from sonde.run.reading.read import read
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.opening import open_for
from sonde.run.scoring.score import score

AUTO = {"sites": "auto", "reducer": "auto"}


def test_methods_say_what_they_need():
    assert asked([Energy(), Mahalanobis()]) == {}
    found = asked([ODIN(), TokenStatistics(), TokenStatistics("min_k")])
    assert found == {"perturb": ODIN().perturbation.json(), "reducer": "predictions"}
    with pytest.raises(
        InputError, match=r"ODIN: expected perturb=.*Fit the two methods in separate runs"
    ):
        asked([ODIN(), ODIN(eps=0.1)])


def test_what_a_user_types_goes_first():
    assert reading_of([], AUTO) == AUTO
    assert reading_of([TokenStatistics()], AUTO) == AUTO | {"reducer": "predictions"}
    assert reading_of([PAWN()], AUTO)["sites"] == PAWN().reading()["sites"]
    typed = {"sites": "head", "reducer": "tokens"}
    assert reading_of([PAWN(), TokenStatistics()], typed) == typed


def test_a_stream_of_the_automatic_reducer_takes_what_a_method_declares():
    """In Python as on the command line: no ``reducer=`` where one method says which."""
    stream = read(twin(), list(TEXTS[:2]))
    typed = read(twin(), list(TEXTS[:2]), reducer="predictions")
    detector = TokenStatistics()
    found = fit(detector, stream, calibrate=0, progress=False)
    assert found.header["sites"][0]["reducer"] == "predictions"
    scores = [score(found, s, progress=False)["score"].to_pylist() for s in (stream, typed)]
    assert scores[0] == scores[1]
    named = read(twin(), list(TEXTS[:2]), reducer="last")
    with pytest.raises(InputError, match="expected rows of the reducer"):
        fit(detector, named, calibrate=0, progress=False)


def test_plain_arrays_do_not_say_how_they_were_read():
    check_reading([ODIN(), TokenStatistics(), PAWN()], Stream.of(torch.zeros(3, 7)))


@pytest.mark.parametrize("command", [score, calibrate])
@pytest.mark.parametrize(
    ("besides", "said"),
    [
        ({"data": "sonde:digits/train"}, "contains its data, got sonde:digits/train in addition"),
        ({"data": [torch.zeros(7)]}, "contains its data, got list in addition"),
        ({"limit": 5, "nonsense": 1}, "leave out limit, nonsense, or read the model again"),
    ],
)
def test_nothing_is_asked_beside_a_stream(command, besides, said):
    fitted = fit(Mahalanobis(), Stream.of(torch.randn(40, 3)), calibrate=0, progress=False)
    other = Stream.of(torch.randn(20, 3))
    with pytest.raises(InputError, match=said):
        command(fitted, other, progress=False, **besides)
    assert command(fitted, other, progress=False, limit=None) is not None
    with pytest.raises(InputError, match="leave out by"):
        score(fitted, other, progress=False, by="predicted")


@pytest.mark.slow
def test_a_bundle_of_several_reducers_reads_them_again():
    text = "def f(x):\n    return x + {}\n\nfor i in range({}):\n    print(f(i))\n"
    texts = [text.format(i, 2 * i) for i in range(30)]
    sites = ["logits:in|tokens", "logits|predictions"]
    stream = read("sonde:stdlib", texts, sites=sites, seed=0)
    methods = [TokenStatistics(), Mahalanobis(classes=False)]
    fitted = fit(methods, stream, progress=False)
    again = open_for(fitted, "sonde:stdlib", texts)
    assert [(s.key, str(s.reducer)) for s in again.schema] == [
        (s.key, str(s.reducer)) for s in stream.schema
    ]
    assert {site for _, site in fitted.names} == {"lm_head:in", "lm_head:out"}
    places = [site for method, site in fitted.names if method == "token_statistics"]
    assert places == ["lm_head:out"]


def test_patches_on_other_grids_are_not_joined():
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.Tanh()).eval()
    images = list(torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    stream = read(net, images, sites=["0", "2", "3"], reducer="patches")
    with pytest.raises(InputError, match="8 x 8 at 0:out and 4 x 4 at 2:out"):
        fit(LayerCKA(), stream, progress=False)
    fitted = fit(LayerCKA(), read(net, images, sites=["2", "3"], reducer="patches"), progress=False)
    assert len(fitted) == 1


def test_batches_leave_room_for_the_logits_that_a_method_asks_for(monkeypatch):
    """The size was chosen when the stream was read, before any method asked."""
    monkeypatch.setattr("sonde.data.encoding.BATCH_BYTES", 64 * 16 * 4 * (4 * 32 + 30))
    rows = [{"input_ids": [5] * 16} for _ in range(80)]
    sizes = {}
    for size in ("auto", 64):
        stream = read(gpt2(), rows, "blocks", "mean", size, check=False, sinks="keep")
        sizes[size] = [s.inputs.batch_size for s in (stream, asking_logits(stream))]  # type: ignore[attr-defined]
    assert sizes == {"auto": [64, 32], 64: [64, 64]}
    told = read(gpt2(), rows, "blocks", "mean", logits=True, check=False, sinks="keep")
    assert told.inputs.batch_size == 32  # type: ignore[attr-defined]
