"""Heads share the budget of their layer out."""

from typing import Any

import pytest
import torch

import sonde
from attention_models import TEXTS
from cache_name import CACHE
from compress.cache_case import N_TOKENS, attentions, kept, net, prompt
from sonde.compress import HeadBudgets, SnapKV
from sonde.core import InputError

RULE = SnapKV(window=1, kernel=1)


@pytest.mark.truth("a loop over the attentions of the last query, largest first")
@pytest.mark.parametrize(("budget", "floor"), [(5, 0.0), (6, 0.5), (5, 1.0)])
def test_the_largest_scores_of_all_heads_stay_above_the_floor(budget, floor):
    last = attentions()[:, -1].clone()
    last[:, -1] = torch.inf
    sure = int(floor * budget)
    found = [sorted(range(N_TOKENS), key=lambda i, x=x: (-float(x[i]), i))[:sure] for x in last]
    rest = [(-float(last[h, i]), h, i) for h in range(2) for i in range(N_TOKENS)
            if i not in found[h]]  # fmt: skip
    for _, head, token in sorted(rest)[: 2 * (budget - sure)]:
        found[head].append(token)
    seen = kept(HeadBudgets(budget, RULE, floor))
    assert [sorted(i for i in head if i >= 0) for head in seen] == [sorted(x) for x in found]
    sizes = {len(x) for x in found}
    assert floor == 1.0 or len(sizes) == 2, "heads keep equal numbers: the case shows nothing"


@pytest.mark.truth("the bytes of the tokens that are kept, counted by hand")
def test_nothing_is_held_for_empty_slots_and_rows_can_be_turned():
    model = net()
    ids = torch.cat([prompt(), prompt().flip(1)])
    with torch.no_grad(), sonde.caching(model, HeadBudgets(4, RULE, 0.0)) as cache:
        model(ids, **{CACHE: cache})
        layer = cache.evicting[1]
        number, width = layer.numbers(), 8
        assert int((number < 0).sum()) > 0
        assert layer.flat_keys is not None
        assert layer.flat_keys.nbytes == 4 * width * 2 * 2 * 4
        before = layer.flat_keys.clone()
        turned: Any = torch.tensor([1, 0])
        cache.reorder_cache(turned)
        assert torch.equal(layer.numbers(), number.flip(0))
        assert not torch.equal(layer.flat_keys, before)
        cache.reorder_cache(turned)
        assert torch.equal(layer.flat_keys, before)


def test_rows_give_in_a_batch_with_padding_what_they_give_alone():
    model = TEXTS["qwen2"]().eval()
    ids = torch.randint(5, 61, (2, 12), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    way = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
    rule = HeadBudgets(0.4, SnapKV(window=2, kernel=3), 0.1)
    with sonde.caching(model, rule) as cache:
        both = model.generate(ids, attention_mask=mask, **{CACHE: cache}, **way)
        sizes = torch.cat([(x.numbers() >= 0).sum(-1) for x in cache.evicting])
        assert bool((sizes[:, 0] != sizes[:, 1]).any())
    for row, first in enumerate((5, 0)):
        with sonde.caching(model, rule) as cache:
            alone = model.generate(ids[row : row + 1, first:], **{CACHE: cache}, **way)
        assert torch.equal(alone[0, -6:], both[row, -6:])


def test_a_floor_above_one_is_refused():
    with pytest.raises(InputError, match=r"floor in \[0, 1\], got 1\.5"):
        HeadBudgets(floor=1.5)
