"""The Open Inference Protocol, version 2, over HTTP: tensors in, tensors out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sonde.serving.binary_tensors import ALL_WANTED, SIZE, WANTED, encoded, parameter_of
from sonde.serving.bodies import Rows, check_count
from sonde.serving.limits import Limits
from sonde.serving.refusals import Refusal
from sonde.serving.served import Answer, ServedModel

PLATFORM, VERSION = "sonde_pytorch", "1"
NUMBERS = {"FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32"}
TEXTS = ("text", "pair", "messages", "image")
DEEPEST, LARGEST = 8, 2**31 - 1
"""Axes of a tensor at most, and entries along one of them."""
MOST_NAME = 64


def metadata(served: ServedModel) -> dict[str, Any]:
    """Return the metadata of the model."""
    outputs = [{"name": n, "datatype": kind, "shape": [-1]} for n, kind in _outputs(served)]
    return {
        "name": served.name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": _input_tensors(served),
        "outputs": outputs,
    }


def _outputs(served: ServedModel) -> list[tuple[str, str]]:
    """Return the name and type of each tensor of an answer."""
    outputs = [("answer", "BYTES"), ("probability", "FP64")]
    if served.fitted is None:
        return outputs
    each = [(f"p:{method}:{site}", "FP64") for method, site in served.detectors]
    return [*outputs, ("p_all", "FP64"), ("alarm", "BOOL"), *each]


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


def inputs_of(
    found: Mapping[str, Any], served: ServedModel, rows: Rows, limits: Limits
) -> list[Any]:
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
    if tensors and rows.named:
        _check_names(names, [one["name"] for one in _input_tensors(served)])
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


def _check_names(names: Sequence[Any], known: Sequence[str]) -> None:
    """Refuse tensors with other names than those of the metadata."""
    wrong = [name for name in names if name not in known]
    if wrong or len(names) != len(known):
        shown = "a name that is no text" if wrong and not isinstance(wrong[0], str) else ""
        got = shown or ", ".join(repr(str(name)[:MOST_NAME]) for name in names)
        each = ", ".join(map(repr, known))
        raise Refusal(400, f"Expected the tensors {each} in 'inputs', got {got}.")


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
        if len(data) != math.prod(shape) or not all(isinstance(x, str | bytes) for x in data):
            n = math.prod(shape)
            raise Refusal(400, f"Expected {n} texts in 'data', the product of 'shape'.")
        if rows.kind == "image":
            return [{"b64": x} if isinstance(x, str) else x for x in data]
        return [_as_text(x, i) for i, x in enumerate(data)]
    if not isinstance(kind, str) or kind not in NUMBERS:
        raise Refusal(400, "Expected a 'datatype' of BYTES, FP32, FP64, INT64 or another number.")
    return _numbers(data, shape, kind)


def _as_text(value: str | bytes, i: int) -> str:
    try:
        return value if isinstance(value, str) else value.decode()
    except UnicodeDecodeError:
        raise Refusal(400, f"Input {i}: expected a text in UTF-8, got other bytes.") from None


def _numbers(data: list[Any], shape: Sequence[int], kind: str) -> list[Any]:
    try:
        array = np.array(data)
    except (ValueError, OverflowError):
        array = np.array(None)
    if array.dtype.kind not in "if" or array.size != math.prod(shape):
        raise Refusal(
            400, f"Expected {math.prod(shape):,} numbers in 'data', the product of 'shape'."
        )
    if kind.startswith("FP"):
        return array.astype(np.float64).reshape(tuple(shape)).tolist()
    bounds = np.iinfo(kind.lower())
    fine = (array == np.trunc(array)) & (array >= bounds.min) & (array < float(bounds.max) + 1)
    if not fine.all():
        raise Refusal(
            400,
            f"Expected whole numbers from {bounds.min} to {bounds.max}, the range of the "
            "'datatype'.",
        )
    return array.astype(np.int64).reshape(tuple(shape)).tolist()


def infer_json(
    served: ServedModel, name: str, found: Mapping[str, Any], answers: Sequence[Answer]
) -> tuple[dict[str, Any], list[bytes]]:
    """Return the answer to an inference request, and the bytes that follow its JSON.

    Parameters
    ----------
    served : ServedModel
    name : str
        Id of the answer, for feedback.
    found : mapping
        The request: its id, the outputs that it wants, and which of them as bytes.
    answers : sequence of Answer

    Raises
    ------
    Refusal
        400 for an output that the model does not have.
    """
    verdicts = [a.verdict for a in answers if a.verdict is not None]
    data: dict[str, list[Any]] = {
        "answer": [_text(a.answer) for a in answers],
        "probability": [a.probability for a in answers],
    }
    if len(verdicts) == len(answers) and served.fitted is not None:
        data |= {"p_all": [v.p for v in verdicts], "alarm": [v.alarm for v in verdicts]}
        for key in served.detectors:
            ps = [v.each.get(key, (0, None))[1] for v in verdicts]
            data[f"p:{key[0]}:{key[1]}"] = ps
    kinds, parts, outputs = dict(_outputs(served)), list[bytes](), list[dict[str, Any]]()
    for output, is_binary in _wanted(found, data):
        one = {"name": output, "datatype": kinds[output], "shape": [len(answers)]}
        if is_binary:
            parts.append(encoded(kinds[output], data[output]))
            outputs.append({**one, "parameters": {SIZE: len(parts[-1])}})
        else:
            outputs.append({**one, "data": data[output]})
    given = found.get("id")
    head = {
        "model_name": served.name,
        "model_version": VERSION,
        "id": given if _can_be_repeated(given) else name,
        "parameters": {"sonde_id": name},
        "outputs": outputs,
    }
    return head, parts


def _wanted(found: Mapping[str, Any], known: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Return the outputs that a request asks for, and whether each comes as bytes."""
    every, asked = parameter_of(found, ALL_WANTED) is True, found.get("outputs")
    if not asked:
        return [(name, every) for name in known]
    if not isinstance(asked, list) or not all(isinstance(one, dict) for one in asked):
        raise Refusal(400, 'Expected a list of outputs such as {"name": "answer"}.')
    names = [one.get("name") for one in asked]
    if not all(isinstance(name, str) and name in known for name in names):
        raise Refusal(
            400, f"Expected outputs among {', '.join(known)}. GET the model's metadata for them."
        )
    own = [parameter_of(one, WANTED) for one in asked]
    return [(n, every if b is None else b is True) for n, b in zip(names, own, strict=True)]


def _can_be_repeated(given: Any) -> bool:
    """Return whether an id is a short text without unpaired surrogates."""
    if not isinstance(given, str) or len(given) > 128:
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in given)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
