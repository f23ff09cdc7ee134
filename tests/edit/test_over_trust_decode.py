"""Columns of attention, and the beam search that pays for them."""

import pytest
import torch

from sonde.core import InputError
from sonde.edit import AttentionColumns, OverTrustDecode
from sonde.testing import causal_model


def window(n: int = 8, column: int | None = None) -> torch.Tensor:
    """Return causal attention of two heads, with a column that one of them looks at."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 2, n, n, generator=generator).tril() + 1e-6 * torch.ones(n, n).tril()
    if column is not None:
        x[:, 1, column:, column] += 6.0
    return x / x.sum(-1, keepdim=True)


@pytest.mark.truth("products of probabilities in a Python loop")
def test_the_score_is_the_logarithm_of_the_product():
    probs = window(5)
    found = AttentionColumns(scale=3.0, average=False).score(probs)[0]
    seen = probs[0].amax(0)
    seen = seen / seen.sum(1, keepdim=True)
    for j in range(4):
        product = 1.0
        for i in range(j + 1, 5):
            product *= 3.0 * float(seen[i, j])
        assert float(found[j].exp()) == pytest.approx(product, rel=1e-5)
    assert float(found[4]) == -torch.inf
    mean = AttentionColumns(scale=3.0).score(probs)[0]
    later = torch.tensor([4.0, 3, 2, 1])
    torch.testing.assert_close(mean[:4] * later, found[:4])


@pytest.mark.truth("planted column")
def test_a_planted_column_is_found_and_long_windows_stay_finite():
    for average in (False, True):
        score = AttentionColumns(average=average).score(window(column=2))
        assert score.argmax(1).item() == 2
    long = AttentionColumns(average=False).score(window(400, column=0).half().float())
    assert bool(long[:, :-1].isfinite().all())


def generated(model, rule, n=8, **how):
    ids, mask = torch.tensor([[0, 4, 5], [7, 8, 9]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    how = {"attention_mask": mask, "max_new_tokens": n, "pad_token_id": 0} | how
    return model.generate(ids, **({"eos_token_id": None} | how | rule))


@pytest.mark.truth("beam search of transformers")
def test_strength_0_is_beam_search():
    model = causal_model()
    rule = OverTrustDecode(beams=3, candidates=6, strength=0.0, retries=0)
    found = generated(model, {"custom_generate": rule})
    assert torch.equal(found, generated(model, {"num_beams": 3}))
    paid = OverTrustDecode(beams=3, candidates=6, strength=5.0, retries=0)
    assert not torch.equal(generated(model, {"custom_generate": paid}), found)


@pytest.mark.truth("every text of two new tokens, scored with the attentions of transformers")
@torch.no_grad()
def test_a_search_of_all_texts_finds_the_best_whether_it_ends_early_or_not():
    model, eager, ids = causal_model(), causal_model(), torch.tensor([[7, 8, 9]])
    model.lm_head.weight *= 2.0
    eager.set_attn_implementation("eager")
    every = torch.arange(32)
    texts = torch.cat([ids.expand(1024, 3), torch.cartesian_prod(every, every)], 1)
    one = model(ids).logits[0, -1].log_softmax(0)
    plain = one[:, None] + model(texts[::32, :4]).logits[:, -1].log_softmax(1)
    seen = eager(texts, output_attentions=True).attentions[-1][:, :, 4, 3:].amax(1)
    trust = (3.0 * seen[:, 0] / seen.sum(1)).log().view(32, 32)
    rule = OverTrustDecode(AttentionColumns(scale=3.0), 32, 32, strength=1.5)
    best = plain - 1.5 * trust
    assert best.argmax() != plain.argmax()
    early = []
    for end in (int(one.argmax()), int(one.argmin())):
        others = best.clone()
        others[end] = -torch.inf
        wanted = texts[int(others.argmax())].clone()
        early.append(bool(one[end] > others.max()))
        if early[-1]:
            wanted[3:] = torch.tensor([end, 0])
        how = {"max_new_tokens": 2, "pad_token_id": 0, "eos_token_id": end}
        found = model.generate(ids, custom_generate=rule, **how)[0].tolist()
        assert found == wanted[: len(found)].tolist()
    assert early == [True, False]


def test_taking_back_ends_and_forbids_what_stood_there():
    model = causal_model()
    plain = OverTrustDecode(beams=2, candidates=3, strength=0.0, retries=0)
    rolls = OverTrustDecode(beams=2, candidates=3, strength=0.0, patience=1, retries=4)
    first = generated(model, {"custom_generate": plain}, n=12)
    found = generated(model, {"custom_generate": rolls}, n=12)
    assert found.shape == first.shape
    assert not torch.equal(found, first)


@pytest.mark.truth("whole texts without a cache")
def test_beams_read_with_a_cache_are_those_of_whole_texts(monkeypatch):
    model, lengths, module = causal_model(), list[int](), "sonde.edit.over_trust_decode"
    model.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    rule = OverTrustDecode(AttentionColumns(scale=3.0), beams=3, candidates=4, patience=2)
    found = generated(model, {"custom_generate": rule}, n=10)
    n_long = sum(n > 1 for n in lengths)
    monkeypatch.setattr(f"{module}._keeps_all_keys", lambda _: False)
    assert torch.equal(generated(model, {"custom_generate": rule}, n=10), found)
    assert 2 < n_long < len(lengths) / 3  # the prompts, and after steps back


def test_what_is_refused():
    with pytest.raises(InputError, match="scale above 0"):
        AttentionColumns(scale=0.0)
    with pytest.raises(InputError, match="equally many queries and keys"):
        AttentionColumns().score(torch.ones(1, 1, 2, 3))
    with pytest.raises(InputError, match="beams of at least 1, got 0"):
        OverTrustDecode(beams=0)
    with pytest.raises(InputError, match="no logits processors"):
        generated(causal_model(), {"custom_generate": OverTrustDecode(), "repetition_penalty": 2.0})
