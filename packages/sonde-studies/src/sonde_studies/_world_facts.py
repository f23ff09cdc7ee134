"""Facts of countries, with other wordings and other subjects, that a language model may know."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sonde import Model


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


def known_answers(
    model: Model, relation: Relation, source: Random, n: int, any_answer: bool = False
) -> dict[str, str]:
    """Return subjects of a relation, in a random order, whose answers the model gives.

    Parameters
    ----------
    model : Model
    relation : Relation
    source : Random
    n : int
        Most subjects.
    any_answer : bool, default=False
        Take subjects that the model does not know as well.
    """
    known: dict[str, str] = {}
    for subject in source.sample(sorted(relation.answers), len(relation.answers)):
        answer = relation.answers[subject]
        if len(known) < n and (any_answer or is_given(model, relation, subject)):
            known[subject] = answer
    return known


def is_given(model: Model, relation: Relation, subject: str) -> bool:
    """Return whether the most likely next token begins the subject's answer."""
    log_p = next_log_p(model, model.module, [relation.prompt.format(subject)])
    return int(log_p.argmax()) == first_token(model, relation.answers[subject])


def country_lot(fitted: Sequence[str], judged: Sequence[str], source: Random) -> dict[str, bool]:
    """Return a random label for each country; half of the fitted and half of the others have it.

    Parameters
    ----------
    fitted, judged : sequence of str
        Countries of the rows that are fitted and of those that judge.
    source : Random
    """
    lot: dict[str, bool] = {}
    for names in ({*fitted}, {*judged} - {*fitted}):
        order = source.sample(sorted(names), len(names))
        lot |= {name: i % 2 == 0 for i, name in enumerate(order)}
    return lot


def first_token(model: Model, answer: str) -> int:
    """Return the token with which an answer begins after a prompt and a space."""
    tokenizer: Any = model.processor
    ids = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    return ids[len(_own_space(model))]


def beginning(model: Model, answer: str) -> str:
    """Return the text of the first token of an answer, with the space before it."""
    return model.processor.decode([*_own_space(model), first_token(model, answer)])


def _own_space(model: Model) -> list[int]:
    """Return the token of a space that stands before a word; empty if it belongs to the word."""
    tokenizer: Any = model.processor
    space, word = (tokenizer(x, add_special_tokens=False)["input_ids"] for x in (" ", " Paris"))
    return space if word[: len(space)] == space else []


def next_log_p(
    model: Model, module: Any, prompts: Sequence[str], with_grad: bool = False
) -> Float[Tensor, "prompt token"]:
    """Return the log-probabilities of the next token after each prompt.

    Parameters
    ----------
    model : Model
        Its tokenizer reads the prompts.
    module : Module
        The model, or one with changed weights.
    prompts : sequence of str
    with_grad : bool, default=False
    """
    rows: list[Tensor] = []
    with torch.set_grad_enabled(with_grad):
        for prompt in prompts:
            ids = torch.tensor([[*model.processor(prompt)["input_ids"], *_own_space(model)]])
            logits = module(input_ids=ids, use_cache=False).logits[0, -1]
            rows.append(logits.float().log_softmax(0))
    return torch.stack(rows)
