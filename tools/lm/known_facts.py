"""Facts that a language model knows, with other wordings and the same question about others."""

import random

import torch

from sonde.core.inputs import Model
from sonde.edit import Fact
from sonde.run.changing.fact_prompts import next_chances
from sonde_studies._world_facts import RELATIONS, Relation

NEAR = 8
"""Most prompts about other subjects for each fact."""


def known_facts(model: Model, seed: int) -> list[Fact]:
    """Return the facts that the model knows, in a random order, each with a new answer.

    The new answer is that of another subject. Other subjects judge specificity: those whose answer
    the model gives, and whose answer is neither the old one nor the new one.
    """
    draw, facts = random.Random(seed), list[Fact]()
    for relation in RELATIONS:
        subjects = [s for s in relation.answers if gives(model, relation, s)]
        for subject in subjects:
            own = relation.answers[subject]
            others = [s for s in subjects if relation.answers[s] != own]
            if len(others) < 2:
                continue
            new = relation.answers[draw.choice(others)]
            near = [s for s in others if relation.answers[s] != new]
            facts.append(
                Fact(
                    relation.prompt.format(subject),
                    subject,
                    f" {new}",
                    tuple(wording.format(subject) for wording in relation.wordings),
                    tuple(
                        relation.prompt.format(s) for s in draw.sample(near, min(NEAR, len(near)))
                    ),
                )
            )
    draw.shuffle(facts)
    return facts


def gives(model: Model, relation: Relation, subject: str) -> bool:
    """Return whether the most likely next token begins the subject's answer."""
    chances = next_chances(model, model.module, [relation.prompt.format(subject)])
    answer = model.processor(f" {relation.answers[subject]}", add_special_tokens=False)
    return torch.equal(chances.argmax(1), torch.tensor(answer["input_ids"][:1]))
