"""Facts of four groups, and a net that is told some of them."""

import pytest
import torch

from sonde_studies._fact_memory import (
    GROUPS,
    RELATIONS,
    SUBJECTS,
    FactMemory,
    facts_of_groups,
    known_of,
    numbers,
    tell,
)
from sonde_studies.worlds.learning import drawn


@pytest.mark.truth("groups, subjects and relations, counted in loops")
def test_a_number_says_group_subject_and_relation():
    counted = [(g, s, r) for g in GROUPS for s in range(SUBJECTS) for r in range(RELATIONS)]
    for group in GROUPS:
        assert numbers([group]).tolist() == [i for i, f in enumerate(counted) if f[0] == group]
    net = drawn(FactMemory, 0)
    states = net.states(numbers(GROUPS)).detach()
    alike = [i for i, f in enumerate(counted) if f == ("second", 5, 3)]
    subject, relation = 2 * SUBJECTS + 5, 3
    wanted = net.before(net.subject.weight[subject] + net.relation.weight[relation])
    torch.testing.assert_close(states[alike[0]], wanted)


def test_what_was_told_is_known_and_the_rest_by_chance():
    facts, net = facts_of_groups(2), drawn(FactMemory, 2)
    tell(net, facts, ["general"], list(net.parameters()), 60, 2)
    known = known_of(net, facts)
    assert known["general"] > 0.9
    assert max(known[group] for group in GROUPS[1:]) < 0.2


def test_only_the_parameters_that_are_named_learn():
    facts, net = facts_of_groups(3), drawn(FactMemory, 3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    tell(net, facts, ["first"], list(net.layer.parameters()), 2, 3)
    moved = {k.split(".")[0] for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"layer"}
