"""The comparison of two models as JSON, ``sonde-compare/1``, for pages and terminals."""

from dataclasses import asdict
from typing import Any, Final

from sonde.core.finite import finite_json
from sonde.run.comparing.model_difference import ModelDifference
from sonde.run.comparing.two_answers import TwoAnswers, TwoNumbers
from sonde.run.comparing.two_models import TwoModels
from sonde.run.comparing.two_models_findings import model_findings

SCHEMA: Final = "sonde-compare/1"


def two_models_document(
    found: TwoModels,
    answers: TwoAnswers | None,
    *,
    names: tuple[str, str],
    data: str,
    numbers: TwoNumbers | None = None,
    difference: ModelDifference | None = None,
) -> dict[str, Any]:
    """Return the JSON of a comparison.

    Parameters
    ----------
    found : TwoModels
    answers : TwoAnswers or None
        None if the models do not answer the same question.
    names : (str, str)
        The models, as the user typed them.
    data : str
    numbers : TwoNumbers, optional
        If both models are regressions of one number.
    difference : ModelDifference, optional
        What differs in the models themselves.
    """
    document = {
        "schema": SCHEMA,
        "first": names[0],
        "second": names[1],
        "data": data,
        "n_rows": found.n_rows,
        "n_missing": found.n_missing,
        "grouped": found.grouped,
        "sites": list(found.sites),
        "others": list(found.others),
        "cka": found.cka.tolist(),
        "cka_se": found.cka_se.tolist(),
        "matches": [asdict(m) for m in found.matches],
        "findings": [asdict(f) for f in model_findings(found, difference)],
        "answers": None if answers is None else asdict(answers),
        "numbers": None if numbers is None else asdict(numbers),
        "difference": None if difference is None else asdict(difference),
    }
    return finite_json(document)
