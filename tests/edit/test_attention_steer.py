"""Attention moved between regions: rows by hand, live models, padding, caches."""

import pytest
import torch

import models
import sonde
from sonde.core import EditContext, InputError, Replace, ShapeError, Site
from sonde.edit import AttentionSteer, attention_mass
from sonde.tap import Tap

SITE, HEADS = Site("0:probs"), 4
AT = "h.1.attn:probs"


def rows(seed, *shape):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64).softmax(-1)


@pytest.fixture(scope="module")
def gpt2():
    return models.gpt2().double().eval()


def ids(seed, *shape):
    return torch.randint(3, models.VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.truth("a softmax of scores that a mask hides")
def test_forbidding_is_a_mask_before_the_softmax():
    scores = torch.randn(2, 5, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    hidden = torch.zeros(5, 5, dtype=torch.bool)
    hidden[1:4, [0, 2]] = True
    want = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1)
    steer = AttentionSteer(3, (1, 2, 3), (0, 2), "forbid")
    found = steer.apply(scores.softmax(-1).flatten(2), SITE, EditContext())
    torch.testing.assert_close(found, want.flatten(2), rtol=1e-12, atol=1e-14)
    assert bool((found.unflatten(2, (3, 5))[:, 1:4, :, [0, 2]] == 0).all())


@pytest.mark.truth("rows by hand")
def test_a_prior_is_taken_at_its_keys_and_the_others_share_what_is_left():
    x = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]])
    prior = torch.tensor([[[0.2, 0.1, 0.7], [0.3, 0.3, 0.4]]])
    context = EditContext(others={"source": prior})
    found = AttentionSteer(1, (0,), (0,)).apply(x, SITE, context)
    want = torch.tensor([[[0.2, 0.48, 0.32], [0.1, 0.1, 0.8]]])
    torch.testing.assert_close(found, want)
    half = AttentionSteer(1, (0,), (0,), strength=0.5).apply(x, SITE, context)
    torch.testing.assert_close(half, (x + want) / 2)
    assert torch.equal(AttentionSteer(1).apply(x, SITE, context), prior)
    assert AttentionSteer(1, strength=0.0).apply(x, SITE, context) is x
    later = EditContext(call=2, others={"source": prior})
    assert AttentionSteer(1, calls=2).apply(x, SITE, later) is x


def test_a_row_whose_rest_was_empty_takes_the_rest_of_the_prior():
    x, prior = torch.tensor([[[1.0, 0.0, 0.0]]]), torch.tensor([[[0.4, 0.3, 0.3]]])
    context = EditContext(others={"source": prior})
    torch.testing.assert_close(AttentionSteer(1, keys=(0,)).apply(x, SITE, context), prior)


@torch.no_grad()
def test_the_prior_of_another_run_gives_its_heads_where_values_are_the_same(gpt2):
    """With another run's probabilities and its values, an attention returns what that run's did."""
    a, b = ids(0, 2, 6), ids(1, 2, 6)
    sites = [AT, "h.1.attn:values", "h.1.attn:heads"]
    with Tap(gpt2, sites) as tap:
        gpt2(b)
        other = {k.removeprefix("transformer."): v for k, v in tap.rows.items()}
    names = list(tap.rows)
    others = {"source": dict(tap.rows)}
    values = Replace(tap.rows[names[1]])
    with (
        sonde.editing(gpt2, values, sites[1]),
        sonde.editing(gpt2, AttentionSteer(HEADS), AT, others=others),
        Tap(gpt2, sites) as now,
    ):
        gpt2(a)
    torch.testing.assert_close(now.rows[names[2]], tap.rows[names[2]])
    mass = attention_mass(other[AT], HEADS, (5,), (0, 1))
    by_hand = other[AT].unflatten(2, (HEADS, 6))[:, 5, :, :2].sum(-1)
    torch.testing.assert_close(mass, by_hand)


@torch.no_grad()
def test_padding_moves_no_region_and_a_cache_changes_nothing(gpt2):
    text = ids(0, 1, 5)
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), text], 1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    steer = AttentionSteer(HEADS, (3, 4, 5, 6), (1, 2), "forbid")
    with sonde.editing(gpt2, steer, AT):
        alone = gpt2(text).logits[0, -1]
        beside = gpt2(padded, attention_mask=mask, position_ids=mask.cumsum(1).sub(1).clamp(min=0))
        torch.testing.assert_close(beside.logits[0, -1], alone)
    assert float((alone - gpt2(text).logits[0, -1]).abs().max()) > 1e-6
    how = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    how |= {"output_logits": True, "return_dict_in_generate": True, "attention_mask": mask}
    found = []
    for use_cache in (True, False):
        with sonde.editing(gpt2, steer, AT):
            made = gpt2.generate(padded, use_cache=use_cache, **how)
        found.append(torch.stack(made.logits))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-9)


def test_bad_input_is_refused(gpt2):
    with (
        pytest.raises(InputError, match="the first token of a text attends only to itself"),
        sonde.editing(gpt2, AttentionSteer(HEADS, keys=(0,), how="forbid"), AT),
    ):
        gpt2(ids(0, 1, 4))
    with pytest.raises(InputError, match=r"sonde\.editing\(others="):
        AttentionSteer(1).apply(rows(0, 1, 2, 2), SITE, EditContext())
    other = EditContext(others={"source": rows(1, 1, 2, 3)})
    with pytest.raises(ShapeError, match="same number of queries and keys"):
        AttentionSteer(1).apply(rows(0, 1, 2, 2), SITE, other)
    with pytest.raises(ShapeError, match="name the heads"):
        AttentionSteer(3).apply(rows(0, 1, 2, 2), SITE, EditContext())
    with pytest.raises(InputError, match="expected keys to forbid"):
        AttentionSteer(1, how="forbid")
    with pytest.raises(InputError, match="positions from 0 on"):
        AttentionSteer(1, queries=(-1,))
    with pytest.raises(InputError, match="strength in"):
        AttentionSteer(1, strength=2.0)
