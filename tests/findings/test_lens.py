import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from findings._counting import WORDS, Counter, counting
from findings._nets import evidence_of, texts_of, tokens
from sonde.compress import RTN
from sonde.findings.evidence.texts.lens import (
    clustered_error,
    entropy,
    lens_evidence,
    measure_lens,
)
from sonde.findings.evidence.texts.text_variants import text_variant_evidence


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
    lens = lens_evidence(stream)
    assert lens.reason == ""
    assert lens.n_rows == 40 * 19
    expected = losses(amounts, texts_of(stream))
    assert lens.loss is not None
    np.testing.assert_allclose(lens.loss.numpy(), expected, rtol=1e-5)
    assert lens.final == pytest.approx(expected[-1], rel=1e-5)


@pytest.mark.slow
def test_a_packed_head_gives_logits_too() -> None:
    net = Counter((1.0, 1.0)).eval()
    plan = RTN(bits=8, group=0, layers=("lm_head",)).plan(net, {})
    lens = lens_evidence(counting(plan.fold(net)))
    plain = lens_evidence(counting(net))
    assert plain.loss is not None
    assert lens.loss is not None
    np.testing.assert_allclose(lens.loss.numpy(), plain.loss.numpy(), rtol=0.02)


def test_a_block_of_another_class_is_a_block() -> None:
    net = Counter((1.0, 1.0, 1.0, 1.0)).eval()
    net.blocks[2].__class__ = type("OtherStep", (type(net.blocks[2]),), {})
    lens = lens_evidence(counting(net))
    assert lens.sites == tuple(f"blocks.{i}:out" for i in range(4))


def test_reasons_why_there_are_no_figures() -> None:
    scaled = lens_evidence(counting(Counter((1.0, 1.0), tail=2.0).eval()))
    assert "do not give its logits" in scaled.reason
    few = lens_evidence(counting(Counter((1.0, 1.0)).eval(), n=8))
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


@pytest.mark.truth("the module's own forward of the texts alone")
def test_texts_that_the_lens_has_read_are_not_run_again() -> None:
    stream, shapes = counting(Counter((1.0, 1.0)).eval()), list[int]()
    evidence = evidence_of(stream)
    evidence = evidence.having({measure_lens: lens_evidence(stream)})
    hook = stream.model.module.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    known = text_variant_evidence(stream, evidence)
    n_forwards = len(shapes)
    own = text_variant_evidence(stream, evidence.having({measure_lens: None}))
    hook.remove()
    assert known is not None
    assert own is not None
    assert len(shapes) == 2 * n_forwards + 1
    assert torch.allclose(known.given, own.given, rtol=1e-5)
