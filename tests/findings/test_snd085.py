"""Values that stand in many entries of an input whose other entries vary."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sonde
from findings._evidence import evidence_of
from findings._nets import assert_clear, assert_raised
from findings._tables import HEALTHY, bundled
from sonde.findings.codes.snd085 import SND085
from sonde.findings.evidence.inputs.repeated_values import (
    RepeatedValues,
    find_repeated_values,
)
from sonde.findings.evidence.record import Evidence
from sonde.findings.settings import ScanSettings
from sonde.report import Report
from sonde.run.reading.read import read
from sonde.tap import LiveStream

ROWS = 240


class Mean(nn.Module):
    """The first channel's mean, and that of embedded tokens under a mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.last = nn.Embedding(60, 3), nn.Linear(6, 1)

    def forward(self, series: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        real = mask[..., None].float()
        text = (self.table(tokens) * real).sum(1) / real.sum(1)
        return self.last(torch.cat([series.mean(1), text], 1))


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    length = torch.arange(ROWS) % 5 + 5
    mask = torch.arange(10) < length[:, None]
    tokens = torch.randint(1, 60, (ROWS, 10)) * mask
    return {"series": torch.randn(ROWS, 12, 3), "tokens": tokens, "mask": mask.long()}


def scanned(change: Callable[[dict[str, Tensor]], None] = lambda _: None) -> Report:
    net, given = Mean().eval().requires_grad_(False), inputs()
    y = net(**given)[:, 0]
    change(given)
    rows = {name: x.numpy() for name, x in given.items()} | {"label": y.numpy()}
    return sonde.scan(net, rows, settings=ScanSettings(progress=False, only=("SND085",)))


def _in(name: str, value: float, channel: int | None = None, share: float = 0.3) -> Callable:
    def change(given: dict[str, Tensor]) -> None:
        x = given[name]
        part = x if channel is None else x[:, :, channel]
        drawn = torch.rand(part.shape, generator=torch.Generator().manual_seed(3)) < share
        part[drawn] = value

    return change


@pytest.mark.slow
@pytest.mark.truth("the entries that were overwritten")
@pytest.mark.parametrize(
    ("change", "words", "tensor", "columns"),
    [
        (_in("series", 0.0), "Input 'series' is 0 in 3", "series", []),
        (_in("series", -999.0, 1), "Column or channel 1 of input 'series' is -999", "series", [1]),
        (_in("tokens", 0), "Input 'tokens' is 0, the code of padding, in 3", "tokens", []),
    ],
)  # fmt: skip
def test_the_value_is_named_with_its_tensor_and_rows(
    change: Callable, words: str, tensor: str, columns: list[int]
) -> None:
    (finding,) = scanned(change).findings
    assert (finding["level"], finding["sentence"][: len(words)]) == ("warning", words)
    assert finding["location"]["tensors"] == [tensor]
    assert finding["location"]["columns"] == columns


@pytest.mark.slow
@pytest.mark.truth("the rows of a span in which a quarter of one channel was set to its mean")
def test_a_frequent_value_among_coarse_numbers_is_a_warning_if_losses_rise_with_it() -> None:
    def coarse(given: dict[str, Tensor]) -> None:
        given["series"].mul_(8).round_().div_(8)

    assert scanned(coarse).findings == []

    def both(given: dict[str, Tensor]) -> None:
        coarse(given)
        given["series"][ROWS // 2 :, :6, 0] = 0.0

    (finding,) = scanned(both).findings
    assert finding["level"] == "warning"
    assert "losses of rows rise" in finding["sentence"]


@pytest.mark.truth("the entries that were set to 0")
def test_a_value_is_a_warning_without_labels_too_and_whole_tables_and_padding_are_clear() -> None:
    for name in HEALTHY:
        x, _, _ = bundled(name)
        found = _found(nn.Linear(x.shape[1], 2), [{"input": torch.tensor(r).float()} for r in x])
        assert_clear(SND085().check(_seeing(found)))
    padded = torch.randn(ROWS, 12, 3)
    padded[torch.arange(12).expand(ROWS, 12) >= (torch.arange(ROWS) % 9 + 3)[:, None]] = 0
    assert_clear(SND085().check(_seeing(_found(nn.Linear(3, 2), [{"input": x} for x in padded]))))
    zero = torch.rand(ROWS, 12, 3) < 0.2
    rows = [{"input": x} for x in torch.where(zero, 0, torch.randn(ROWS, 12, 3))]
    finding = assert_raised(SND085().check(_seeing(_found(nn.Linear(3, 2), rows))), "warning")
    assert finding.figure.value == pytest.approx(float(zero.float().mean()))


def _seeing(found: RepeatedValues) -> Evidence:
    return evidence_of(torch.randn(30, 4)).having({find_repeated_values: found})


def _found(net: nn.Module, rows: list[dict[str, Tensor]]) -> RepeatedValues:
    stream = read(net.eval(), rows)
    assert isinstance(stream, LiveStream)
    found = find_repeated_values(stream, evidence_of(torch.randn(30, 4)))
    assert isinstance(found, RepeatedValues)
    return found
