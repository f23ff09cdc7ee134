import math

import pytest
import torch
from scipy.stats import entropy
from tests.student import student
from torch.distributions import Categorical

import sonde
from models import gpt2
from narrow import present
from sonde.core.errors import ShapeError
from sonde.core.inputs import Model
from sonde.measure import TokenEntropy, token_entropy
from sonde.measure.token_entropy import _SpanSums
from sonde.stats import token_metrics
from sonde.tap import live_stream
from tap_inputs import Texts

LOGITS = 2 * torch.randn(40, 9, 6, generator=torch.Generator().manual_seed(0)).double()
LOGITS = LOGITS * torch.linspace(0.2, 2.0, 40)[:, None, None]  # documents are unlike
TOKENS = torch.randint(0, 6, (40, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.truth("torch's categorical distribution")
def test_entropy_and_surprise():
    entropy, log_p = Categorical(logits=LOGITS).entropy(), LOGITS.log_softmax(2)
    found = token_entropy(LOGITS, TOKENS)
    assert found.value == pytest.approx(float(entropy.mean()), rel=1e-9)
    assert found.start.tolist() == [1, 2, 4, 8]
    want = [entropy[:, a:b].mean() for a, b in ((0, 1), (1, 3), (3, 7), (7, 9))]
    torch.testing.assert_close(found.entropy, torch.stack(want))
    assert found.surprise == pytest.approx(-float(log_p.gather(2, TOKENS[..., None]).mean()))
    assert found.perplexity == pytest.approx(math.exp(found.surprise))
    assert found.null == found.range[1] == pytest.approx(math.log(6), rel=1e-9)
    mask = torch.arange(9) < torch.arange(40)[:, None] % 9 + 1
    padded = LOGITS.masked_fill(~mask[..., None], 1e4)
    found = token_entropy(padded, mask=mask)
    assert found.value == pytest.approx(float(entropy[mask].mean()), rel=1e-9)
    assert math.isnan(found.surprise)
    assert [v["position"] for v in found.chart()["data"]["values"]] == [1, 2, 4, 8]


@pytest.mark.truth("scipy's entropy")
@pytest.mark.parametrize("p", [[0.25, 0.25, 0.5], [1 / 256] * 256])
def test_known_values(p):
    found = token_entropy(torch.tensor([p, p], dtype=torch.float64).log() + 3.0)
    assert found.value == pytest.approx(entropy(p), rel=1e-9)
    sure = token_entropy(torch.tensor([[0.0, -math.inf]] * 2), [0, 0])
    assert (sure.value, sure.surprise) == (0.0, 0.0)


@pytest.mark.truth("the spread of sums over documents")
def test_tokens_of_a_document_are_no_independent_ones():
    gap = Categorical(logits=LOGITS).entropy()
    gap = gap - gap.mean()
    for groups, group in ((40, None), (20, torch.arange(40) // 2)):
        sums = gap.reshape(groups, -1).sum(1)
        want = float(sums.square().sum().sqrt()) / gap.numel()
        want *= student(groups) if groups < 32 else 1.0
        found = token_entropy(LOGITS, TOKENS, group=group)
        assert float(present(found.se)) == pytest.approx(want, rel=0.03)


@pytest.mark.truth("the model's logits for each text alone")
def test_through_a_language_model():
    torch.manual_seed(0)
    module = gpt2().eval()
    texts = [[3 + (7 * i + j * j) % 30 for j in range(3 + i % 6)] for i in range(24)]
    model = Model(module, config=module.config, task="causal")
    stream = live_stream(model, Texts(texts, special=False), "lm_head", "predictions", logits=False)
    found = sonde.fit(TokenEntropy(), stream, progress=False).result("token_entropy")
    entropies, surprises = [], []
    with torch.no_grad():
        for text in texts:
            logits = module(torch.tensor([text])).logits[0, :-1].double()
            entropies += Categorical(logits=logits).entropy().tolist()
            surprises += (-logits.log_softmax(1)[range(len(text) - 1), text[1:]]).tolist()
    assert found.n == len(entropies)
    assert found.value == pytest.approx(sum(entropies) / found.n, rel=1e-4)
    assert found.surprise == pytest.approx(sum(surprises) / found.n, rel=1e-4)
    assert int(found.start[0]) == 1


def test_wrong_shapes_are_named():
    with pytest.raises(ShapeError, match=r"7 token metrics, got dim=4.*reducer 'predictions'"):
        TokenEntropy().fit(torch.zeros(5, 4))
    with pytest.raises(ShapeError, match=r"token_entropy: expected token of shape \(40, 9\)"):
        token_entropy(LOGITS, TOKENS[:, :4])
    with pytest.raises(ShapeError, match="token_entropy: expected 40 groups, got 2"):
        token_entropy(LOGITS, group=[0, 1])
    rows = token_metrics(LOGITS[0], TOKENS[0])
    assert TokenEntropy().fit(rows).start.tolist() == [0]


def test_states_of_parts_merge_to_that_of_all():
    rows, spans = token_metrics(LOGITS.flatten(0, 1), TOKENS.flatten()), _SpanSums()
    position = torch.arange(1, 10).repeat(40)
    whole = spans.observe(rows, position)
    parts = [spans.observe(rows[a:b], position[a:b]) for a, b in ((0, 100), (100, 130), (130, 360))]
    merged = spans.merge(spans.merge(parts[0], parts[1]), parts[2])
    for name in ("count", "total", "surprise", "most"):
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name))
