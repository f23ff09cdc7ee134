"""Rows that a detector's labels know as unusual calibrate nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import sonde.detect as detect
from sonde.core import Calibration, Stream
from sonde.core.instrument import Detector
from sonde.detect import ContrastProbe, LinearProbe, MassMean, TrajectoryVerifier
from sonde.run.fitting.fit import fit
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.score import score

N = 600
PROBES = [
    LinearProbe(),
    LinearProbe(loss="logistic", l2=0.1),
    LinearProbe(positive=0),
    MassMean(),
    MassMean(whiten=True),
    ContrastProbe(method="crc"),
]
EXPORTED = [getattr(detect, name) for name in detect.__all__]
DETECTORS = [e for e in EXPORTED if isinstance(e, type) and issubclass(e, Detector)]


def labelled(seed, n=N, unlabelled=0) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Rows whose first unit tells label 1 from label 0, in pairs of which each has one of both."""
    generator = torch.Generator().manual_seed(seed)
    label = (torch.arange(n) + torch.arange(n) // 2 % 2) % 2
    x = torch.randn(n, 3, generator=generator)
    x[:, 0] += 5.0 * label
    pair, side = torch.arange(n) // 2, torch.arange(n) % 2
    known = torch.where(torch.arange(n) < unlabelled, -1, label)
    return x, known, {"pair": pair, "side": side, "group": pair}


def one_of_each_group(mask, group):
    """Whether each group has exactly one row in the mask."""
    return bool((torch.bincount(group[mask], minlength=int(group.max()) + 1) == 1).all())


@pytest.mark.truth("scores of the held-out rows of the other class, by the plain scorer")
@pytest.mark.parametrize("probe", PROBES, ids=repr)
def test_a_probe_calibrates_on_the_other_class(probe):
    x, label, columns = labelled(0)
    stream = Stream.of(x, label=label, **columns)
    found = fit(probe, stream, progress=False)
    assert found.split is not None
    held = torch.cat([found.split.is_held(b.split_draw) for b in stream])
    usual = label != probe.positive
    assert one_of_each_group(usual, columns["group"])
    word, result = found.names[0][0], found.result(found.names[0][0])
    needs = {"side": columns["side"][held & usual]} if word == "contrast_probe" else {}
    want = Calibration.from_scores(result.scorer.score(x[held & usual], **needs))
    assert result.calibration.n == int((held & usual).sum())
    assert result.calibration.threshold(0.1) == pytest.approx(want.threshold(0.1))


@pytest.mark.truth("the promise of split-conformal calibration, and classes that lie far apart")
@pytest.mark.parametrize("probe", PROBES, ids=repr)
def test_alarms_are_for_the_positive_class(probe):
    x, label, columns = labelled(0)
    found = fit(probe, Stream.of(x, label=label, **columns), progress=False)
    new, truth, _ = labelled(1)
    table = score(found, Stream.of(new, **columns), progress=False)
    p = torch.tensor(table["p"].to_pylist())
    alarm, positive = p <= 0.05, truth == probe.positive
    assert float(alarm[positive].double().mean()) > 0.9
    assert float(alarm[~positive].double().mean()) < 0.15


@pytest.mark.truth("counts of the rows")
def test_rows_without_a_label_count_as_usual():
    x, label, _ = labelled(0)
    found = fit(LinearProbe(), Stream.of(x, label=label), calibrate=0, progress=False)
    new, some, _ = labelled(1, unlabelled=100)
    for stream, n in (
        (Stream.of(new), N),
        (Stream.of(new, label=some), int((some != 1).sum())),
    ):
        ready = calibrate(found, stream, progress=False)
        assert ready.result("linear_probe").calibration.n == n


def test_every_detector_with_a_positive_class_leaves_it_out():
    made_from: list[Any] = [detector(**detector.examples[0]) for detector in DETECTORS]
    probes = [d for d in made_from if hasattr(d, "positive")]
    assert len(probes) >= 6
    (batch,) = Stream.of(torch.zeros(3, 1), label=[0, 2, -1])
    for probe in probes:
        made = replace(probe, positive=2)
        mask = made.usual.mask(batch, "x")
        assert mask is not None, made
        assert mask.tolist() == [True, False, True], made


def trajectories(seed, n=200, steps=3) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Steps of which the second is wrong, and stands out, in every other trajectory."""
    generator = torch.Generator().manual_seed(seed)
    who, step = torch.arange(n * steps) // steps, torch.arange(n * steps) % steps
    first = torch.where(who % 2 == 1, 1, -1)
    x = torch.randn(n * steps, 2, generator=generator)
    x[:, 0] += 5.0 * (first == step)
    names = [f"{seed} {i}" for i in who.tolist()]
    return x, first, {"position": step, "ids": names, "group": names}


@pytest.mark.truth("counts of the trajectories, and steps that lie far apart")
@pytest.mark.parametrize("head", ["hazard", "lda"])
def test_wrong_trajectories_calibrate_nothing(head):
    x, first, columns = trajectories(0)
    stream = Stream.of(x, first_error=first, **columns)
    found = fit(TrajectoryVerifier(head=head), stream, progress=False)
    assert found.split is not None
    held = torch.cat([found.split.is_held(b.split_draw) for b in stream])
    n = found.result("trajectory_verifier").calibration.n
    assert n == int((held & (first == -1)).sum()) // 3 < int(held.sum()) // 3
    new, _, named = trajectories(1)
    table = score(found, Stream.of(new, **named), progress=False)
    alarm = torch.tensor(table["p"].to_pylist()) <= 0.1
    wrong = torch.tensor([int(i.split()[1]) % 2 == 1 for i in table["id"].to_pylist()])
    assert float(alarm[wrong].double().mean()) > 0.9
    assert float(alarm[~wrong].double().mean()) < 0.25


@pytest.mark.truth("counts of the trajectories")
def test_trajectories_of_which_nothing_is_known_count_as_usual():
    x, first, columns = trajectories(0)
    fitted = fit(
        TrajectoryVerifier(head="lda"),
        Stream.of(x, first_error=first, **columns),
        calibrate=0,
        progress=False,
    )
    new, truth, named = trajectories(1)
    unknown = torch.where(torch.arange(len(new)) < 90, -3, torch.where(truth > 0, -2, truth))
    for given, n in (({}, 200), ({"first_error": truth}, 100), ({"first_error": unknown}, 115)):
        ready = calibrate(fitted, Stream.of(new, **given, **named), progress=False)
        assert ready.result("trajectory_verifier").calibration.n == n
