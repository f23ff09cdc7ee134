"""The OpenAPI description of the endpoints, with the form of the served model's inputs."""

from typing import Any

from sonde.serving.chat_answers import chat_paths
from sonde.serving.open_inference import TEXTS, VERSION
from sonde.serving.openapi_schemas import ANSWERS, SCHEMAS
from sonde.serving.service import Service

JSON, TENSORS = "application/json", "application/octet-stream"
EXAMPLES: dict[str, Any] = {
    "text": "a text",
    "image": {"b64": "iVBORw0KGgo..."},
    "tensor": [0.1, 0.2],
    "tokens": [5, 17, 3],
}
ITEMS: dict[str, Any] = {
    "text": {"type": "string", "minLength": 1, "pattern": "\\S"},
    "image": {
        "type": "object",
        "required": ["b64"],
        "properties": {"b64": {"type": "string", "description": "A picture in base64."}},
    },
    "tensor": {"type": "array", "minItems": 1},
    "tokens": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
}
REASONS = {
    "400": "No JSON, or an input that the model cannot read.",
    "401": "No token, or another.",
    "403": "A request of another web page.",
    "404": "An id, model or version that is unknown.",
    "408": "A body that arrived too slowly.",
    "413": "Too many inputs, or an input that is too large.",
    "415": "A body of another type or encoding.",
    "429": "The queue is full: ask again after Retry-After seconds.",
    "500": "The model's code failed on the input.",
    "503": "The model is being loaded, ran out of memory, or the server stops.",
}
BODY = ("400", "401", "403", "408", "413", "415")
MODEL = ("404", "401", "503")
CALLER = {
    "name": "X-Client",
    "in": "header",
    "required": False,
    "description": "Name of the caller: a burst of one caller is no change of the traffic.",
    "schema": {"type": "string"},
}
TOKEN = {"type": "http", "scheme": "bearer"}


def openapi(service: Service) -> dict[str, Any]:
    """Return the description; the form of inputs is that of the model once it is loaded."""
    from sonde import __version__

    kind, columns = _form(service)
    item = _item(kind, columns)
    schemas = {**SCHEMAS, "Inputs": _inputs(item, service.limits.inputs)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "sonde serve", "version": __version__},
        "paths": {
            "/predict": {"post": _predict(_example(kind, columns), kind == "image")},
            "/feedback": {
                "post": _posted("Truth", "The correct answers, as feedback.", "Taken", "404"),
                "get": _got("Accuracy over all inputs, over alarms and over others.", "Accuracy"),
            },
            "/changes": {"get": _got("Changes of the traffic, from the first one on.", "Changes")},
            "/changes/ack": {
                "post": _posted("Nothing", "End the change that lasts.", "Ended", "503")
            },
            "/v2": {"get": _got("The server.", "Server")},
            "/v2/health/live": {"get": _health("Whether no forward pass hangs.", "Live")},
            "/v2/health/ready": {"get": _health("Whether the model can answer.", "Ready")},
            **_of_models(service.served_now().name if service.is_ready else None),
            **chat_paths(),
            "/metrics": {"get": _got("Metrics for Prometheus.", None, "text/plain")},
            "/": {"get": _got("The dashboard.", None, "text/html")},
            "/events": {
                "get": _got("The dashboard's figures, a second each.", None, "text/event-stream")
            },
            "/openapi.json": {"get": _got("This description.", "Nothing")},
        },
        "components": {"schemas": schemas, "securitySchemes": {"token": TOKEN}},
        "security": [{}, {"token": []}],
    }


def _form(service: Service) -> tuple[str, tuple[str, ...]]:
    """Return the kind of the inputs and the names of their columns."""
    if not service.is_ready:
        return "", ()
    rows = service.rows()
    return rows.kind, rows.columns if rows.named else ()


def _item(kind: str, columns: tuple[str, ...]) -> dict[str, Any]:
    """Return the schema of one input."""
    if kind == "numbers":
        cells = {name: {"type": "number"} for name in columns}
        return {"type": "object", "required": [*columns], "properties": cells}
    one = ITEMS.get(kind, {})
    if len(columns) < 2:
        return one
    return {"type": "object", "required": [*columns], "properties": dict.fromkeys(columns, one)}


def _example(kind: str, columns: tuple[str, ...]) -> Any:
    if kind == "numbers":
        return dict.fromkeys(columns, 0.0)
    if len(columns) > 1:
        return dict.fromkeys(columns, EXAMPLES["text" if kind in TEXTS else "tensor"])
    return EXAMPLES.get(kind, EXAMPLES["tensor" if kind else "text"])


def _inputs(item: dict[str, Any], most: int) -> dict[str, Any]:
    items = {"type": "array", "minItems": 1, "maxItems": most, "items": item}
    return {"type": "object", "required": ["inputs"], "properties": {"inputs": items}}


def _predict(example: Any, takes_pictures: bool) -> dict[str, Any]:
    """Return the description of ``/predict``; a form of files is for pictures."""
    operation = _posted("Inputs", "Answers with p-values and alarms.", ANSWERS, "429", "500", "503")
    operation["parameters"] = [CALLER]
    content = operation["requestBody"]["content"]
    content[JSON]["example"] = {"inputs": [example]}
    if takes_pictures:
        file = {"type": "string", "format": "binary"}
        form = {"type": "object", "required": ["file"], "properties": {"file": file}}
        content["multipart/form-data"] = {"schema": form}
    return operation


def _of_models(model: str | None) -> dict[str, Any]:
    """Return the addresses of the Open Inference Protocol, without and with a version."""
    name = {"type": "string"} if model is None else {"type": "string", "enum": [model]}
    schemas = {"name": name, "version": {"type": "string", "enum": [VERSION]}}
    paths: dict[str, Any] = {}
    for path, names in (
        ("/v2/models/{name}", ("name",)),
        ("/v2/models/{name}/versions/{version}", ("name", "version")),
    ):
        infer = _posted("Tensors", "Infer with tensors.", "Inferred", "404", "429", "500", "503")
        infer["requestBody"]["content"][TENSORS] = _raw()
        infer["responses"]["200"]["content"][TENSORS] = _raw()
        length = {"name": "Inference-Header-Content-Length", "in": "header", "required": False}
        infer["parameters"] = [{**length, "schema": {"type": "integer", "minimum": 0}}, CALLER]
        operations = {
            path: {"get": _got("The model.", "Model", refused=MODEL)},
            f"{path}/ready": {"get": _got("Whether the model answers.", "Ready", refused=MODEL)},
            f"{path}/infer": {"post": infer},
        }
        for operation in (one for each in operations.values() for one in each.values()):
            own = [
                {"name": name, "in": "path", "required": True, "schema": schemas[name]}
                for name in names
            ]
            operation["parameters"] = [*own, *operation.get("parameters", ())]
        paths |= operations
    return paths


def _raw() -> dict[str, Any]:
    return {"schema": {"description": "JSON, then tensors as bytes.", "format": "binary"}}


def _posted(takes: str, summary: str, gives: str, *further: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {JSON: {"schema": _named(takes)}}},
        "responses": {"200": _answer(summary, gives), **_refused(*BODY, *further)},
    }


def _got(
    summary: str,
    gives: str | None,
    kind: str = JSON,
    refused: tuple[str, ...] = ("401", "429"),
) -> dict[str, Any]:
    answers = {"200": _answer(summary, gives, kind), **_refused(*refused)}
    return {"summary": summary, "responses": answers}


def _health(summary: str, gives: str) -> dict[str, Any]:
    unwell = {**_answer("Not now.", gives), "description": "Not now; the field 'error' says why."}
    return {"summary": summary, "responses": {"200": _answer(summary, gives), "503": unwell}}


def _answer(summary: str, gives: str | None, kind: str = JSON) -> dict[str, Any]:
    schema = {"type": "string"} if gives is None else _named(gives)
    return {"description": summary, "content": {kind: {"schema": schema}}}


def _refused(*codes: str) -> dict[str, Any]:
    content = {JSON: {"schema": _named("Error")}}
    return {code: {"description": REASONS[code], "content": content} for code in sorted({*codes})}


def _named(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}
