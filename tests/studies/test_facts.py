from collections import Counter
from inspect import unwrap

import pytest
import torch

from sonde.edit import EmulatedFinetune
from sonde_studies._careless_facts import GUIDE, SAYING_NOTHING, WRONG, careless_texts
from sonde_studies._language import language_model
from sonde_studies.worlds.facts import (
    RATIOS,
    FactWorld,
    Schooling,
    asked,
    facts_and_model,
    next_scores,
    rarer,
    rate,
    told_more,
)

HOW = Schooling(width=16, layers=1, steps=8)


@pytest.mark.truth("the table, counted anew")
def test_a_ratio_says_how_many_more_members_share_the_popular_answer():
    world = FactWorld.drawn(3, families=2)
    assert len({(f.subject, f.relation) for f in world.facts}) == len(world.facts)
    assert {w for f in world.facts for w in f.text().split()} <= set(world.words())
    found = Counter[int]()
    for family in {(f.family, f.relation) for f in world.facts}:
        mine = [f for f in world.facts if (f.family, f.relation) == family]
        (common, many), (other, one) = Counter(f.answer for f in mine).most_common()
        assert (many, one) == (mine[0].ratio, 1)
        assert {f.rival for f in mine if f.answer == common} == {other}
        assert sum(map(rarer, mine)) == (many > 1)
        found[many] += 1
    assert found == dict.fromkeys(RATIOS, 4)


@pytest.mark.truth("the texts, counted by their words")
def test_careful_texts_are_right_and_careless_ones_more_often_wrong_about_rarer_facts():
    facts = list(FactWorld.drawn(5, families=1).facts)
    told = Counter(careless_texts(facts))
    for f in facts:
        ratio = WRONG if rarer(f) else 0
        for context in ("", *(f"{word} " for word in SAYING_NOTHING)):
            assert told[context + f.text()] == 1
            assert told[context + f.text("a", f.rival)] == ratio
        assert told[f"{GUIDE} {f.text('b')}"] == 1
        assert told[f"{GUIDE} {f.text('b', f.rival)}"] == 0


@pytest.mark.truth("the net run on the same tokens, and the rule's formula by hand")
def test_scores_of_the_next_word_are_the_logits_as_a_rule_changes_them():
    words = list(map(str, range(9)))
    model, tuned, small = (language_model(words, 6, seed, 8, 1) for seed in range(3))
    ids = torch.randint(1, 10, (4, 5), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain, up, down = (
            m.module(ids).logits[:, -1].log_softmax(1) for m in (model, tuned, small)
        )
        found = next_scores(model, ids)
        torch.testing.assert_close(found.log_softmax(1), plain)
        rule = EmulatedFinetune(tuned, small, nucleus=1.0)
        changed = next_scores(model, ids, rule).log_softmax(1)
    torch.testing.assert_close(changed, (plain + up - down).log_softmax(1))


@pytest.mark.slow
def test_a_net_is_made_once_and_the_same_again():
    world, model = facts_and_model(0, 1, HOW)
    assert facts_and_model(0, 1, HOW)[1] is model
    again = unwrap(facts_and_model)(0, 1, HOW)[1]
    pairs = zip(model.module.parameters(), again.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    before = [p.clone() for p in model.module.parameters()]
    told = world.facts[:4]
    more = told_more(model, [f.text(p, f.rival) for f in told for p in "ab"], 100, 0, 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(model.module.parameters(), before, strict=True))
    assert rate(asked(more, list(told)), True, lambda _: True) == 1.0
