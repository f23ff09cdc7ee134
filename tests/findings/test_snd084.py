"""Weights that are rounded, cut off or copied."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from findings._evidence import evidence_of
from findings._nets import assert_clear, assert_raised
from sonde.compress import RTN
from sonde.findings.codes.snd084 import SND084
from sonde.findings.evidence.modules.altered_weights import altered_weights
from sonde.findings.evidence.texts.lens import LensEvidence, measure_lens
from sonde.findings.rule import Check
from sonde.run.reading.read import read
from sonde.tap import LiveStream


def net_of() -> nn.Sequential:
    torch.manual_seed(0)
    sizes = (12, 16, 16, 16, 16)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))


def checked(change: Callable[[nn.Sequential], None]) -> Check:
    net = net_of().requires_grad_(False)
    change(net)
    rows = [{"input": x} for x in torch.randn(8, 12)]
    stream = read(net.eval(), rows, sites="3")
    assert isinstance(stream, LiveStream)
    return SND084().check(
        evidence_of(torch.randn(30, 4)).having({altered_weights: altered_weights(stream)})
    )


def _at(i: int, change: Callable[[Tensor], Tensor]) -> Callable[[nn.Sequential], None]:
    def on(net: nn.Sequential) -> None:
        weight = net[i].get_parameter("weight")
        weight.copy_(change(weight))

    return on


def _copied(net: nn.Sequential) -> None:
    net[2].get_parameter("weight").copy_(net[1].get_parameter("weight"))


def _shared(net: nn.Sequential) -> None:
    net[2].weight = net[1].weight


def _cut(w: Tensor) -> Tensor:
    return w.clamp(-0.1, 0.1)


def _whole(net: nn.Sequential) -> None:
    for i in range(4):
        _at(i, _cut)(net)


@pytest.mark.truth("the weights that were overwritten, and the number of entries at the bound")
@pytest.mark.parametrize(
    ("change", "words", "modules"),
    [
        (_at(1, lambda w: (w * 8).round() / 8), "1.weight has only 5 distinct values", ("1",)),
        (_at(3, _cut), "3.weight has {} % of the entries at the largest size", ("3",)),
        (_copied, "2.weight: every entry equals that of 1", ("2", "1")),
    ],
)
def test_the_altered_weight_is_named(
    change: Callable[[nn.Sequential], None], words: str, modules: tuple[str, ...]
) -> None:
    finding = assert_raised(checked(change), "warning")
    share = float((net_of()[3].get_parameter("weight").abs() >= 0.1).double().mean())
    assert finding.sentence.startswith(words.format(round(100 * share)))
    assert finding.location is not None
    assert finding.location.modules == modules


@pytest.mark.truth("the layer that was overwritten before all layers were packed")
def test_copies_among_packed_layers_are_named_and_packed_layers_alone_are_clear() -> None:
    def packed(change: Callable[[nn.Sequential], None]) -> Check:
        net = net_of().requires_grad_(False)
        change(net)
        stream = read(RTN(bits=4).plan(net).fold(net).eval(), torch.randn(8, 12), sites="3")
        assert isinstance(stream, LiveStream)
        weights = altered_weights(stream)
        assert weights.n == 4
        return SND084().check(evidence_of(torch.randn(30, 4)).having({altered_weights: weights}))

    assert_clear(packed(lambda _: None))
    finding = assert_raised(packed(_copied), "warning")
    assert finding.sentence.startswith("2.weight: every entry equals that of 1")


def test_trained_shared_and_zero_weights_are_clear() -> None:
    for change in (lambda _: None, _shared, _at(1, torch.zeros_like), _at(1, torch.ones_like)):
        assert_clear(checked(change))


def test_a_net_whose_weights_are_all_cut_off_is_so_on_purpose() -> None:
    assert_raised(checked(_whole), "note")


@pytest.mark.parametrize(("loss", "level"), [(3.0, "note"), (6.0, "warning")])
def test_rounded_weights_of_a_language_model_that_is_worse_than_counts_are_no_purpose(
    loss: float, level: str
) -> None:
    net = net_of().requires_grad_(False)
    for i in range(4):
        _at(i, lambda w: (w * 8).round() / 8)(net)
    stream = read(net.eval(), torch.randn(8, 12), sites="3")
    assert isinstance(stream, LiveStream)
    known = {
        altered_weights: altered_weights(stream),
        measure_lens: LensEvidence(final=loss, unigram=5.0, counted=4.0),
    }
    assert_raised(SND084().check(evidence_of(torch.randn(30, 4)).having(known)), level)
