"""Seven numbers of a next-token distribution, against brute force."""

import math
import sys

import pytest
import torch

from sonde.core.errors import ShapeError
from sonde.stats import TOKEN_METRICS, token_metrics

P = torch.tensor([[0.5, 0.2, 0.2, 0.1]], dtype=torch.float64)


def brute(logits, token):
    """Return the metrics of one row in plain Python, from probabilities in float64."""
    f = [float(v) for v in logits]
    top = max(f)
    z = sum(math.exp(v - top) for v in f)
    log_p = [v - top - math.log(z) for v in f]
    p = [math.exp(v) for v in log_p]
    entropy = -sum(a * b for a, b in zip(p, log_p, strict=True) if a > 0)
    at_least = [j for j in range(len(f)) if f[j] >= f[token]]
    square = sum(a * b * b for a, b in zip(p, log_p, strict=True) if a > 0)
    return [
        log_p[token],
        entropy,
        max(log_p),
        len(at_least) / len(f),
        sum(p[j] for j in at_least),
        math.log(len(at_least)),
        square - entropy**2,
    ]


@pytest.mark.truth("P = (.5, .2, .2, .1) and the second token, by hand")
def test_a_distribution_by_hand():
    found = token_metrics(P.log(), torch.tensor([1]))[0]
    expected = [-1.6094379, 1.2206073, -0.6931472, 0.75, 0.9, math.log(3)]
    assert found[:6].tolist() == pytest.approx(expected, abs=1e-7)
    square = 0.5 * math.log(0.5) ** 2 + 0.4 * math.log(0.2) ** 2 + 0.1 * math.log(0.1) ** 2
    assert float(found[6]) == pytest.approx(square - 1.2206073**2, abs=1e-6)
    assert len(TOKEN_METRICS) == found.numel()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.truth("the definition in plain Python, from the same logits in float64")
def test_brute_force(dtype):
    logits = (4 * torch.randn(6, 37, generator=torch.Generator().manual_seed(0))).to(dtype)
    token = torch.tensor([0, 36, 5, 7, 7, 20])
    expected = torch.tensor([brute(f, int(y)) for f, y in zip(logits, token, strict=True)])
    found = token_metrics(logits, token).double()
    torch.testing.assert_close(found, expected.double(), rtol=2e-5, atol=2e-5)


@pytest.mark.truth("all rows in one piece")
def test_pieces_give_the_same_rows(monkeypatch):
    logits = torch.randn(50, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    token, source = torch.arange(20) % 11, torch.arange(20).flip(0) * 2
    whole = token_metrics(logits[source], token)
    monkeypatch.setattr(sys.modules["sonde.stats.token_metrics"], "CHUNK_ENTRIES", 33)
    torch.testing.assert_close(token_metrics(logits, token, source), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.truth("uniform and one-hot distributions, in closed form")
def test_extreme_distributions():
    masked = torch.full((1, 8), -math.inf)
    masked[0, 3] = 2.0
    sure, even = (token_metrics(x, torch.tensor([3]))[0] for x in (masked, torch.zeros(1, 8)))
    assert sure.tolist() == [0.0, 0.0, 0.0, 0.125, 1.0, 0.0, 0.0]
    log8 = math.log(8)
    expected = [-log8, log8, -log8, 1.0, 1.0, log8, 0.0]
    assert even.tolist() == pytest.approx(expected, abs=1e-6)
    impossible = token_metrics(masked, torch.tensor([0]))[0]
    assert float(impossible[0]) == -math.inf


def test_a_shift_of_the_logits_changes_nothing():
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    token = torch.tensor([1, 2, 3])
    torch.testing.assert_close(token_metrics(logits + 100, token), token_metrics(logits, token))


def test_nothing_of_the_size_of_the_logits_is_made():
    logits = torch.randn(1024, 8192)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        token_metrics(logits, torch.arange(1024))
    largest = max(abs(e.self_cpu_memory_usage) for e in profile.events() or ())
    assert largest <= logits.nbytes / 3


def test_no_token_gives_no_row():
    none = torch.zeros(0, dtype=torch.int64)
    assert token_metrics(torch.zeros(4, 5), none, none).shape == (0, 7)


@pytest.mark.parametrize(
    ("token", "message"),
    [([0, 1], "a token for each of 3 rows"), ([0, 1, 4], "expected ids below 4, .* got 0 to 4")],
)
def test_tokens_that_do_not_fit_are_refused(token, message):
    with pytest.raises(ShapeError, match=message):
        token_metrics(torch.zeros(3, 4), torch.tensor(token))
