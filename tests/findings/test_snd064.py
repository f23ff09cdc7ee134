import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sonde
from findings import _evidence as arrays
from findings._nets import assert_raised
from lm_twin_case import TEXTS, twin
from scan._plants_chain import Chain, drawn, exchanged
from sonde.findings.codes.snd064 import SND064
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.findings.evidence.texts.lens import LensEvidence, lens_evidence, measure_lens
from sonde.findings.evidence.texts.text_losses import TextLosses, beyond_position, text_losses
from sonde.findings.rule import Check
from sonde.tap import LiveStream

N = 240
SOURCE = ["scanned" if i % 5 == 0 else "typed" for i in range(N)]


def ended(loss: Tensor | str | None) -> Check:
    def columns(examples: list[int]) -> dict[str, list[str]]:
        return {"source": [SOURCE[i] for i in examples]}

    x = torch.randn(N, 12, generator=torch.Generator().manual_seed(0))
    evidence = arrays.evidence_of(x, facts={"own_columns": columns})
    if isinstance(loss, Tensor):
        order = shared_rows(evidence).order
        assert order is not None
        found = TextLosses(torch.arange(N), loss[order], 0.0)
        return SND064().check(evidence.having({text_losses: found}))
    return SND064().check(evidence.having({text_losses: loss}))


@torch.no_grad()
def nats(model: nn.Module, ids: Tensor) -> Tensor:
    return cross_entropy(model(ids)[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").double()


@pytest.mark.truth("a Markov chain's own transition probabilities, by torch")
def test_a_source_that_the_model_does_not_know_is_named_in_nats_per_token() -> None:
    model = Chain()
    scanned = torch.tensor([s == "scanned" for s in SOURCE])
    ids = drawn(model, N, 40)
    odd = torch.where(scanned[:, None], exchanged(ids), ids)
    loss = nats(model, odd)
    own = nats(model, ids)
    finding = assert_raised(ended(beyond_position(list(loss))), "warning")
    assert finding.sentence.startswith("source = scanned: the loss per token is")
    figure = finding.figure
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low < float(loss[scanned].mean() - own[~scanned].mean()) < figure.high
    assert ended(beyond_position(list(own))).state == "clear"


def test_texts_are_not_worse_for_being_short() -> None:
    noise = torch.Generator().manual_seed(1)
    easier = 4.0 / torch.arange(1, 65).sqrt()
    short = [i % 5 == 0 for i in range(N)]
    losses = [
        (easier + 0.3 * torch.randn(64, generator=noise))[: 4 if s else 64].double() for s in short
    ]
    means = torch.stack([x.mean() for x in losses])
    assert_raised(ended(means), "warning")
    assert ended(beyond_position(losses)).state == "clear"


def test_without_a_language_model_or_enough_texts_it_says_so() -> None:
    assert ended(None).state == "not_applicable"
    assert ended("needs the loss of 100 texts").reason == "needs the loss of 100 texts"


@pytest.mark.slow
@pytest.mark.truth("another forward pass of the same texts")
def test_losses_that_the_lens_knows_are_not_computed_again() -> None:
    texts = [f"{TEXTS[i % 6]} {TEXTS[i % 5]} {i}" for i in range(120)]
    stream = sonde.read(twin(), texts, sites="model.layers.2", check=False)
    assert isinstance(stream, LiveStream)
    rows = torch.randn(120, 12, generator=torch.Generator().manual_seed(0))
    evidence = arrays.evidence_of(rows)
    seen: list[int] = []
    handle = stream.model.module.register_forward_pre_hook(
        lambda _m, _args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = []
    for lens in (LensEvidence(), lens_evidence(stream)):
        seen.clear()
        found.append((text_losses(stream, evidence.having({measure_lens: lens})), sum(seen)))
    handle.remove()
    (alone, n), (shared, n_left) = found
    assert isinstance(alone, TextLosses)
    assert isinstance(shared, TextLosses)
    assert n == 120
    assert n_left == 120 - 48
    torch.testing.assert_close(shared.loss, alone.loss, rtol=1e-4, atol=1e-4)
    assert shared.mean == pytest.approx(alone.mean, rel=1e-5)
