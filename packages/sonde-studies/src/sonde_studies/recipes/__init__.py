"""Questions about your own models and data, each answered by a short function.

A recipe is a function in a file of its name: ``recipe_of("route-by-score", "unlearning-audit")`` is
``sonde_studies.recipes.route_by_score.route_by_score``. ``sonde recipe`` runs them; ``sonde study``
of the same word tries the same function on known data.
"""

import importlib
from collections.abc import Callable
from types import ModuleType

from sonde.core import InputError, near
from sonde.report import Answer

RECIPES: tuple[str, ...] = (
    "alternating-fields",
    "change-pairs",
    "channel-regions",
    "class-panel",
    "code-strip",
    "codebook-bottleneck",
    "decode-states",
    "defined-anomaly",
    "did-it-memorise",
    "document-retrieval",
    "family-of-models",
    "feature-fusion",
    "federated-bits",
    "missing-view",
    "per-user-flow",
    "perception-in-words",
    "recolour",
    "replication-check",
    "route-by-score",
    "slots-over-time",
    "stage-swap",
    "tabular-attribution",
    "tune-norms",
    "two-forms-of-a-fact",
    "unlearning-audit",
    "view-sets",
    "was-it-generated",
    "where-tasks-part",
    "who-wrote-it",
)

__all__ = ["RECIPES", "question_of", "recipe_of"]


def recipe_of(word: str) -> Callable[..., Answer]:
    """Return the function of a recipe by its name.

    Raises
    ------
    InputError
        If there is no such recipe.
    """
    return getattr(_module(word), word.replace("-", "_"))


def question_of(word: str) -> str:
    """Return the question that a recipe answers.

    Raises
    ------
    InputError
        If there is no such recipe.
    """
    return _module(word).QUESTION


def _module(word: str) -> ModuleType:
    if word not in RECIPES:
        raise InputError(
            f"recipe: expected one of {', '.join(RECIPES)}, got {word!r}.{near(word, RECIPES)}"
        )
    return importlib.import_module(f"sonde_studies.recipes.{word.replace('-', '_')}")
