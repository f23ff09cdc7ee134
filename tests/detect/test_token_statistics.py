"""Statistics of token metrics: per token, per text, and through a language model end to end."""

import math
from typing import get_args

import pytest
import torch

import sonde
from detect.bigrams import model
from sonde.core.errors import InputError, ShapeError
from sonde.detect import Mahalanobis, TokenStatistics
from sonde.detect.token_statistics import Name
from sonde.run.instruments.entries import inner_of
from sonde.stats import token_metrics
from sonde.tap import live_stream
from tap_inputs import Texts

NAMES = get_args(Name)
P = torch.tensor([[0.5, 0.2, 0.2, 0.1]], dtype=torch.float64)
TOKENS = [0, 3, 1, 0, 2]
X = token_metrics(P.log().expand(len(TOKENS), 4), torch.tensor(TOKENS))
NLL = [-math.log(float(P[0, t])) for t in TOKENS]
RANKS = [1, 4, 3, 1, 3]
H = -sum(float(p) * math.log(float(p)) for p in P[0])
V = sum(float(p) * math.log(float(p)) ** 2 for p in P[0]) - H**2
N = len(TOKENS)
MEAN = sum(NLL) / N

BY_HAND = {
    "mean_nll": MEAN,
    "max_nll": -math.log(0.1),
    "mean_entropy": H,
    "low_rank_share": 3 / 5,
    "min_k": (-math.log(0.1) - math.log(0.2)) / 2,
    "nll_variance": sum((v - MEAN) ** 2 for v in NLL) / N,
    "fast_curvature": (sum(NLL) - N * H) / math.sqrt(N * V),
    "lrr": -sum(NLL) / sum(math.log(r) for r in RANKS),
}


def text_score(statistic, x=X, direction="high", **more):
    more = {"rank": 2, "k": 0.4} | more
    scorer = TokenStatistics(statistic=statistic, direction=direction, **more).fit(x)
    one = torch.zeros(len(x), dtype=torch.int64)
    return float(scorer.reduced(scorer.score(x), one, "own", x).score[0])


@pytest.mark.parametrize("statistic", NAMES)
@pytest.mark.truth("the formulas in plain Python over one distribution")
def test_a_text_by_hand(statistic):
    assert text_score(statistic) == pytest.approx(BY_HAND[statistic], rel=1e-9)
    low = text_score(statistic, direction="low")
    assert low == pytest.approx(-text_score(statistic), rel=1e-12)


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        ("mean_nll", NLL),
        ("mean_entropy", [H] * 5),
        ("low_rank_share", [0, 1, 1, 0, 1]),
        ("fast_curvature", [(v - H) / math.sqrt(V) for v in NLL]),
        ("lrr", [-v / max(math.log(r), math.log(2)) for v, r in zip(NLL, RANKS, strict=True)]),
    ],
)
@pytest.mark.truth("the formulas in plain Python over one distribution")
def test_a_token_by_hand(statistic, expected):
    scorer = TokenStatistics(statistic=statistic, rank=2).fit(X)
    assert scorer.score(X).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("statistic", NAMES)
@pytest.mark.truth("each text alone")
def test_texts_do_not_mix(statistic):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 9, generator=rng, dtype=torch.float64)
    x = token_metrics(logits, torch.randint(0, 9, (40,), generator=rng))
    text = torch.randint(0, 4, (40,), generator=rng)
    scorer = TokenStatistics(statistic=statistic).fit(x)
    found = scorer.reduced(scorer.score(x), text, "own", x)
    assert found.example.tolist() == [0, 1, 2, 3]
    alone = [text_score(statistic, x[text == i], k=0.2, rank=10) for i in range(4)]
    assert found.score.tolist() == pytest.approx(alone, rel=1e-9)
    scores = scorer.score(x)
    assert [float(scores[r]) for r in found.row] == [
        float(scores[text == i].max()) for i in range(4)
    ]


@pytest.mark.truth("the mean of the k least likely tokens, by sorting")
def test_min_k_keeps_at_least_one_token():
    assert text_score("min_k", k=0.01) == pytest.approx(max(NLL))
    assert text_score("min_k", k=1.0) == pytest.approx(MEAN)


def test_other_reductions_are_those_of_the_token_scores():
    scorer = TokenStatistics().fit(X)
    one = torch.zeros(N, dtype=torch.int64)
    assert float(scorer.reduced(scorer.score(X), one, "max", X).score) == pytest.approx(max(NLL))


@pytest.mark.parametrize("statistic", NAMES)
def test_sure_and_impossible_tokens(statistic):
    sure = token_metrics(torch.tensor([[2.0, -math.inf, -math.inf]]), torch.tensor([0]))
    impossible = token_metrics(torch.tensor([[2.0, -math.inf, -math.inf]]), torch.tensor([1]))
    assert text_score(statistic, sure) == 0.0
    scorer = TokenStatistics(statistic=statistic, direction="low").fit(sure)
    both = torch.cat([sure, impossible])
    scores = scorer.score(both)
    assert scores.tolist() == [0.0, math.inf]
    found = scorer.reduced(scores, torch.tensor([0, 0]), "own", both)
    assert found.score.tolist() == [math.inf]


# through a model ---------------------------------------------------------------------------------


def stories(n, seed, step=1):
    """Return different texts of 4 to 11 tokens that go on by ``step``."""
    order = torch.randperm(25 * 8, generator=torch.Generator().manual_seed(seed))[:n].tolist()
    return [[3 + i % 25 + step * j % 30 for j in range(4 + i // 25)] for i in order]


def opened(items, side="right"):
    inputs = Texts(items, special=False, side=side)
    return live_stream(model(), inputs, "lm_head", "predictions", logits=False)


@pytest.mark.slow
def test_texts_that_the_model_did_not_expect_score_high():
    detectors = [TokenStatistics(s) for s in NAMES if s != "lrr"]
    fitted = sonde.fit(detectors, opened(stories(80, 0)), progress=False)
    usual = sonde.score(fitted, opened(stories(40, 1)), progress=False).to_pylist()
    odd = sonde.score(fitted, opened(stories(40, 2, step=-7)), progress=False).to_pylist()
    assert len(usual) == len(odd) == 40 * len(detectors)
    for name in ("mean_nll", "max_nll", "min_k", "fast_curvature"):
        mine = [[r for r in rows if repr(name) in r["instrument"]] for rows in (usual, odd)]
        assert len(mine[0]) == 40
        medians = [sorted(r["score"] for r in rows)[20] for rows in mine]
        assert medians[1] > medians[0] + 1.0
        assert sorted(r["p"] for r in mine[1])[20] < 0.1


@pytest.mark.truth("log_softmax of each text alone, brute force")
def test_the_table_holds_the_mean_surprise_of_each_text():
    items = stories(30, 3)
    fitted = sonde.fit(TokenStatistics(), opened(items), calibrate=0, progress=False)
    rows = sonde.score(fitted, opened(items), progress=False).to_pylist()
    for row, item in zip(rows, items, strict=True):
        with torch.no_grad():
            logs = model().module(torch.tensor([item])).logits[0].log_softmax(-1)
        nll = -logs[range(len(item) - 1), item[1:]]
        assert row["score"] == pytest.approx(float(nll.mean()), rel=1e-3, abs=1e-4)
        assert row["position"] == int(nll.argmax()) + 1
    tokens = sonde.score(fitted, opened(items), reduction="rows", progress=False)
    assert tokens.num_rows == sum(len(i) - 1 for i in items)


def test_direction_is_in_the_header_and_survives_a_file(tmp_path):
    fitted = sonde.fit(
        TokenStatistics("min_k", direction="low"), opened(stories(60, 4)), progress=False
    )
    fitted.save(tmp_path / "probe.sonde")
    loaded = sonde.Fitted.load(tmp_path / "probe.sonde")
    assert inner_of(loaded.tasks[0].instrument) == TokenStatistics("min_k", direction="low")
    stream = opened(stories(9, 5))
    before, after = (sonde.score(f, stream, progress=False) for f in (fitted, loaded))
    assert before == after
    assert max(before.column("score").to_pylist()) < 0.0


# refusals ----------------------------------------------------------------------------------------


def test_rows_that_are_no_token_metrics_are_refused():
    with pytest.raises(ShapeError, match=r"7 token metrics, got dim=4.*reducer 'predictions'"):
        TokenStatistics().fit(torch.zeros(5, 4))


def test_sites_of_another_reducer_are_refused():
    stream = live_stream(model(), Texts(stories(20, 6), special=False), "transformer.h.1", "tokens")
    with pytest.raises(InputError, match=r"TokenStatistics: expected rows of .*'predictions'"):
        sonde.fit(TokenStatistics(), stream, progress=False)


def test_other_detectors_read_token_metrics_too():
    fitted = sonde.fit(Mahalanobis(classes=False), opened(stories(60, 7)), progress=False)
    assert fitted.result("mahalanobis").scorer.n > 100


@pytest.mark.parametrize(
    "wrong", [{"statistic": "ppl"}, {"direction": "up"}, {"k": 0.0}, {"k": 1.5}, {"rank": 0}]
)
def test_parameters_are_checked(wrong):
    with pytest.raises(InputError, match="TokenStatistics: expected"):
        TokenStatistics(**wrong)
