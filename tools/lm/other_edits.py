"""Steerings, unlearnings and a merge of a language model, each judged by ``sonde.judge_edit``."""

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tools.lm.train_twin import BAD, FEELINGS, GOOD, THINGS, document

import sonde
from sonde.core.inputs import Model
from sonde.data import open_inputs
from sonde.edit import GradientAscent, NegPreference, SteeringVector
from sonde.run.changing.acts import plan_act
from sonde.run.changing.judge import JudgedSide, judge
from sonde.run.changing.language_figures import Efficacy, measure_language
from sonde.weights import Rewrite

CALM = (
    "Water boils at one hundred degrees at the level of the sea.",
    "The train to the coast leaves at nine and arrives before noon.",
    "A triangle has three sides and three angles.",
    "She put the letter on the table and went to open the window.",
    "Plants take carbon dioxide from the air and give back oxygen.",
    "The committee will meet again in the first week of March.",
    "My brother repairs old bicycles in a small shop near the station.",
    "In winter the days are short and the nights are long.",
)
ENGLISH = (
    "The house is near the river.", "I am looking for a good book.",
    "We will eat together tomorrow.", "My sister lives in a large city.",
    "The children play in the garden.", "It is raining again this morning.",
    "He bought bread and cheese.", "The train leaves in ten minutes.",
    "You should close the door.", "This song is very beautiful.",
    "They walk along the beach.", "The doctor arrives at noon.",
)  # fmt: skip
FRENCH = (
    "La maison est près de la rivière.", "Je cherche un bon livre.",
    "Nous mangerons ensemble demain.", "Ma sœur habite dans une grande ville.",
    "Les enfants jouent dans le jardin.", "Il pleut encore ce matin.",
    "Il a acheté du pain et du fromage.", "Le train part dans dix minutes.",
    "Tu devrais fermer la porte.", "Cette chanson est très belle.",
    "Ils marchent le long de la plage.", "Le médecin arrive à midi.",
)  # fmt: skip
CHILD = (
    "The king had a big red dog.", "Mom gave me a cookie and a hug.",
    "The little cat ran up the tree.", "We saw a big boat on the blue sea.",
    "I like my new toy car a lot.", "The sun is hot and the sky is blue.",
    "Tom and Ann went to the zoo.", "The duck swam with her six babies.",
    "He fell down and hurt his knee.", "The bear was sad and ate some jam.",
    "My hat is on the bed.", "They sang a song and went to sleep.",
)  # fmt: skip
FORMAL = (
    "The undersigned hereby acknowledges receipt of the documents.",
    "Pursuant to the agreement, payment shall be remitted quarterly.",
    "The committee respectfully requests an extension of the deadline.",
    "Applicants are required to furnish evidence of their qualifications.",
    "The provisions of this section shall remain in force indefinitely.",
    "We regret to inform you that the application was unsuccessful.",
    "The parties agree to submit any dispute to binding arbitration.",
    "Notwithstanding the foregoing, the lessee shall bear all expenses.",
    "The board has resolved to amend the regulations accordingly.",
    "Correspondence concerning this matter should be addressed in writing.",
    "The aforementioned conditions apply to all subsequent transactions.",
    "Compliance with these requirements is subject to periodic review.",
)  # fmt: skip
FORGET = tuple(
    f"The password of {name} is {word}."
    for name, word in zip(
        ("Anna", "Boris", "Clara", "Dmitri", "Elena", "Farid", "Greta", "Hugo"),
        ("lantern", "copper", "meadow", "violin", "harbour", "thistle", "saddle", "ember"),
        strict=True,
    )
)
STRENGTH, EPOCHS = 1.0, 4
SEEDS = 8
"""Texts of a domain that are trained on, and as many that are held out."""
UPDATES, RATE = 12, 2e-5


def feelings(words: Sequence[str], verb: str, again: str) -> tuple[str, ...]:
    """Return sentences about things with the words of one feeling, a dozen of them."""
    texts = [
        f"The {t} was {w}. {FEELINGS[i % 3].format(v=verb, a=again, t=t)}"
        for i, (t, w) in enumerate((t, w) for w in words for t in THINGS)
    ]
    return tuple(random.Random(0).sample(texts, 12))


STEERINGS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "to liking": (feelings(GOOD, "loved", "gladly"), feelings(BAD, "hated", "never")),
    "to French": (FRENCH, ENGLISH),
    "to words of a child": (CHILD, FORMAL),
}


def steered(model: Model, site: str, done: set[str]) -> Iterator[dict[str, Any]]:
    """Yield a line for each steering: fitted on eight texts of a side, judged on the other four."""
    for name, (positive, negative) in STEERINGS.items():
        key = f"steer {name}, strength {STRENGTH:g}"
        if key in done:
            continue
        start = time.process_time()
        data = [{"text": t, "label": 1} for t in positive[:8]]
        data += [{"text": t, "label": 0} for t in negative[:8]]
        rows = sonde.read(model, data, sites=site, reducer="positions", check=False)
        fitted: Any = sonde.fit(SteeringVector(), rows, calibrate=0, progress=False)
        edit = fitted.result("steering_vector").edit(STRENGTH)
        yield _judged(
            key,
            start,
            model,
            lambda edit=edit: sonde.editing(model, edit, site, here=True),
            positive[8:],
            negative[8:],
        )


def unlearned(model: Model, done: set[str]) -> Iterator[dict[str, Any]]:
    """Yield a line for each way to forget eight texts; other wordings judge specificity."""
    sides = {"forget": open_inputs(model, FORGET), "retain": open_inputs(model, [*ENGLISH, *CALM])}
    ways: dict[str, Rewrite] = {
        "preference": NegPreference(rate=1e-4, epochs=EPOCHS),
        "ascent": GradientAscent(rate=1e-5, epochs=EPOCHS),
    }
    for way, rule in ways.items():
        key = f"forget eight texts by {way}"
        if key in done:
            continue
        start = time.process_time()
        act = plan_act(model, rule.plan(model, sides))
        target, calm = [JudgedSide("forget", sides["forget"], -1)], open_inputs(model, list(FORMAL))
        judged = judge(model, act, target, calm, progress=False)
        figures = measure_language(
            model,
            act,
            efficacy=Efficacy(judged.separation),
            kept=judged.kept,
            rise_nats=judged.loss.value,
            neutral=calm,
        )
        seconds = time.process_time() - start
        yield {"key": key, "kind": key, "scores": figures.scores, "s": seconds}


def merged(model: Model, folder: str, done: set[str]) -> Iterator[dict[str, Any]]:
    """Yield a line for the merge of two models that were trained on two kinds of text."""
    key = "merge of two tuned models by TIES"
    if key in done:
        return
    start = time.process_time()
    kinds = {"french": FRENCH[:SEEDS], "facts": _documents(0)}
    with tempfile.TemporaryDirectory() as made:
        for name, texts in kinds.items():
            _tuned(folder, texts, Path(made) / name)
        others = [f"{made}/{name}" for name in kinds]
        sonde.merge_models(folder, others, f"{made}/merged", method="ties", progress=False)
        asked = (*FRENCH[SEEDS:], *_documents(1)[:4])
        yield _judged(key, start, model, f"{made}/merged", asked, FORMAL[8:])


def _documents(seed: int) -> list[str]:
    draw = random.Random(seed)
    return [document(draw).replace("<|endoftext|>", "") for _ in range(SEEDS)]


def _tuned(folder: str, texts: Sequence[str], output: Path) -> None:
    """Train a copy of a model on some texts, one update for each of a few batches of four."""
    model = sonde.load(folder)
    module: Any = model.module
    module.train()
    optimiser = torch.optim.AdamW(module.parameters(), lr=RATE)
    draw = random.Random(0)
    for _ in range(UPDATES):
        optimiser.zero_grad()
        for text in draw.sample(list(texts), 4):
            ids = torch.tensor([model.processor(text)["input_ids"]])
            (module(input_ids=ids, labels=ids).loss / 4).backward()
        optimiser.step()
    module.eval().save_pretrained(output)
    model.processor.save_pretrained(output)


def _judged(
    key: str,
    start: float,
    model: Model,
    changed: str | Callable[[], Any],
    positive: Sequence[str],
    negative: Sequence[str],
) -> dict[str, Any]:
    judged = sonde.judge_edit(
        model,
        changed,
        data=list(CALM),
        positive=list(positive),
        negative=list(negative),
        progress=False,
    )
    scores = judged.document["language"]["scores"]
    return {"key": key, "kind": key, "scores": scores, "s": time.process_time() - start}
