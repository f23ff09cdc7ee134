"""Calibration examples that are not finite: left out and counted, or refused, by every rewrite."""

import warnings

import pytest
import torch
from torch import nn

import sonde.compress
import sonde.edit
from sonde.core import SondeError
from sonde.core.errors import InputError, SondeWarning
from sonde.weights import Examples, Rewrite

ROWS = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)
    )


def rewrites() -> dict[str, Rewrite]:
    """Return every rewrite that reads examples alone and can change this net by default."""
    found: dict[str, Rewrite] = {}
    for room in (sonde.compress, sonde.edit):
        for name in room.__all__:
            kind = getattr(room, name)
            if not (isinstance(kind, type) and issubclass(kind, Rewrite)):
                continue
            try:
                rule = kind(**kind.examples[0])
                needs = rule.reads()
                if needs and all(isinstance(need, Examples) for need in needs.values()):
                    rule.plan(net(), dict.fromkeys(needs, ROWS))
                    found[name] = rule
            except (SondeError, TypeError):
                continue
    return found


def planned(rule, rows):
    return rule.plan(net(), dict.fromkeys(rule.reads(), rows))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.truth("the plan of the same examples without the bad ones")
def test_every_rewrite_leaves_out_the_same_examples():
    rules = rewrites()
    assert len(rules) > 5, rules
    for name, rule in rules.items():
        for value in (torch.nan, torch.inf, 1e30):
            bad = ROWS.clone()
            bad[[3, 20], 2] = value
            with pytest.warns(SondeWarning, match="2 examples of 40 .* left out"):
                found = planned(rule, bad)
            kept = planned(rule, torch.cat([ROWS[:3], ROWS[4:20], ROWS[21:]]))
            assert found.changes.keys() == kept.changes.keys(), name
            for tensor, change in found.changes.items():
                old = net().state_dict().get(tensor)
                new, expected = (c.of(old) for c in (change, kept.changes[tensor]))
                torch.testing.assert_close(new, expected, msg=f"{name} {tensor} {value}")
        bad = ROWS.clone()
        bad[:11] = torch.nan
        with pytest.raises(InputError, match="11 examples of 40"):
            planned(rule, bad)


READS_NO_STATES = {"RTN", "DataFreeCompress", "PruneWeights"}
"""Their default plans ask no layer for its inputs."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_states_that_become_too_large_inside_are_counted():
    bad = ROWS.clone()
    bad[[3, 20], 2] = 1e12  # the example can be squared; its states behind the first layer cannot
    grown = net()
    with torch.no_grad():
        grown[0].weight *= 1e9
    rules = rewrites()
    with pytest.raises(InputError, match="expected weights whose factors half precision holds"):
        rules["BitStack"].plan(grown, dict.fromkeys(rules.pop("BitStack").reads(), bad))
    for name, rule in rules.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            plan = rule.plan(grown, dict.fromkeys(rule.reads(), bad))
        counted = [w for w in said if "rows at the inputs of layers" in str(w.message)]
        assert bool(counted) != (name in READS_NO_STATES), name
        for tensor, change in plan.changes.items():
            assert bool(change.of(grown.state_dict().get(tensor)).isfinite().all()), (name, tensor)
