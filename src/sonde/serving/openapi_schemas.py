"""Schemas of what the endpoints take and give, for the OpenAPI description."""

from typing import Any

ANSWERS = "Answers"
NUMBER: dict[str, Any] = {"type": ["number", "null"]}
TEXT: dict[str, Any] = {"type": "string"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": [*required], "properties": properties}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_BY_SITE = {"type": "object", "additionalProperties": NUMBER}
_BY_DETECTOR = {"type": "object", "additionalProperties": _BY_SITE}
_ANSWER = _object(
    "id",
    id=TEXT,
    answer={"description": "The class, or the number or text that the model gives."},
    probability=NUMBER,
    p={**_BY_DETECTOR, "description": "p-value by detector and site."},
    score={**_BY_DETECTOR, "description": "The score behind each p-value."},
    p_all={**NUMBER, "description": "Over all detectors and sites together."},
    alarm={
        "description": "p_all <= alarm_rate; null if no valid p-value is known.",
        "type": ["boolean", "null"],
    },
    loudest={
        "description": "The detector and site with the smallest p-value.",
        "type": ["object", "null"],
        "properties": {"detector": TEXT, "site": TEXT, "p": NUMBER},
    },
    cut={"type": "boolean", "description": "True if the text was longer than is read."},
    tokens_read=COUNT,
    tokens_given=COUNT,
    ignored={**_list(TEXT), "description": "Columns of the input that the model does not read."},
    columns={
        **_list(_object("name", "value", "z", name=TEXT, value=NUMBER, z=NUMBER)),
        "description": "Columns of a row that are far from the median, in robust deviations.",
    },
    error={
        "type": "string",
        "description": "Why this input has no answer, although others of the request have.",
    },
    status={"type": "integer", "description": "HTTP status of the error alone."},
)
_TRUTH = _object("id", "truth", id=TEXT, truth={"type": ["string", "number"]})
_SHARE = _object("n", "accuracy", n=COUNT, accuracy=NUMBER, low=NUMBER, high=NUMBER)
_EVENT = _object(
    "first",
    "places",
    "ended_at",
    "ended_by",
    first=_object(
        "detector",
        "site",
        detector=TEXT,
        site=TEXT,
        began=COUNT,
        told=COUNT,
        began_at={"type": "number"},
        told_at={"type": "number"},
    ),
    places=_list(_list(TEXT)),
    ended_at=NUMBER,
    ended_by=TEXT,
)
_TENSOR = _object(
    "name",
    "shape",
    "datatype",
    name=TEXT,
    shape=_list({"type": "integer"}),
    datatype=TEXT,
    data={"type": "array"},
    parameters={"type": "object"},
)
SCHEMAS: dict[str, Any] = {
    ANSWERS: _object(
        "id", "alarm_rate", "answers", id=TEXT, alarm_rate=NUMBER, answers=_list(_ANSWER)
    ),
    "Truth": {
        "anyOf": [_TRUTH, _object("feedback", feedback={**_list(_TRUTH), "minItems": 1})],
        "type": "object",
    },
    "Taken": _object(
        "taken",
        "correct",
        taken=COUNT,
        correct=COUNT,
        refused=_list(_object("error", "status", error=TEXT, status=COUNT)),
    ),
    "Accuracy": _object("all", "alarms", "rest", all=_SHARE, alarms=_SHARE, rest=_SHARE),
    "Changes": _object("events", events=_list(_EVENT)),
    "Ended": _object("acknowledged", acknowledged={"anyOf": [_EVENT, {"type": "null"}]}),
    "Nothing": {"type": "object"},
    "Server": _object(
        "name", "version", "extensions", name=TEXT, version=TEXT, extensions=_list(TEXT)
    ),
    "Live": _object("live", live={"type": "boolean"}, error=TEXT),
    "Ready": _object("ready", ready={"type": "boolean"}, error=TEXT, warning=TEXT),
    "Model": _object(
        "name",
        "versions",
        "platform",
        "inputs",
        "outputs",
        name=TEXT,
        versions=_list(TEXT),
        platform=TEXT,
        inputs=_list(_TENSOR),
        outputs=_list(_TENSOR),
    ),
    "Tensors": _object(
        "inputs",
        id=TEXT,
        inputs={**_list(_TENSOR), "minItems": 1},
        outputs=_list(_object("name", name=TEXT, parameters={"type": "object"})),
        parameters={"type": "object"},
    ),
    "Inferred": _object(
        "model_name",
        "model_version",
        "id",
        "outputs",
        model_name=TEXT,
        model_version=TEXT,
        id=TEXT,
        parameters={"type": "object"},
        outputs=_list(_TENSOR),
    ),
    "Error": _object("error", error=TEXT),
}
