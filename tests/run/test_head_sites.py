"""Detectors of the last layer stand where the final linear layer makes the logits of the rows."""

import pytest
import torch
from torch import nn

import sonde
from models import cnn, mlp
from sonde.core.errors import InputError, SondeWarning
from sonde.core.site import HEAD_INPUT
from sonde.core.stream import Stream
from sonde.detect import SHE, GradNorm, Mahalanobis, NNGuide, ReAct, ViM
from sonde.run.fitting.fit import fit
from sonde.run.instruments.asked import asked, head_sites
from sonde.run.instruments.catalogue import detectors
from sonde.store import write_store

IMAGES = list(torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
VECTORS = list(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)))


def test_what_takes_the_head_asks_for_its_input():
    takes = [
        made
        for made in (method.cls() for method in detectors().values())
        if any("head" in read.statistic.needs() for read in made.all_reads().values())
    ]
    assert len(takes) >= 7
    for detector in [*takes, SHE(), NNGuide(), GradNorm()]:
        assert detector.reading() == {"sites": HEAD_INPUT}


def test_other_methods_are_read_as_without_them():
    assert asked([ViM(), ReAct()]) == {"sites": HEAD_INPUT}
    assert asked([ViM(), sonde.detect.MSP()]) == {"sites": HEAD_INPUT}
    assert asked([ViM(), Mahalanobis()]) == {"sites": ["auto", HEAD_INPUT]}
    found = asked([ViM(), sonde.detect.PaDiM()])
    assert found == {"sites": ["auto|patches", HEAD_INPUT]}
    stream = sonde.read(cnn(), IMAGES, **found)
    kinds = {s.key: str(s.reducer) for s in stream.schema}
    assert kinds["fc:in"] == "mean"
    assert kinds["conv2:out"] == "patches"


@pytest.mark.truth("torch: which outputs the layer turns into the logits")
def test_the_same_rows_by_another_name_are_taken_and_others_left_out():
    stream = sonde.read(cnn(), IMAGES, sites=["conv2", "act2", "fc:in"], reducer="mean")
    detectors = [ViM(principal=4), SHE()]
    assert head_sites(detectors, stream) == {"act2:out", "fc:in"}
    fitted = fit(ViM(principal=4), stream, progress=False)
    assert [site for _, site in fitted.names] == ["act2:out", "fc:in"]
    one, two = (fitted.result("vim", site).scorer.value for _, site in fitted.names)
    assert one == pytest.approx(two, rel=1e-5)


def test_a_stream_of_other_sites_alone_is_refused_or_the_detector_named():
    stream = sonde.read(mlp(), VECTORS, sites=["1", "2"])
    with pytest.raises(
        InputError, match=r"ReAct: expected .*, got 1:out, 2:out\. Read with sites='logits:in'"
    ):
        fit(ReAct(), stream, progress=False)
    with pytest.warns(SondeWarning, match="left out: ReAct"):
        fitted = fit([ReAct(), Mahalanobis(classes=False)], stream, progress=False)
    assert {name for name, _ in fitted.names} == {"mahalanobis"}


def test_stored_rows_and_rows_in_half_precision_are_known(tmp_path):
    half = mlp().to(torch.bfloat16)
    stream = sonde.read(half, [x.bfloat16() for x in VECTORS], sites=["1", "2", "3"])
    assert head_sites([ReAct()], stream) == {"3:out"}
    store = sonde.read(write_store(stream, tmp_path / "acts"))
    assert head_sites([ReAct()], store) == {"3:out"}


def test_a_reading_without_logits_is_tried_with_them():
    stream = sonde.read(mlp(), VECTORS, sites=["1", "3"], logits=False)
    assert head_sites([ReAct()], stream) == {"3:out"}


def test_nothing_is_asked_of_plain_arrays_and_of_nets_without_such_a_layer():
    assert head_sites([ReAct()], Stream.of(torch.zeros(3, 4))) is None
    net = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 4), nn.Softmax(-1)).eval()
    assert head_sites([SHE()], sonde.read(net, VECTORS)) is None
    assert head_sites([Mahalanobis()], sonde.read(mlp(), VECTORS)) is None
