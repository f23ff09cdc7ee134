"""Tiny nets and inputs that tests of findings plant faults in, and the evidence that they give."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from narrow import expect
from sonde.core.inputs import Model
from sonde.core.stream import Stream
from sonde.findings.catalogue import rule_classes
from sonde.findings.evidence.facts import data_evidence
from sonde.findings.evidence.modules.fresh_weights import find_fresh_layers, fresh_layers
from sonde.findings.evidence.modules.module_facts import model_evidence, read_modules
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.lens import lens_evidence, measure_lens
from sonde.findings.evidence.trials.input_trials import variant_evidence
from sonde.findings.rule import Check, Figure, Finding, Rule
from sonde.findings.scan import gather
from sonde.findings.settings import ScanSettings
from sonde.tap import LiveStream, live_stream
from tap_inputs import Arrays, Texts


def evidence_of(
    stream: Stream, *, lens: bool = False, variants: bool = False, **options: Any
) -> Evidence:
    """Return what one pass over a stream gathers, as a scan would."""
    name, limited = str(options.pop("name", "data")), bool(options.pop("limited", False))
    data = data_evidence(stream, name, limited)
    live = isinstance(stream, LiveStream)
    model = model_evidence(stream, deep=bool(options.get("deep"))) if live else None
    silent = None if model is None else model.silent
    with nullcontext() if silent is None else silent.listening():
        found = gather(stream, data, ScanSettings(progress=False), None, [])
    evidence = Evidence(
        sites=found.statistics.sites(found.outcome.states, found.outcome.counters),
        columns=found.statistics.sampled_columns(found.outcome.states),
        data=data,
        counters=found.outcome.counters,
        **options,
    ).having({read_modules: model, measure_lens: lens_evidence(stream) if lens and live else None})
    if not variants or not live:
        return evidence
    return evidence.having(
        {
            variant_evidence: variant_evidence(stream, evidence),
            find_fresh_layers: fresh_layers(stream, 0),
        }
    )


def checked(rule: Rule, stream: Stream | Evidence, **options: Any) -> Check:
    """Return how a rule ends on a stream."""
    evidence = stream if isinstance(stream, Evidence) else evidence_of(stream, **options)
    return rule.check(evidence)


def assert_raised(check: Check, level: str) -> Finding:
    """Check state, level and the form of a finding, and return it."""
    assert check.state == "raised", (check.state, check.reason, check.figure)
    finding = check.finding
    assert finding is not None
    assert finding.level == level, finding
    assert len(finding.sentence) <= 240
    assert finding.sentence.endswith(".")
    assert not set(finding.sentence.lower().split()) & {"may", "significant", "anomalous"}
    assert 0.0 <= finding.effect <= 1.0
    assert finding.next is not None or rule_classes()[finding.code].fix
    assert all(u.isdigit() for u in finding.units)
    return finding


def assert_clear(check: Check) -> Figure:
    """Check that a rule saw nothing, and that it looked; return what it saw."""
    assert check.state == "clear", (check.state, check.reason, check.finding)
    assert check.figure is not None
    return check.figure


def tensors(module: nn.Module, x: Tensor, batch_size: int = 64, **options: Any) -> LiveStream:
    """Return the stream of a net over rows of a tensor."""
    options = {"further": ("tokens", "patches"), "entry": True, **options}
    return live_stream(module, Arrays(x, batch_size=batch_size), **options)


def framed(x: Tensor) -> Tensor:
    """Return digits inside an empty frame, as images of handwriting come: (row, 1, 10, 10)."""
    return functional.pad(x.view(-1, 1, 8, 8), (1, 1, 1, 1))


def grey(x: Tensor, copies: int = 0) -> LiveStream:
    """Return the stream of a convolutional net over grey images, some filters copies of the first.

    Means over such an image after the first layer say little more than how bright it is.
    """
    torch.manual_seed(0)
    first = nn.Conv2d(1, 16, 3, padding=1)
    with torch.no_grad():
        first.weight[:copies] = first.weight[0]
    return tensors(nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(1600, 10)).eval(), x)


def tokens(
    module: nn.Module,
    lengths: Sequence[int],
    *,
    processor: Any = None,
    task: str = "encoder",
    reducer: str = "auto",
    vocabulary: int = 61,
    seed: int = 0,
) -> LiveStream:
    """Return the stream of a language model over random token lists."""
    generator = torch.Generator().manual_seed(seed)
    items = [torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in lengths]
    config = getattr(module, "config", None)
    model = Model(module, processor, config, type(module).__name__, task)
    inputs = Texts(items, batch_size=32, special=False)
    return live_stream(model, inputs, reducer=reducer, further=("tokens", "patches"), entry=True)


def texts_of(stream: LiveStream) -> list[list[int]]:
    """Return the token lists that ``tokens`` made; what is written into them is read."""
    return [expect(list, text) for text in expect(Texts, stream.inputs).items]


def noise(n: int, dim: int, seed: int = 0) -> Tensor:
    """Return rows of white noise."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def deep_relu(layers: int, width: int, gain: float | None, seed: int = 0) -> nn.Sequential:
    """Return Linear and ReLU in turn; ``gain`` None leaves torch's default initialisation."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for _ in range(layers):
        layer = nn.Linear(width, width)
        if gain is not None:
            nn.init.normal_(layer.weight, std=gain / width**0.5)
            nn.init.zeros_(layer.bias)
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts).eval()


class Block(nn.Module):
    """Attention over tokens and a feed-forward part, each around a skip that can be taken out."""

    def __init__(self, dim: int, skip: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.value = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        query, key = self.query(h).chunk(2, dim=-1)
        mixed = functional.scaled_dot_product_attention(query, key, self.value(h))
        if not self.skip:
            return mixed
        x = x + mixed
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Patches(nn.Module):
    """A stack of blocks over given tokens, their mean, and a head."""

    def __init__(self, dim: int = 16, depth: int = 6, skip: bool = True, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.ModuleList([Block(dim, skip) for _ in range(depth)])
        self.head = nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=1))
