"""A gate before the model: it learns which expert is best, and reads no later token."""

import pytest
import torch

from compress.two_domains_case import DOMAINS, TwoDomains, texts
from sonde import Model
from sonde.compress import ExtractExperts, PreGate
from sonde.core import InputError
from sonde.data import open_inputs


def cut(net):
    return ExtractExperts(keep=7 / 13, top=1 / 13).extract(net, {n: texts(n) for n in DOMAINS})


@pytest.mark.truth("the loss of each expert at each token of new texts, run alone")
def test_it_learns_which_expert_is_best():
    net = TwoDomains()
    sliced, model = cut(net), Model(net)
    data = open_inputs(model, [*texts("low"), *texts("high", seed=1)])
    gate = PreGate.fit(sliced, data, width=8, epochs=60, rate=2e-2)
    seen = set[int]()
    for name in DOMAINS:
        for text in texts(name, seed=7):
            ids = text["input_ids"]
            with torch.no_grad():
                losses = [_losses(sliced, e, ids) for e in range(2)]
            best = (losses[1] < losses[0]).long()
            seen |= set(best.tolist())
            assert gate.experts(ids[None])[0, :-1].equal(best)
    assert seen == {0, 1}
    again = PreGate.fit(sliced, data, width=8, epochs=60, rate=2e-2)
    assert all(torch.equal(*p) for p in zip(gate.parameters(), again.parameters(), strict=True))


def _losses(sliced, expert, ids):
    with sliced.routed(torch.tensor([expert])) as routed:
        p = routed(ids[None]).logits[0, :-1].log_softmax(-1)
    return torch.stack([-p[t, ids[t + 1]] for t in range(len(ids) - 1)])


@pytest.mark.truth("another token at each place")
def test_no_score_depends_on_a_later_token():
    gate = PreGate(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), 3, 6)
    ids = torch.tensor([[3, 1, 4, 1, 5, 8]])
    before = gate(ids)
    for place in range(6):
        other = ids.clone()
        other[0, place] = 7
        moved = (gate(other) - before).abs().amax(-1)[0] > 0
        assert not moved[:place].any()
        assert moved[place:].all()


def test_inputs_without_tokens_are_refused():
    net = TwoDomains()
    with pytest.raises(InputError, match="expected inputs with input_ids"):
        PreGate.fit(cut(net), open_inputs(Model(net), torch.zeros(2, 3, dtype=torch.long)))
