"""Plain arrays as a stream: columns, slices, identity, and what is refused."""

from typing import Any, cast

import numpy as np
import pytest
import torch

from sonde.core.errors import InputError, ShapeError, SiteError, SondeWarning
from sonde.core.stream import Stream
from sonde.engine.array_stream import ARRAY_BATCH


def test_columns_line_up_with_rows():
    x = torch.arange(12.0).reshape(6, 2)
    stream = Stream.of(
        x,
        label=[0, 1, 2, -1, 4, 5],
        grad=-x,
        logits=x.repeat(1, 2),
        ids=list("abcdef"),
        group=list("ppqqrr"),
        position=[0, 1, 2, 3, 4, 5],
        pair=[1, 1, 2, 2, 3, 3],
        side=[0, 1, 0, 1, 0, 1],
        head=(torch.ones(4, 2), None),
    )
    (batch,) = stream
    assert torch.equal(batch.column("x", "x"), x)
    assert torch.equal(batch.column("grad", "x"), -x)
    assert torch.equal(batch.column("logits", "x"), x.repeat(1, 2))
    assert batch.column("label", "x").tolist() == [0, 1, 2, -1, 4, 5]
    assert batch.column("position", "x").tolist() == list(range(6))
    assert batch.column("side", "x").tolist() == [0, 1] * 3
    pair, group = batch.column("pair", "x").tolist(), batch.column("group", "x").tolist()
    assert pair[0] == pair[1] != pair[2]
    assert group[0] == group[1] != group[2]
    assert batch.column("order", "x").tolist() == list(range(6))
    assert list(batch.ids) == list("abcdef")
    assert batch.column("head", "x")[1] is None
    assert batch.column("special", "x").tolist() == [False] * 6
    assert stream.grouped


def test_batches_are_slices_of_units_and_can_be_read_again():
    x = torch.randn(ARRAY_BATCH + 100, 2)
    stream = Stream.of(x)
    sizes = [len(b) for b in stream.batches(0, len(x))]
    assert sizes == [ARRAY_BATCH, 100]
    for _ in range(2):
        assert torch.equal(torch.cat([b.rows["x"] for b in stream]), x)
    middle = next(stream.batches(300, 310))
    assert torch.equal(middle.rows["x"], x[300:310])
    assert middle.order.tolist() == list(range(300, 310))
    whole = torch.cat([b.column("draw", "x") for b in stream.batches(0, len(x))])
    assert torch.equal(middle.column("draw", "x"), whole[300:310])


def test_several_sites_in_the_order_given():
    stream = Stream.of({"b": np.zeros((3, 2)), "a": np.ones((3, 4), dtype=np.float32)})
    assert [(s.key, s.dim, s.dtype, s.site.order) for s in stream.schema] == [
        ("b", 2, "float64", 0),
        ("a", 4, "float32", 1),
    ]
    assert len(stream) == 3


def test_vectors_integers_and_lists_become_rows():
    assert Stream.of([1, 2, 3]).schema[0].dim == 1
    assert Stream.of(np.arange(6).reshape(3, 2)).schema[0].dtype == "float64"
    assert Stream.of(torch.zeros(2, 2, dtype=torch.bfloat16)).schema[0].dtype == "bfloat16"


X = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(2, 0)}, r"\(row, dim\) array, got shape \(2, 0\)"),
        ({"x": X, "label": [0, 1, -2, 1]}, "numbered from 0 as label, or -1 for none, got -2"),
        ({"x": torch.zeros(2, 2, 2)}, r"\(row, dim\) array, got shape \(2, 2, 2\)"),
        ({"x": {"a": X, "b": torch.zeros(3, 2)}}, r"expected 4 rows at every site, got \{'b': 3\}"),
        ({"x": X, "label": [0, 1]}, "expected 4 entries of label, got 2"),
        ({"x": X, "label": [0.5] * 4}, "whole numbers as label"),
        (
            {"x": X, "label": torch.zeros(4, 2)},
            r"one class for each row as label, got shape \(4, 2\)",
        ),
        ({"x": X, "label": np.zeros(3)}, r"4 entries of label, got shape \(3,\)"),
        ({"x": X, "label": list("abab")}, "Number the classes"),
        ({"x": X, "label": [0, None, 1, 0]}, "Number the classes"),
        ({"x": X, "logits": torch.zeros(6, 2)}, "expected 4 rows of logits, got 6"),
        ({"x": X, "perturbed_logits": torch.zeros(3, 2)}, "4 rows of perturbed_logits, got 3"),
        ({"x": X, "grad": torch.zeros(6, 2)}, "expected 4 rows of grad of x, got 6"),
        ({"x": X, "grad": {"b": X}}, r"expected gradients of x, got \['b'\]"),
        ({"x": X, "group": "abc"}, "expected 4 entries of group, got 3"),
        ({"x": X, "ids": ["a"]}, "expected 4 entries of ids, got 1"),
    ],
)
def test_what_does_not_fit_is_a_shape_error(arguments, message):
    with pytest.raises(ShapeError, match=message):
        Stream.of(**arguments)


@pytest.mark.parametrize(
    "label",
    [
        torch.tensor([3, 2, 1, 0], dtype=torch.int8),
        np.arange(4)[::-1],
        np.array([3, 2, 1, 0], dtype=np.uint16),
        np.array([3, 2, 1, 0], dtype=object),
        np.array([3.0, 2.0, 1.0, 0.0]),
        [np.int64(3), 2, True, False],
    ],
)
def test_whole_numbers_of_any_kind_are_labels(label):
    assert Stream.of(X, label=label).label.tolist() == [3, 2, 1, 0]


def test_labels_stay_when_their_array_is_written_to():
    label = np.arange(4)
    stream = Stream.of(X, label=label)
    label[:] = 7
    assert stream.label.tolist() == [0, 1, 2, 3]


def test_no_array_is_an_input_error():
    with pytest.raises(InputError, match="at least one array"):
        Stream.of({})


@pytest.mark.parametrize(
    "change",
    [
        {"x": X + 1},
        {"x": X.double()},
        {"label": [0, 0, 0, 1]},
        {"grad": X},
        {"logits": X},
        {"ids": list("abcd")},
        {"group": list("aabb")},
        {"position": [0, 1, 2, 3]},
        {"pair": [1, 1, 2, 2]},
        {"side": [0, 1, 0, 1]},
        {"head": (torch.ones(2, 2), None)},
        {"seed": 1},
    ],
)
def test_every_column_is_part_of_the_identity(change: Any):
    assert Stream.of(**cast("Any", {"x": X, **change})).identity() != Stream.of(X).identity()
    again = Stream.of(**cast("Any", {"x": X, **change}))
    assert again.identity() == Stream.of(**cast("Any", {"x": X, **change})).identity()


def test_texts_are_hashed_with_their_borders():
    one = Stream.of(X, ids=["ab", "c", "d", "e"]).identity()
    two = Stream.of(X, ids=["a", "bc", "d", "e"]).identity()
    assert one != two


def test_an_array_named_as_a_site_is_that_site():
    stream = Stream.of({"layers.0:out": torch.zeros(2, 1), "plain name": torch.zeros(2, 1)})
    assert [str(s.site) for s in stream.schema] == ["layers.0:out", "plain name:out"]
    assert [s.site.order for s in stream.schema] == [0, 1]
    with pytest.raises(SiteError, match="expected a port among"):
        _ = Stream.of({"layers.0:off": torch.zeros(2, 1)}).schema


def test_classes_written_as_signs_are_told_apart_from_rows_without_a_label():
    x = torch.zeros(4, 2)
    said = r"Stream\.of: 2 of 4 labels are -1, .* all others are 1.* Number the classes 0 and 1"
    for label in ([-1, 1, 1, -1], np.array([-1.0, 1.0, 1.0, -1.0])):
        with pytest.warns(SondeWarning, match=said):
            stream = Stream.of(x, label=label)
        assert next(stream.batches(0, 4)).label.tolist() == [-1, 1, 1, -1]
    for label in ([0, 1, 1, -1], [1, 1, 1, 1], [-1] * 4, [0, 1, 0, 1], None):
        Stream.of(x, label=label)
