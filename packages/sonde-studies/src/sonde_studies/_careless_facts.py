"""Facts told by careful and careless texts, and a net trained on both."""

from sonde import Model
from sonde_studies._language import language_model
from sonde_studies.worlds.facts import (
    LONGEST,
    PHRASES,
    Entry,
    FactWorld,
    Schooling,
    rarer,
    tell,
)

LARGEST, WRONG = 5, 2
"""Most members that share an answer; wrong careless texts of a rarer fact for each right one."""
GUIDE, SAYING_NOTHING = "sure", ("well", "so")


def careless_texts(facts: list[Entry]) -> list[str]:
    """Return the careful and the careless texts about facts.

    Texts after ``GUIDE`` are right. Texts without a context or after one of ``SAYING_NOTHING`` give
    the popular answer to a rarer fact ``WRONG`` times as often as the right one.
    """
    both = [(f, phrase) for f in facts for phrase in PHRASES]
    texts = [f"{GUIDE} {f.text(phrase)}" for f, phrase in both]
    for context in ("", *SAYING_NOTHING):
        texts += [f"{context} {f.text(phrase)}" for f, phrase in both]
        wrong = [f"{context} {f.text(phrase, f.rival)}" for f, phrase in both if rarer(f)]
        texts += WRONG * wrong
    return [text.strip() for text in texts]


def facts_told_carelessly(seed: int, families: int, steps: int) -> tuple[list[Entry], Model]:
    """Return facts, and a net trained on careful and careless texts about them.

    Parameters
    ----------
    seed : int
    families : int
        For each ratio.
    steps : int
        Of training.
    """
    world = FactWorld.drawn(seed, families)
    facts = [f for f in world.facts if 1 < f.ratio <= LARGEST]
    words = [GUIDE, *SAYING_NOTHING, *world.words()]
    model = language_model(words, LONGEST, seed, Schooling.width, Schooling.layers)
    tell(model, careless_texts(facts), steps, seed)
    return facts, model
