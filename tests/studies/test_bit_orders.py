"""The scores that order blocks of a net are the library's."""

import pytest
import torch

from sonde.compress import BitAllocation
from sonde_studies._bit_orders import BLOCKS, GROUP, HIGH, LOW, rounded_net


@pytest.mark.slow
@pytest.mark.truth("the layers that BitAllocation itself leaves at the largest width")
@pytest.mark.parametrize("score", ["lim", "cca"])
def test_blocks_are_demoted_as_bit_allocation_demotes_them(score):
    net = rounded_net(3, tiny=True)
    order = net.order(net.scores(score))
    for kept in (1, 3, 6):
        mean = LOW + (HIGH - LOW) * (kept + 0.01) / BLOCKS
        rule = BitAllocation(mean, GROUP, (LOW, HIGH), score=score, layers=("blocks.*",))
        changes = rule.plan(net.net, {"calibration": net.x}).changes
        wide = {name.split(".")[1] for name, change in changes.items() if change.grid.bits == HIGH}
        assert wide == {str(i) for i in order[-kept:]}


@pytest.mark.truth("divergence of the answers without each layer's smallest tenth, by hand")
def test_pruning_is_scored_by_the_divergence_of_answers():
    net = rounded_net(3, tiny=True)
    x, got = net.x[:16], net.scores("prune")
    with torch.no_grad():
        log_p = net.net(x).log_softmax(1)
        for i, block in enumerate(net.net.blocks):
            want = 0.0
            for weight in (block.up.weight, block.down.weight):
                before = weight.clone()
                least = weight.abs().flatten().argsort()[: round(0.1 * weight.numel())]
                weight.view(-1)[least] = 0.0
                log_q = net.net(x).log_softmax(1)
                want += float((log_p.exp() * (log_p - log_q)).sum(1).mean())
                weight.copy_(before)
            assert got[i] == pytest.approx(want, rel=0.02, abs=1e-7)
