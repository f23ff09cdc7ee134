"""The most active hidden units, against one text at a time in plain torch."""

from collections import Counter

import pytest
import torch

import sonde
from sonde import Model
from sonde.compress import unit_use
from sonde.core import InputError, StateError
from sonde.data import open_inputs
from sonde.testing import causal_model


@pytest.mark.truth("activations times output lengths, written down text by text")
def test_counts_without_padding():
    model = Model(causal_model(), task="causal")
    draw = torch.Generator().manual_seed(4)
    texts = [torch.randint(1, 32, (n,), generator=draw) for n in (5, 11, 3)]
    use = unit_use(model, open_inputs(model, [{"input_ids": t} for t in texts]), 0.2)
    (name, *_), found = use.names, Counter()
    block = model.module.get_submodule(name)
    seen: list[torch.Tensor] = []
    handle = block.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for text in texts:
            model.module(text[None])
    handle.remove()
    lengths = block.down_proj.weight.detach().square().sum(0).sqrt()
    width = len(lengths)
    for x in torch.cat([x[0] for x in seen]):
        order = sorted(range(width), key=lambda j: -float(abs(x[j]) * lengths[j]))
        found.update(order[: round(0.2 * width)])
    assert use.tokens == 19
    assert use.counts[0].tolist() == [found[j] for j in range(width)]


def test_shards_add_up():
    model = sonde.load("sonde:digits")
    data = open_inputs(model, torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    whole = unit_use(model, data)
    parts = unit_use(model, data, stop=4).merge(unit_use(model, data, start=4))
    assert whole.tokens == parts.tokens == 170  # sixteen patches and the class token of each
    assert all(a.equal(b) for a, b in zip(whole.counts, parts.counts, strict=True))
    with pytest.raises(StateError, match="the same blocks and the same top"):
        whole.merge(unit_use(model, data, 0.5))
    with pytest.raises(InputError, match="expected tokens at every block, got none"):
        unit_use(model, data, start=4, stop=4)


def test_a_model_without_dense_blocks_is_refused():
    net = torch.nn.Linear(3, 2)
    with pytest.raises(InputError, match="got none in Linear"):
        unit_use(net, open_inputs(Model(net), torch.zeros(2, 3)))
