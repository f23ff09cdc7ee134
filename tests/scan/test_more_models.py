"""Kinds of models that a scan once refused, or whose answers it took for something else."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sonde
from scan._zoo import quiet
from sonde.report import Report

N = 60


class WithStart(nn.Module):
    """Puts a token of its own before the texts, and answers from its state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.start = nn.Embedding(30, 16), nn.Parameter(torch.randn(1, 1, 16))
        layer = [nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True) for _ in range(2)]
        self.blocks, self.head = nn.ModuleList(layer), nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        h = torch.cat([self.start.expand(len(input_ids), -1, -1), self.embed(input_ids)], 1)
        seen = torch.ones(input_ids.shape) if attention_mask is None else attention_mask
        pad = torch.cat([torch.zeros(len(h), 1), 1.0 - seen], 1).bool()
        for block in self.blocks:
            h = block(h, src_key_padding_mask=pad)
        return self.head(h[:, 0])


class Spectral(nn.Module):
    """Multiplies the spectrum of a signal by complex weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(5, dtype=torch.cfloat))
        self.mix, self.head = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        signal = torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=8)
        return self.head(torch.relu(self.mix(signal)))


class Observed(nn.Module):
    """Takes numbers and which of them were observed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.head = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(torch.relu(self.mix(torch.cat([x * mask, mask], 1))))


class Outputs(nn.Module):
    """Gives a box and, if asked, classes, softmaxed."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.box = nn.Linear(8, 12), nn.Linear(12, 4)
        self.classes = nn.Linear(12, classes) if classes else None

    def forward(self, x: Tensor) -> Any:
        h = torch.relu(self.body(x))
        if self.classes is None:
            return self.box(h)
        return {"boxes": self.box(h), "scores": self.classes(h).softmax(1)}


def numbers() -> Tensor:
    return torch.randn(N, 8, generator=torch.Generator().manual_seed(3))


def scanned(net: nn.Module, items: list[dict[str, Any]], classes: int = 3) -> Report:
    for i, item in enumerate(items):
        item["label"] = i % classes
    return sonde.scan(net.eval(), items, settings=quiet())


@pytest.mark.slow
def test_a_token_before_the_texts_leaves_the_blocks_out_and_reads_the_rest() -> None:
    draw = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, 30, (5 + i % 6,), generator=draw).tolist() for i in range(N)]
    found = scanned(WithStart(), [{"input_ids": text} for text in texts]).json()
    assert {s["site"] for s in found["sites"]} == {"embed:out", "head:out"}
    assert {"blocks.0:out", "blocks.1:out"} <= {x["site"] for x in found["left_out"]}
    assert found["answers"]["measure"] == "accuracy"


@pytest.mark.slow
def test_complex_weights_are_read_and_change_the_fingerprint() -> None:
    nets = [Spectral(), Spectral()]
    with torch.no_grad():
        nets[1].weight[3] *= 1j
    items = [[{"x": row} for row in numbers()] for _ in nets]
    one, other = (scanned(*pair).json() for pair in zip(nets, items, strict=True))
    assert [s["site"] for s in one["sites"]][-1] == "head:out"
    prints = [found["provenance"]["model"]["fingerprint"] for found in (one, other)]
    assert prints[0] != prints[1]


@pytest.mark.slow
def test_an_input_called_mask_that_pads_nothing_is_an_input() -> None:
    mask = (torch.rand(N, 8, generator=torch.Generator().manual_seed(2)) < 0.6).float()
    items = [{"x": x, "mask": m} for x, m in zip(numbers(), mask, strict=True)]
    found = scanned(Observed(), items).json()
    assert found["answers"]["n_rows"] == N


@pytest.mark.slow
def test_boxes_are_no_logits_and_scores_beside_them_are() -> None:
    alone = scanned(Outputs(0), [{"x": row} for row in numbers()], classes=7).json()
    assert alone["answers"] is None
    (check,) = (c for c in alone["checks"] if c["code"] == "SND037")
    assert "7 classes" in check["reason"]
    both = scanned(Outputs(7), [{"x": row} for row in numbers()], classes=7).json()
    assert both["answers"]["measure"] == "accuracy"
