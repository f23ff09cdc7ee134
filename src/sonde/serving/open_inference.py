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
TEXTS = ("text", "pair", "messages", "image")
DEEPEST, LARGEST = 8, 2**31 - 1
"""Axes of a tensor at most, and entries along one of them."""


def metadata(served: ServedModel) -> dict[str, Any]:
    """Return the metadata of the model."""
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
        "inputs": _input_tensors(served),
        "outputs": outputs,
    }


def _input_tensors(served: ServedModel) -> list[dict[str, Any]]:
    """Return the tensor of a request, or a tensor for each of several inputs."""
    kind = served.inputs.encoder.kind if served.is_open else "tensor"
    names = tuple(served.inputs.encoder.identity()["inputs"]) if served.is_open else ()
    if kind in TEXTS:
        one = {"datatype": "BYTES", "shape": [-1]}
    else:
        one = {"datatype": "FP32", "shape": [-1, len(names) if kind == "numbers" else -1]}
    if kind == "numbers" or len(names) < 2:
        return [{"name": "inputs", **one}]
    whole = {"datatype": "INT64"} if kind not in TEXTS else {}
    return [{"name": n, **one, **({} if n in served.floats else whole)} for n in names]


def inputs_of(found: Mapping[str, Any], rows: Rows, limits: Limits) -> list[Any]:
    """Return the inputs in the tensor of a request, or in its tensors by their names.

    Raises
    ------
    Refusal
        400 if it holds no such tensor, or shape and data contradict each other.
    """
    tensors = found.get("inputs")
    if not isinstance(tensors, list) or not all(isinstance(one, dict) for one in tensors):
        tensors = []
    names = [one.get("name") for one in tensors]
    if rows.kind == "numbers" or (len(rows.columns) < 2 and rows.named):
        if len(tensors) != 1:
            raise Refusal(
                400, "Expected one tensor in 'inputs'. GET the model's metadata for the names."
            )
        return _values(tensors[0], rows, limits)
    if len(tensors) == 1 and not rows.named:
        return _values(tensors[0], rows, limits)
    if (
        not all(isinstance(name, str) for name in names)
        or len({*names}) != len(tensors)
        or not names
    ):
        raise Refusal(
            400, "Expected a named tensor for each input. GET the model's metadata for the names."
        )
    values = [_values(one, rows, limits) for one in tensors]
    if len({len(each) for each in values}) > 1:
        raise Refusal(400, "Expected tensors with the same number of rows.")
    return [dict(zip(names, each, strict=True)) for each in zip(*values, strict=True)]


def _values(tensor: Mapping[str, Any], rows: Rows, limits: Limits) -> list[Any]:
    """Return the value of each row of a tensor."""
    shape, kind, data = (tensor.get(name) for name in ("shape", "datatype", "data"))
    if (
        not (isinstance(shape, list) and 0 < len(shape) <= DEEPEST)
        or any(type(n) is not int or not 0 < n <= LARGEST for n in shape)
        or not isinstance(data, list)
    ):
        raise Refusal(400, "Expected 'shape', a list of whole numbers above 0, and 'data', a list.")
    check_count(shape[0], limits)
    if kind == "BYTES":
        if len(data) != shape[0] or not all(isinstance(value, str) for value in data):
            raise Refusal(400, f"Expected {shape[0]} texts in 'data', the number given in 'shape'.")
        return [{"b64": value} for value in data] if rows.kind == "image" else list(data)
    if not isinstance(kind, str) or kind not in NUMBERS:
        raise Refusal(400, "Expected a 'datatype' of BYTES, FP32, FP64, INT64 or another number.")
    return _numbers(data, shape, kind)


def _numbers(data: list[Any], shape: Sequence[int], kind: str) -> list[Any]:
    try:
        found = np.array(data)
    except (ValueError, OverflowError):
        found = np.array(None)
    if found.dtype.kind not in "if" or found.size != math.prod(shape):
        raise Refusal(
            400, f"Expected {math.prod(shape):,} numbers in 'data', the product of 'shape'."
        )
    if kind.startswith("FP"):
        return found.astype(np.float64).reshape(tuple(shape)).tolist()
    bounds = np.iinfo(kind.lower())
    fine = (found == np.trunc(found)) & (found >= bounds.min) & (found < float(bounds.max) + 1)
    if not fine.all():
        raise Refusal(
            400,
            f"Expected whole numbers from {bounds.min} to {bounds.max}, the range of the "
            "'datatype'.",
        )
    return found.astype(np.int64).reshape(tuple(shape)).tolist()


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
        "id": given if _can_be_repeated(given) else name,
        "parameters": {"sonde_id": name},
        "outputs": outputs,
    }


def _can_be_repeated(given: Any) -> bool:
    """Return whether an id is a short text without unpaired surrogates."""
    if not isinstance(given, str) or len(given) > 128:
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in given)


def _tensor(name: str, kind: str, data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": kind, "shape": [len(data)], "data": data}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
