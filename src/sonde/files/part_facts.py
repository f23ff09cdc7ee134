"""Facts about the parts of a model, by name: where two models differ, and in what words.

A name with ``*`` stands for all numbers in its place. A text that begins with ``?`` is of something
that may change without changing what the model computes.
"""

import re
from collections.abc import Iterator, Mapping

NUMBER = re.compile(r"\d+")
ADAPTER, SOFT = "active adapter", "?"

Facts = dict[str, str]


def folded(found: Facts) -> Facts:
    """Return the facts with those of numbered layers joined where all are equal."""
    together: dict[str, list[str]] = {}
    for name in found:
        together.setdefault(NUMBER.sub("*", name), []).append(name)
    folded: Facts = {}
    for pattern, names in together.items():
        equal = len(names) > 1 and len({found[name] for name in names}) == 1
        folded |= {pattern: found[names[0]]} if equal else {name: found[name] for name in names}
    return folded


def difference_of_parts(here: Mapping[str, str], known: Mapping[str, str]) -> Iterator[str]:
    """Yield the name of each fact that differs, or that one side lacks.

    A fact with ``*`` on one side is compared with each layer's of the other.
    """
    for name in sorted({*here, *known}, key=lambda name: (name != ADAPTER, name)):
        own, its = (_looked_up(facts, name) for facts in (here, known))
        if own != its and not (None in (own, its) and _covered(name, here, known)):
            yield name


def describe_part(name: str, here: Mapping[str, str], known: Mapping[str, str]) -> str:
    """Return a sentence about one fact that differs.

    Examples
    --------
    >>> describe_part("active adapter", {"active adapter": "b"}, {"active adapter": "a"})
    'adapter b is active here, the fit had a'
    >>> describe_part("1", {"1": "Tanh()"}, {"1": "ReLU()"})
    '1 is Tanh() here and was ReLU() in the fit'
    """
    own, its = (_looked_up(facts, name) for facts in (here, known))
    if name == ADAPTER:
        return f"adapter {own or 'none'} is active here, the fit had {its or 'none'}"
    now, before = ("absent" if text is None else text.removeprefix(SOFT) for text in (own, its))
    return f"{name or 'the model'} is {now} here and was {before} in the fit"


def certain_differences(here: Mapping[str, str], known: Mapping[str, str]) -> list[str]:
    """Return the facts whose difference changes what a model computes.

    Versions of libraries rename attributes, so an attribute that one side lacks is not certain.

    Examples
    --------
    >>> certain_differences({"0.eps": "0.1", "0.act": "?f"}, {"0.eps": "0.2", "0.act": "?g"})
    ['0.eps']
    """

    def is_certain(name: str) -> bool:
        both = [_looked_up(facts, name) for facts in (here, known)]
        return name == ADAPTER or not any(text is None or text.startswith(SOFT) for text in both)

    return list(filter(is_certain, difference_of_parts(here, known)))


def certain_parts(facts: Mapping[str, str]) -> Facts:
    """Return the facts that cannot change without changing what a model computes."""
    return {name: text for name, text in facts.items() if not text.startswith(SOFT)}


def _looked_up(facts: Mapping[str, str], name: str) -> str | None:
    fact = facts.get(name)
    return facts.get(NUMBER.sub("*", name)) if fact is None else fact


def _covered(name: str, here: Mapping[str, str], known: Mapping[str, str]) -> bool:
    """Return whether the layers of a fact with ``*`` are compared one by one."""
    if "*" not in name:
        return False
    return any(NUMBER.sub("*", other) == name != other for other in (*here, *known))
