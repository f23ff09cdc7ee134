"""Edits of capitals, the training they are held against, and a side effect that is planted."""

from dataclasses import replace
from random import Random

import pytest
import torch

from sonde_studies._help_pages import drawn_pages, language_model
from sonde_studies._world_facts import beginning, known_answers, next_log_p
from sonde_studies.facts_pretrained import (
    CAPITALS,
    SHIPPED,
    changed_others,
    drawn_facts,
    edited_by,
    moments_of,
    rank_one,
    shares_right,
    target_token,
    trained,
)
from sonde_studies.study import NULL_LEVEL, Outcome


def _world(seed):
    model = language_model("smollm2", tiny=True)
    known = known_answers(model, CAPITALS, Random(seed), 12, any_answer=True)
    return model, known, drawn_facts(model, known, Random(seed))


def test_new_answers_are_capitals_of_other_countries():
    model, known, facts = _world(0)
    for country, fact in facts.items():
        assert country in fact.prompt
        assert fact.target != beginning(model, known[country])
        assert fact.target in {beginning(model, a) for a in CAPITALS.answers.values()}


def test_training_changes_the_layer_alone_and_raises_the_answer():
    model, _, facts = _world(1)
    fact = next(iter(facts.values()))
    new = trained(model, [fact], [SHIPPED], 3)
    moved = [
        name
        for (name, p), q in zip(model.module.named_parameters(), new.parameters(), strict=True)
        if not torch.equal(p, q)
    ]
    assert moved == [f"{SHIPPED}.weight"]
    before, after = (next_log_p(model, net, [fact.prompt])[0] for net in (model.module, new))
    token = target_token(model, fact)
    assert float(after[token]) > float(before[token])


def test_an_unchanged_model_keeps_what_it_says():
    model, known, facts = _world(2)
    said = {
        country: model.processor.decode(
            [int(next_log_p(model, model.module, [CAPITALS.prompt.format(country)]).argmax())]
        )
        for country in list(known)[:3]
    }
    right = shares_right(model, model.module, dict([*facts.items()][:2]), said)
    assert right["kept"] == pytest.approx(1)
    assert changed_others(model, model.module, said) == 0


@pytest.mark.slow
def test_a_layer_that_became_louder_is_seen_by_edits_to_the_own_answer():
    for planted in (False, True):
        found = list[float]()
        for seed in range(4):
            model, known, facts = _world(seed)
            country, fact = next(iter(facts.items()))
            said = next_log_p(model, model.module, [fact.prompt]).argmax(1)
            own = replace(fact, target=model.processor.decode(said.tolist()))
            moment = moments_of(model, [SHIPPED], drawn_pages(seed, 4, 200))
            new = edited_by(model, moment, rank_one(own, SHIPPED, 5))
            if planted:
                with torch.no_grad():
                    new.get_submodule(SHIPPED).weight.mul_(8)
            found.append(changed_others(model, new, [c for c in known if c != country]))
        assert (not Outcome(tuple(found), 0.0, NULL_LEVEL).covers) == planted, found
