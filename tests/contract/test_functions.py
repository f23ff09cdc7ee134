"""The function of a measure is its class: the same rows, the same parameters, the same number."""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from contract.statistics import exported_instruments
from sonde import measure
from sonde.core import Batch, InputBatch, Result
from sonde.run.instruments.catalogue import word_of_class

OWN_ROWS = {
    "attention_entropy",
    "gradient_conflict",
    "gradient_signal_to_noise",
    "token_entropy",
}
"""Functions that make rows of other arrays before they ask their class."""
ROOMS = ("core", "stats", "measure", "detect", "edit", "explain", "alarms", "weights")
N = 60

CLASSES = {
    word_of_class(type(i)): type(i)
    for i in exported_instruments()
    if type(i).__module__.startswith("sonde.measure.")
}
CASES = [
    (word, parameters)
    for word, cls in sorted(CLASSES.items())
    for parameters in cls.examples
    if word not in OWN_ROWS and "grouped" not in parameters
]


def arrays() -> dict[str, Any]:
    """Rows with two pairs of copies, and every column that a function asks for."""
    source = torch.Generator().manual_seed(0)
    x, more = torch.randn(N, 6, generator=source), torch.randn(N, 6, generator=source)
    x[1], x[3] = x[0], x[2]
    y = x @ torch.randn(6, 6, generator=source) + more
    return {
        "x": x,
        "y": y,
        "layers": [x, y],
        "label": torch.arange(N) % 3,
        "side": torch.arange(N) // 3 % 2,
        "grad": more,
        "logits": y[:, :3],
        "head": (torch.randn(3, 6, generator=source), None),
    }


def same(a: object, b: object) -> bool:
    return (a is None and b is None) or torch.equal(
        torch.as_tensor(a, dtype=torch.float64).nan_to_num(nan=-1e9),
        torch.as_tensor(b, dtype=torch.float64).nan_to_num(nan=-1e9),
    )


def test_every_measure_has_its_function():
    for word, cls in CLASSES.items():
        assert (getattr(measure, word).__module__, word) == (cls.__module__, word)


@pytest.mark.parametrize(("word", "example"), CASES, ids=[f"{w}-{p}" for w, p in CASES])
@pytest.mark.parametrize("grouped", [False, True])
def test_function_and_class_give_one_number(word, example, grouped):
    cls, function = CLASSES[word], getattr(measure, word)
    known, columns = inspect.signature(function).parameters, arrays()
    if word == "information_plane" and example.get("about") != "label":
        del columns["label"]
    if word == "neural_collapse" and not example.get("head"):
        del columns["head"]
    given = {n: columns[n] for n in known if n in columns}
    group = [f"{i // 3}" for i in range(N)] if grouped else None
    wide = example | ({"grouped": True} if grouped and word in ("cka", "kernel_cka") else {})
    options = {"fit" if n == "fit_by" else n: v for n, v in wide.items() if n not in given}
    first = function(**given, group=group, **{n: v for n, v in options.items() if n in known})
    rows = given.pop("layers", None) if "layers" in given else given.pop("x")
    second = cls(**wide).fit(rows, **given, group=group)
    assert all(same(getattr(first, n), getattr(second, n)) for n in ("value", "se", "null"))
    assert (first.n, first.flags, first.conventions) == (second.n, second.flags, second.conventions)


def test_rows_of_plain_arrays_are_known_by_their_numbers():
    x = arrays()["x"]
    numbered = measure.TwoNN(m=20).fit(x, ids=range(N))
    assert measure.two_nn(x, m=20).value == measure.TwoNN(m=20).fit(x).value == numbered.value


def test_a_call_that_the_class_does_not_know_names_the_nearest_parameter():
    with pytest.raises(TypeError, match=r"TwoNN: .*'fitt'\. Did you mean fit\?"):
        measure.two_nn(arrays()["x"], fitt="slope")
    with pytest.raises(TypeError, match=r"CCA: missing a required argument: 'y'"):
        measure.cca(arrays()["x"])


def parameters_of(doc: str) -> set[str]:
    """Return the names under ``Parameters`` of a numpy docstring."""
    found = re.search(r"^Parameters\n-{3,}\n(.*?)(?:\n\n\w[\w ]*\n-{3,}|\Z)", doc, re.M | re.S)
    lines = found[1].splitlines() if found else []
    heads = [line.partition(":")[0] for line in lines if re.match(r"\w[\w, ]* : ", line)]
    return {name.strip() for head in heads for name in head.split(",")}


def parameter_classes() -> Iterator[type]:
    for room in ROOMS:
        package = importlib.import_module(f"sonde.{room}")
        for name in package.__all__:
            found = getattr(package, name)
            if isinstance(found, type) and dataclasses.is_dataclass(found):
                yield found


def test_documented_parameters_are_fields():
    wrong = {}
    for cls in parameter_classes():
        documented = parameters_of(inspect.getdoc(cls) or "")
        known = {f.name for f in dataclasses.fields(cls) if f.init}
        own = (
            {}
            if issubclass(cls, Result | Batch | InputBatch)
            else vars(cls).get("__annotations__", {})
        )
        silent = {f for f in known & {*own} if documented and f not in documented}
        if problems := (documented - known) | silent:
            wrong[cls.__name__] = sorted(problems)
    assert not wrong
