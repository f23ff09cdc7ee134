"""Facts that a language model knows, with other wordings and the same question about others."""

import random
from dataclasses import dataclass

import torch

from sonde.core.inputs import Model
from sonde.edit import Fact
from sonde.run.changing.fact_prompts import next_chances

NEAR = 8
"""Most prompts about other subjects for each fact."""


@dataclass(frozen=True)
class Relation:
    """A question about many subjects.

    Parameters
    ----------
    prompt : str
        Ends where the answer begins; ``{}`` is the subject.
    wordings : tuple of str
        The same question in other words.
    answers : dict of str to str
        The answer for each subject.
    """

    prompt: str
    wordings: tuple[str, ...]
    answers: dict[str, str]


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split(": ") for pair in text.split(", "))


RELATIONS = (
    Relation(
        "The capital of {} is",
        (
            "{}'s capital city is",
            "The capital city of {} is called",
            "People who visit the capital of {} go to",
        ),
        _pairs(
            "France: Paris, Germany: Berlin, Spain: Madrid, Italy: Rome, Japan: Tokyo, "
            "China: Beijing, Russia: Moscow, Poland: Warsaw, Egypt: Cairo, Greece: Athens, "
            "Turkey: Ankara, Sweden: Stockholm, Norway: Oslo, Hungary: Budapest, "
            "Austria: Vienna, Portugal: Lisbon, Kenya: Nairobi, Peru: Lima, Cuba: Havana, "
            "Chile: Santiago, India: Delhi, Iran: Tehran, Finland: Helsinki, Ireland: Dublin, "
            "Denmark: Copenhagen, Iraq: Baghdad, Syria: Damascus, Lebanon: Beirut, "
            "Thailand: Bangkok, Ukraine: Kiev, Romania: Bucharest, Bulgaria: Sofia, "
            "Belgium: Brussels, England: London, Afghanistan: Kabul, Vietnam: Hanoi, "
            "Argentina: Buenos Aires, Canada: Ottawa, Nepal: Kathmandu, Colombia: Bogota"
        ),
    ),
    Relation(
        "The official language of {} is",
        ("People in {} speak", "In {} the spoken language is"),
        _pairs(
            "France: French, Germany: German, Spain: Spanish, Italy: Italian, Japan: Japanese, "
            "China: Chinese, Russia: Russian, Poland: Polish, Egypt: Arabic, Greece: Greek, "
            "Turkey: Turkish, Sweden: Swedish, Norway: Norwegian, Hungary: Hungarian, "
            "Austria: German, Portugal: Portuguese, Mexico: Spanish, Brazil: Portuguese, "
            "Iran: Persian, Finland: Finnish, Iraq: Arabic, Syria: Arabic, Thailand: Thai, "
            "Denmark: Danish, Argentina: Spanish, England: English, Vietnam: Vietnamese"
        ),
    ),
    Relation(
        "{} is a country in the continent of",
        ("{} is located in the continent of", "The continent that {} belongs to is"),
        _pairs(
            "France: Europe, Germany: Europe, Spain: Europe, Japan: Asia, China: Asia, "
            "Egypt: Africa, Kenya: Africa, India: Asia, Nigeria: Africa, Poland: Europe, "
            "Thailand: Asia, Ghana: Africa, Vietnam: Asia, Uganda: Africa, Sweden: Europe, "
            "Nepal: Asia"
        ),
    ),
)


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
