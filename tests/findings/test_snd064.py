import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from findings import _evidence as arrays
from findings._nets import assert_raised
from scan._plants_chain import Chain, drawn, exchanged
from sonde.findings.codes.snd064 import SND064
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.findings.evidence.texts.text_losses import TextLosses, beyond_position, text_losses
from sonde.findings.rule import Check

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
