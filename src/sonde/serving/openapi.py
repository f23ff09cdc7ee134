"""The OpenAPI description of the endpoints, with an example for the served model."""

from typing import Any

from sonde.serving.open_inference import TEXTS
from sonde.serving.service import Service

EXAMPLES: dict[str, Any] = {
    "text": "a text",
    "image": {"b64": "iVBORw0KGgo..."},
    "tensor": [0.1, 0.2],
    "tokens": [5, 17, 3],
}
NUMBER = {"type": ["number", "null"]}


def openapi(service: Service) -> dict[str, Any]:
    """Return the description; the examples are those of the model once it is loaded."""
    from sonde import __version__

    error = {
        "description": "A sentence that says what to do.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    refused = {code: error for code in ("400", "401", "413", "415", "429", "503")}
    return {
        "openapi": "3.1.0",
        "info": {"title": "sonde serve", "version": __version__},
        "paths": {
            "/predict": {"post": _predict(_example(service), refused)},
            "/feedback": {
                "post": _posted("Truth", "The correct answer, as feedback.", "Taken", refused),
                "get": _got("Accuracy over all inputs, over alarms and over the other inputs."),
            },
            "/v2/health/live": {"get": _got("Whether the process runs.")},
            "/v2/health/ready": {"get": _got("Whether the model answers; 503 while it loads.")},
            "/v2/models/{name}": {"get": _named(_got("Metadata of the model."))},
            "/v2/models/{name}/infer": {
                "post": _named(_posted("Tensors", "Open Inference Protocol.", "Tensors", refused))
            },
            "/changes": {"get": _got("Changes of the traffic, from the first one on.")},
            "/changes/ack": {
                "post": _posted("Nothing", "The change that ended, or null.", "Ended", refused)
            },
            "/metrics": {"get": _got("Counters for Prometheus.", "text/plain")},
        },
        "components": {"schemas": _schemas(), "securitySchemes": {"token": _TOKEN}},
        "security": [{"token": []}],
    }


_TOKEN = {"type": "http", "scheme": "bearer"}


def _example(service: Service) -> Any:
    if not service.is_ready:
        return EXAMPLES["text"]
    rows = service.rows()
    if rows.kind == "numbers":
        return dict.fromkeys(rows.columns, 0.0)
    if len(rows.columns) > 1:
        return dict.fromkeys(rows.columns, EXAMPLES["text" if rows.kind in TEXTS else "tensor"])
    return EXAMPLES.get(rows.kind, EXAMPLES["tensor"])


def _predict(example: Any, refused: dict[str, Any]) -> dict[str, Any]:
    body = {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/Inputs"},
            "example": {"inputs": [example]},
        },
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"file": {"type": "string"}}}
        },
    }
    made = _posted("Inputs", "Answers with p-values and alarms.", "Answers", refused)
    return {**made, "requestBody": {"required": True, "content": body}}


def _posted(takes: str, summary: str, gives: str, refused: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{takes}"}}},
        },
        "responses": {
            "200": {
                "description": summary,
                "content": {
                    "application/json": {"schema": {"$ref": f"#/components/schemas/{gives}"}}
                },
            },
            **refused,
        },
    }


def _got(summary: str, kind: str = "application/json") -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {"200": {"description": summary, "content": {kind: {}}}},
    }


def _named(operation: dict[str, Any]) -> dict[str, Any]:
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    return {**operation, "parameters": [name]}


def _schemas() -> dict[str, Any]:
    return {
        "Inputs": {
            "type": "object",
            "required": ["inputs"],
            "properties": {"inputs": {"type": "array", "minItems": 1, "items": {}}},
        },
        "Answers": {
            "type": "object",
            "properties": {
                "id": {"type": "string"},
                "alarm_rate": {"type": "number"},
                "answers": {
                    "type": "array",
                    "items": {"type": "object", "properties": _answer_fields()},
                },
            },
        },
        "Truth": {
            "type": "object",
            "required": ["id", "truth"],
            "properties": {"id": {"type": "string"}, "truth": {"type": ["string", "number"]}},
        },
        "Taken": {
            "type": "object",
            "properties": {"taken": {"type": "integer"}, "correct": {"type": "integer"}},
        },
        "Tensors": {"type": "object"},
        "Nothing": {"type": "object"},
        "Ended": {
            "type": "object",
            "properties": {"acknowledged": {"type": ["object", "null"]}},
        },
        "Error": {"type": "object", "properties": {"error": {"type": "string"}}},
    }


def _answer_fields() -> dict[str, Any]:
    """Return the schema of each field of an answer."""
    by_site = {"type": "object", "additionalProperties": NUMBER}
    return {
        "id": {"type": "string"},
        "answer": {"description": "The class, or the number that the model returns."},
        "probability": NUMBER,
        "p": {
            "description": "p-value by detector and site.",
            "type": "object",
            "additionalProperties": by_site,
        },
        "score": {"type": "object", "additionalProperties": by_site},
        "p_all": {**NUMBER, "description": "Over all detectors and sites together."},
        "alarm": {
            "type": ["boolean", "null"],
            "description": "p_all <= alarm_rate; null if no valid p-value is known.",
        },
        "loudest": {"type": ["object", "null"]},
        "cut": {"type": "boolean", "description": "True if the text was longer than is read."},
        "tokens_read": {"type": "integer"},
        "tokens_given": {"type": "integer"},
        "ignored": {
            "description": "Columns of the input that the model does not read.",
            "type": "array",
            "items": {"type": "string"},
        },
        "error": {
            "description": "Why this input has no answer, although others of the request have.",
            "type": "string",
        },
        "status": {"type": "integer", "description": "HTTP status of the error alone."},
        "columns": {
            "description": "For a row of a table: name, value and z of the columns that are far "
            "from the median, in robust standard deviations.",
            "type": "array",
            "items": {"type": "object"},
        },
    }
