"""The Open Inference Protocol, version 2, over JSON: tensors in, tensors out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sonde.serving.bodies import Rows, check_count
from sonde.serving.limits import Limits
from sonde.serving.refusals import Refusal
from sonde.serving.served import Answer, ServedModel

PLATFORM = "sonde_pytorch"
NUMBERS = {"FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32"}
DEEPEST = 8


def metadata(served: ServedModel) -> dict[str, Any]:
    """Return the metadata of the model."""
    kind = served.inputs.encoder.kind if served.is_open else "tensor"
    text = kind in ("text", "pair", "messages", "image")
    one = {"name": "inputs", "datatype": "BYTES" if text else "FP32", "shape": [-1]}
    if kind == "numbers":
        one["shape"] = [-1, len(served.inputs.encoder.identity()["inputs"])]
    elif not text:
        one["shape"] = [-1, -1]
    outputs = [
        {"name": "answer", "datatype": "BYTES", "shape": [-1]},
        {"name": "probability", "datatype": "FP64", "shape": [-1]},
    ]
    if served.fitted is not None:
        outputs += [
            {"name": "p_all", "datatype": "FP64", "shape": [-1]},
            {"name": "alarm", "datatype": "BOOL", "shape": [-1]},
        ]
        outputs += [
            {"name": f"p:{method}:{site}", "datatype": "FP64", "shape": [-1]}
            for method, site in served.detectors
        ]
    return {
        "name": served.name,
        "versions": ["1"],
        "platform": PLATFORM,
        "inputs": [one],
        "outputs": outputs,
    }


def inputs_of(found: Mapping[str, Any], rows: Rows, limits: Limits) -> list[Any]:
    """Return the inputs in the first tensor of a request.

    Raises
    ------
    Refusal
        400 if it holds no such tensor, or shape and data contradict each other.
    """
    tensors = found.get("inputs")
    if not isinstance(tensors, list) or len(tensors) != 1 or not isinstance(tensors[0], dict):
        raise Refusal(400, "Expected one tensor in 'inputs'. GET the model's metadata.")
    shape, kind, data = (tensors[0].get(name) for name in ("shape", "datatype", "data"))
    if (
        not (isinstance(shape, list) and 0 < len(shape) <= DEEPEST)
        or any(type(n) is not int or n < 1 for n in shape)
        or not isinstance(data, list)
    ):
        raise Refusal(400, "Expected 'shape', a list of whole numbers above 0, and 'data', a list.")
    check_count(shape[0], limits)
    if kind == "BYTES":
        if len(data) != shape[0] or not all(isinstance(value, str) for value in data):
            raise Refusal(400, f"Expected {shape[0]} texts in 'data', as 'shape' says.")
        return [{"b64": value} for value in data] if rows.kind == "image" else list(data)
    if kind not in NUMBERS:
        raise Refusal(400, "Expected a 'datatype' of BYTES, FP32, FP64, INT64 or another number.")
    return _numbers(data, shape, str(kind))


def _numbers(data: list[Any], shape: Sequence[int], kind: str) -> list[Any]:
    try:
        found = np.array(data)
    except (ValueError, OverflowError):
        found = np.array(None)
    if found.dtype.kind not in "if" or found.size != math.prod(shape):
        raise Refusal(400, f"Expected {math.prod(shape):,} numbers in 'data', as 'shape' says.")
    found = found.astype(np.float64 if kind.startswith("FP") else np.int64)
    return found.reshape(tuple(shape)).tolist()


def infer_json(
    served: ServedModel, name: str, given: Any, answers: Sequence[Answer]
) -> dict[str, Any]:
    """Return the answer to an inference request."""
    n = len(answers)
    outputs = [
        _tensor("answer", "BYTES", [_text(a.answer) for a in answers]),
        _tensor("probability", "FP64", [a.probability for a in answers]),
    ]
    verdicts = [a.verdict for a in answers if a.verdict is not None]
    if len(verdicts) == n and served.fitted is not None:
        outputs += [
            _tensor("p_all", "FP64", [v.p for v in verdicts]),
            _tensor("alarm", "BOOL", [v.alarm for v in verdicts]),
        ]
        outputs += [
            _tensor(
                f"p:{key[0]}:{key[1]}", "FP64", [v.each.get(key, (0, None))[1] for v in verdicts]
            )
            for key in served.detectors
        ]
    return {
        "model_name": served.name,
        "model_version": "1",
        "id": given if isinstance(given, str) and len(given) <= 128 else name,
        "parameters": {"sonde_id": name},
        "outputs": outputs,
    }


def _tensor(name: str, kind: str, data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": kind, "shape": [len(data)], "data": data}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
