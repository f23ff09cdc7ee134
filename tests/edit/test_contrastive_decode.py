"""Contrastive decoding, its lower layers and other prompts, and DoLa."""

import pytest
import torch
from torch import Tensor, nn

from sonde.core import InputError, SiteError
from sonde.edit import ContrastiveDecode, DoLa
from sonde.edit.dola import js_divergence
from sonde.tap import DecodeContext, OtherPrompts
from sonde.testing import causal_model, check
from sonde.testing.decode_laws import generate

P = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.4, 0.4, 0.1, 0.1]], dtype=torch.float64)
A = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
L = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)


@pytest.mark.truth("the formula in Python floats, one token at a time")
def test_conditional_tables():
    rule = ContrastiveDecode(0, strength=0.7, plausible=0.25)
    found = rule.step(P.log() + 4.0, DecodeContext({"amateur": A.log() - 1.0})).exp()
    for p, a, row in zip(P.tolist(), A.tolist(), found.tolist(), strict=True):
        expected = [
            x**1.7 / y**0.7 if x >= 0.25 * max(p) else 0.0 for x, y in zip(p, a, strict=True)
        ]
        assert row == pytest.approx(expected, rel=1e-12)


@pytest.mark.truth("the formula in Python floats, one token at a time")
def test_a_lower_layer_is_fused_inside_the_last_ones_plausible_tokens():
    rule = ContrastiveDecode(causal_model(1), layers=(1, -1), strength=1.0, layer_weight=0.2)
    others = {"amateur": A.log(), "layer 1": L.log(), "amateur layer 1": P.log()}
    assert others.keys() == rule.reads().keys()
    found = rule.step(P.log(), DecodeContext(others)).exp()
    expected = (P**2 / A) * (L**2 / P) ** 0.2 * (0.1 * P.amax(1, keepdim=True) <= P)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)


@pytest.mark.truth("the formula in Python floats, one token at a time")
def test_a_guiding_context_beside_the_amateur():
    rule = ContrastiveDecode(
        0, strength=0.7, guide=OtherPrompts(torch.ones(2, 3).long()), guide_weight=0.4
    )
    others = {"amateur": A.log(), "guide": L.log() + 2.0}
    assert others.keys() == rule.reads().keys()
    found = rule.step(P.log(), DecodeContext(others)).exp()
    expected = P**1.7 / A**0.7 * (L / P) ** 0.28 * (0.1 * P.amax(1, keepdim=True) <= P)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)


def test_an_amateur_like_the_model_leaves_the_choice_and_a_token():
    same = ContrastiveDecode(0, plausible=1.0).step(P.log(), DecodeContext({"amateur": P.log()}))
    assert torch.equal(same.argmax(1), P.argmax(1))
    assert bool(same.isfinite().any(1).all())


@pytest.mark.truth("Jensen-Shannon divergences of scipy")
def test_dola_takes_the_layer_that_differs_most():
    from scipy.spatial.distance import jensenshannon

    tables = {"layer 0": A, "layer 2": L}
    found = DoLa((0, 2), plausible=1e-9).step(
        P.log(), DecodeContext({name: t.log() for name, t in tables.items()})
    )
    for i in range(2):
        far = max(tables.values(), key=lambda t: float(jensenshannon(P[i], t[i])))
        torch.testing.assert_close(found[i], (P[i] / far[i]).log(), rtol=0, atol=1e-12)
    got = js_divergence(P.log(), torch.stack([A, L]).log())
    want = [[float(jensenshannon(p, q)) ** 2 for p, q in zip(P, t, strict=True)] for t in (A, L)]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))


def test_layers_that_do_nothing_say_the_same_as_the_last():
    model = causal_model()
    for layer in model.model.layers[1:]:
        for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
            nn.init.zeros_(part.weight)
    plain = generate(model, [], {})
    contrast = ContrastiveDecode(0, strength=3.0).bind(model)
    assert torch.equal(generate(model, [contrast], {}), plain)


RULES = [
    ContrastiveDecode(causal_model(1), strength=0.8),
    ContrastiveDecode(causal_model(1, width=8), layers=(0, -1), strength=0.8),
    ContrastiveDecode(0, plausible=0.01),
    ContrastiveDecode(prompt=lambda ids, mask, _: (ids[:, -2:], mask[:, -2:]), plausible=0.01),
    ContrastiveDecode(0, guide=lambda ids, mask, _: (ids[:, -2:], mask[:, -2:]), plausible=0.01),
    DoLa((0, 1)),
]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=["amateur", "lol", "layer", "prompt", "guide", "dola"])
def test_laws(rule):
    check(rule)


def test_prompts_without_context_follow_their_beams():
    model, ids = causal_model(), torch.tensor([[4, 5, 6], [4, 5, 6]])
    short = OtherPrompts(torch.tensor([[6, 0], [9, 8]]), torch.tensor([[1, 0], [1, 1]]))

    def run(ids: Tensor, prompts: OtherPrompts) -> Tensor:
        rule = ContrastiveDecode(prompt=prompts, strength=2.0, plausible=0.01)
        how = {"max_new_tokens": 6, "num_beams": 3, "min_new_tokens": 6}
        return model.generate(ids, logits_processor=[rule.bind(model)], **how)

    found = run(ids, short)
    first = run(ids[:1], OtherPrompts(torch.tensor([[6]])))
    second = run(ids[:1], OtherPrompts(torch.tensor([[9, 8]])))
    assert torch.equal(found, torch.cat((first, second)))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: ContrastiveDecode(0, plausible=0.0), InputError, r"plausible in \(0, 1\], got 0"),
        (lambda: ContrastiveDecode(), InputError, "contrasted with itself"),
        (lambda: ContrastiveDecode(0, layers=(1,)), InputError, "expected layers with -1"),
        (lambda: DoLa(()), InputError, "at least one layer"),
        (lambda: DoLa((0, 3)).bind(causal_model()), SiteError, r"layer in -3\.\.2, got 3"),
        (
            lambda: ContrastiveDecode(nn.Linear(2, 2)).bind(causal_model()),
            InputError,
            "causal language model",
        ),
    ],
)
def test_what_is_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()


def test_the_end_of_a_text_is_not_promoted():
    """The early layer never expects token 2, the end; it is taken only if it is most likely."""
    p = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]]).log()
    early = torch.tensor([[0.6, 0.399, 0.001]]).log().expand(2, 3)
    free = DoLa((0,)).step(p, DecodeContext({"layer 0": early}))
    kept = DoLa((0,)).step(p, DecodeContext({"layer 0": early}, ends=(2,)))
    assert free.argmax(1).tolist() == [2, 2]
    assert kept.argmax(1).tolist() == [0, 2]
