import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from findings._nets import assert_clear, assert_raised, evidence_of, tokens
from sonde.findings.lens import clustered_error, entropy, lens_evidence, prediction_section
from sonde.findings.snd026 import SND026

WORDS, DIM = 32, 32


class Step(nn.Module):
    """Writes the next token's embedding into the stream, or takes part of it back."""

    def __init__(self, table: Tensor, amount: float) -> None:
        super().__init__()
        self.table = nn.Parameter(table.clone())
        self.amount = amount

    def forward(self, x: Tensor) -> Tensor:
        token = (x[..., :DIM] @ self.table.T).argmax(-1)
        write = self.table[(token + 1) % WORDS] * self.amount
        return x + torch.cat([torch.zeros_like(write), write], dim=-1)


class Counter(nn.Module):
    """Predicts token + 1, each block a little more surely, in the half that its head reads."""

    def __init__(self, amounts: tuple[float, ...], tail: float = 1.0) -> None:
        super().__init__()
        table = torch.eye(WORDS, DIM)
        self.embedding = nn.Parameter(table)
        self.blocks = nn.ModuleList([Step(table, a) for a in amounts])
        self.norm = nn.Identity()
        self.lm_head = nn.Linear(2 * DIM, WORDS, bias=False)
        self.tail = tail
        with torch.no_grad():
            self.lm_head.weight.copy_(torch.cat([torch.zeros(WORDS, DIM), table], dim=1))

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace | dict:
        x = self.embedding[input_ids]
        x = torch.cat([x, torch.zeros_like(x)], dim=-1)
        for block in self.blocks:
            x = block(x)
        return {"logits": self.lm_head(self.norm(x)) * self.tail}


def counting(module: nn.Module, n: int = 40, wrong: float = 0.2) -> object:
    """Return texts that count upwards, with jumps."""
    stream = tokens(module, [20] * n, task="causal", vocabulary=WORDS)
    generator = np.random.default_rng(0)
    items = []
    for _ in range(n):
        item = [int(generator.integers(WORDS))]
        for _ in range(19):
            jump = generator.random() < wrong
            item.append(int(generator.integers(WORDS)) if jump else (item[-1] + 1) % WORDS)
        items.append(item)
    object.__setattr__(stream.inputs, "items", items)
    return stream


def losses(amounts: list[float], items: list[list[int]]) -> list[float]:
    """Return the loss after each block, from the closed form of the logits."""
    found, total = [], 0.0
    for amount in amounts:
        total += amount
        rows = []
        for item in items:
            for now, after in itertools.pairwise(item):
                log_sum = np.log(np.exp(total) + WORDS - 1)
                rows.append(log_sum - (total if after == (now + 1) % WORDS else 0.0))
        found.append(float(np.mean(rows)))
    return found


@pytest.mark.truth("closed form of the logits of a counting model")
def test_loss_after_every_block() -> None:
    amounts = [1.0, 1.0, 1.0, 1.0]
    stream = counting(Counter(tuple(amounts)).eval())
    lens = lens_evidence(stream)  # type: ignore[arg-type]
    assert lens.reason == ""
    assert lens.n_rows == 40 * 19
    expected = losses(amounts, stream.inputs.items)  # type: ignore[attr-defined]
    assert lens.loss is not None
    np.testing.assert_allclose(lens.loss.numpy(), expected, rtol=1e-5)
    assert lens.final == pytest.approx(expected[-1], rel=1e-5)


def test_a_block_that_takes_the_answer_back() -> None:
    evidence = evidence_of(counting(Counter((1.5, 1.5, 1.0, -2.0)).eval()), lens=True)  # type: ignore[arg-type]
    check = SND026().check(evidence)
    assert_raised(check, "warning")
    assert check.finding is not None
    assert check.finding.sites == ("blocks.3",)
    assert "ends worse" in check.finding.sentence
    section = prediction_section(evidence)
    assert section is not None
    assert [s["site"] for s in section["sites"]] == [f"blocks.{i}:out" for i in range(4)]
    mended = evidence_of(counting(Counter((1.5, 1.5, -2.0, 3.0)).eval()), lens=True)  # type: ignore[arg-type]
    assert_raised(SND026().check(mended), "note")


def test_blocks_that_help_and_blocks_that_know_nothing_are_clear() -> None:
    helping = evidence_of(counting(Counter((1.0, 1.0, 1.0, 1.0)).eval()), lens=True)  # type: ignore[arg-type]
    assert_clear(SND026().check(helping))
    confused = evidence_of(counting(Counter((-1.0, -1.0, -1.0, -1.0)).eval()), lens=True)  # type: ignore[arg-type]
    check = SND026().check(confused)
    assert_clear(check)
    assert "entropy" in check.reason


def test_reasons_why_there_are_no_figures() -> None:
    scaled = lens_evidence(counting(Counter((1.0, 1.0), tail=2.0).eval()))  # type: ignore[arg-type]
    assert "do not give its logits" in scaled.reason
    few = lens_evidence(counting(Counter((1.0, 1.0)).eval(), n=8))  # type: ignore[arg-type]
    assert "needs 512 predicted tokens" in few.reason
    encoder = tokens(Counter((1.0, 1.0)).eval(), [5, 6], vocabulary=WORDS)
    assert "next token" in lens_evidence(encoder).reason


@pytest.mark.truth("spread of means over 4,000 drawn data sets")
def test_errors_count_groups() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw() -> tuple[Tensor, Tensor]:
        shared = torch.randn(40, 1, generator=generator).double()
        rows = shared + 0.3 * torch.randn(40, 6, generator=generator).double()
        return rows.reshape(-1, 1), torch.arange(40).repeat_interleave(6)

    means = torch.tensor([float(draw()[0].mean()) for _ in range(4000)])
    errors = [float(clustered_error(*draw())[0]) for _ in range(50)]
    assert np.mean(errors) == pytest.approx(float(means.std()), rel=0.06)


@pytest.mark.truth("scipy.stats.entropy")
def test_entropy_of_frequencies() -> None:
    from scipy.stats import entropy as reference

    ids = torch.tensor([0, 0, 1, 2, 2, 2, 7])
    assert entropy(ids) == pytest.approx(float(reference([2, 1, 3, 1])))
