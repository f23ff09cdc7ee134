"""Python items, arrays, and what a user's own module takes."""

import gc
import pickle
import tempfile
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import SubsetRandomSampler

from models import cnn, mlp
from narrow import present
from sonde.core import errors
from sonde.core.hashing import tensor_key
from sonde.data import load, open_arrays, open_inputs
from sonde.data.iterables import Iterated


def only(inputs):
    (batch,) = inputs.batches(0, len(inputs))
    return batch


class Again:
    """Re-iterable without an index."""

    def __init__(self, items):
        self.items, self.started = items, 0

    def __iter__(self):
        self.started += 1
        return iter(self.items)


class MapStyle:
    """A torch data set: length and index, no iterator."""

    def __len__(self):
        return 5

    def __getitem__(self, i):
        if i >= 5:
            raise IndexError(i)
        return torch.full((8,), float(i)), i % 2


def test_tensors_are_stacked_and_known_by_their_bytes():
    model = load(mlp())
    items = [torch.arange(8.0), torch.ones(8), np.zeros(8, dtype=np.float32)]
    batch = only(open_inputs(model, items))
    assert batch.args[0].dtype == torch.float32
    assert torch.equal(batch.args[0][1], torch.ones(8))
    assert batch.keys[:2] == [tensor_key(items[0]), tensor_key(items[1])]
    assert model.module(*batch.args).shape == (3, 4)
    with pytest.raises(errors.InputError, match=r"equal shape, got \(7,\), \(8,\).*batch_size=1"):
        only(open_inputs(model, [torch.ones(8), torch.ones(7)]))


def test_re_iterables_are_walked_and_indexed_ones_are_not():
    items = [torch.full((8,), float(i)) for i in range(600)]
    walked = Again(items)
    inputs = open_inputs(load(mlp()), walked, batch_size=300)
    before = walked.started
    orders = []
    for start, stop in [(0, 256), (256, 512), (512, 600)]:
        for batch in inputs.batches(start, stop):
            orders += batch.order.tolist()
            assert torch.equal(batch.args[0][:, 0], batch.order.float())
    assert orders == list(range(600))
    assert walked.started == before + 1
    assert torch.equal(next(inputs.batches(3, 5)).args[0][:, 0], torch.tensor([3.0, 4.0]))


def test_map_style_data_sets_with_labels():
    batch = only(open_inputs(load(mlp()), MapStyle()))
    assert batch.label.tolist() == [0, 1, 0, 1, 0]
    assert batch.args[0][:, 0].tolist() == [0, 1, 2, 3, 4]


def arrays(kind: str) -> Any:
    """Return what ``MapStyle`` holds in another form that people have."""
    x = torch.arange(5.0)[:, None].expand(5, 8)
    y = torch.arange(5) % 2
    forms = {
        "(X, y)": lambda: (x.numpy(), y.numpy()),
        "(X, list)": lambda: (x, y.tolist()),
        "(X, column)": lambda: (x, y[:, None]),
        "dictionary": lambda: {"x": x, "label": y.tolist()},
        "frame": lambda: {"x": x, "label": pandas.Series(y.numpy(), index=range(5, 0, -1))},
        "loader": lambda: torch.utils.data.DataLoader(MapStyle(), batch_size=2, shuffle=True),  # pyright: ignore[reportArgumentType]
        "function": lambda: lambda: zip(x, y.tolist(), strict=True),
    }
    return forms[kind]()


@pytest.mark.parametrize(
    "kind", ["(X, y)", "(X, list)", "(X, column)", "dictionary", "frame", "loader", "function"]
)
def test_arrays_with_labels_in_the_forms_that_people_have(kind):
    inputs = open_inputs(load(mlp()), arrays(kind))
    batch = only(inputs)
    assert batch.label.tolist() == [0, 1, 0, 1, 0]
    assert batch.args[0][:, 0].tolist() == [0, 1, 2, 3, 4]


def test_two_arrays_of_one_shape_are_two_items():
    assert len(open_inputs(load(mlp()), (torch.ones(8), torch.zeros(8)))) == 2
    assert len(open_inputs(load(mlp()), (torch.ones(3, 8), torch.zeros(3, 8)))) == 2


def test_forms_that_could_mean_something_else_are_refused():
    model = load(mlp())
    own = torch.utils.data.DataLoader(MapStyle(), collate_fn=lambda items: items)  # pyright: ignore[reportArgumentType]
    with pytest.raises(errors.InputError, match=r"its own collate_fn.*loader.dataset"):
        open_inputs(model, own)
    some = torch.utils.data.DataLoader(MapStyle(), sampler=SubsetRandomSampler([0, 1]))  # pyright: ignore[reportArgumentType]
    with pytest.raises(errors.InputError, match="a SubsetRandomSampler"):
        open_inputs(model, some)
    with pytest.raises(errors.InputError, match=r"equal length.*got x 3, label 2"):
        open_inputs(model, {"x": torch.ones(3, 8), "label": [0, 1]})
    with pytest.raises(errors.InputError, match="text one value"):
        open_inputs(model, {"text": "abc"})


@pytest.mark.truth("the items of the generator")
def test_a_generator_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    asked: list[int] = []

    def items():
        for i in range(70):
            asked.append(i)
            yield torch.full((8,), float(i)), i % 2

    inputs = open_inputs(load(mlp()), items())
    sent = pickle.loads(pickle.dumps(inputs.source))  # as to a worker
    for start, stop in ((60, 70), (0, 3)):
        (batch,) = inputs.batches(start, stop)
        assert sorted(batch.args[0][:, 0].tolist()) == list(range(start, stop))
        assert [row["label"] for row in sent.take(start, stop)] == [
            i % 2 for i in range(start, stop)
        ]
    assert asked == list(range(70))
    assert len(list(tmp_path.iterdir())) == 1
    del sent
    assert len(list(tmp_path.iterdir())) == 1
    del inputs, batch
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_items_that_cannot_be_kept_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(errors.InputError, match=r"item 1 of a generator cannot be written"):
        open_inputs(load(mlp()), ({"x": torch.ones(8), "f": f} for f in (1, lambda: 1)))
    source = Iterated(iter([torch.ones(8)]))
    assert len(list(source.rows())) == 1
    for kept in tmp_path.iterdir():  # that of the refused items may not be collected yet
        kept.unlink()
    with pytest.raises(errors.InputError, match=r"on the machine of the command.*Pass a file"):
        pickle.loads(pickle.dumps(source))


def test_what_gives_no_items_is_refused():
    model = load(mlp())
    once = iter([torch.ones(8)])
    with pytest.raises(errors.InputError, match="function that returns a new iterable"):
        open_inputs(model, lambda: once)
    with pytest.raises(errors.InputError, match="an iterable of items, got int"):
        open_inputs(model, 3)
    with pytest.raises(errors.InputError, match="is empty"):
        open_inputs(model, [])
    with pytest.raises(errors.InputError, match="item 0: expected a text"):
        open_inputs(model, [3.5])


def test_a_source_that_shuffles_is_noticed(gpt2):
    class Shuffled:
        def __init__(self, rows):
            self.rows, self.step = rows, 1

        def __iter__(self):
            return iter(self.rows[:: self.step])

    for rows in (["a", "b"], [{"text": "a", "id": 1}, {"text": "b", "id": 2}]):
        items = Shuffled(rows)
        inputs = open_inputs(load(gpt2), items)
        items.step = -1
        with pytest.raises(errors.InputError, match="item 0 of Shuffled: the content has changed"):
            list(inputs.batches(0, 2))
    shrinking = Again(["a", "b"])
    inputs = open_inputs(load(gpt2), shrinking)
    shrinking.items = ["a"]
    with pytest.raises(errors.InputError, match="only 1 item the second time"):
        list(inputs.batches(0, 2))


def test_dictionaries_are_keyword_arguments():
    class Two(nn.Module):
        def forward(self, left, right):
            return left + right

    items = [{"left": torch.ones(2) * i, "right": torch.ones(2), "label": i} for i in range(3)]
    batch = only(open_inputs(load(Two()), items))
    assert set(batch.kwargs) == {"left", "right"}
    assert Two()(**batch.kwargs).tolist() == [[1, 1], [2, 2], [3, 3]]
    assert batch.label.tolist() == [0, 1, 2]
    with pytest.raises(errors.InputError, match="no argument 'up', only left, right"):
        open_inputs(load(Two()), [{"up": torch.ones(2)}])


def test_a_callable_processor_makes_the_input():
    def embedded(text):
        return torch.full((8,), float(len(text)))

    def flattened(image):
        return torch.from_numpy(np.asarray(image, dtype=np.float32)).flatten()

    batch = only(open_inputs(load(mlp(), processor=embedded), ["a", "bb"]))
    assert batch.args[0][:, 0].tolist() == [1, 2]
    picture = Image.fromarray(np.arange(8, dtype=np.uint8).reshape(2, 4))
    batch = only(open_inputs(load(mlp(), processor=flattened), [picture]))
    assert batch.args[0].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_texts_and_images_need_a_processor():
    with pytest.raises(errors.InputError, match=r"takes tensors.*'text'.*pass processor="):
        open_inputs(load(mlp()), ["hello"])
    with pytest.raises(errors.InputError, match=r"how to preprocess images.*Or pass processor="):
        open_inputs(load(cnn()), [Image.new("L", (8, 8))])
    with pytest.raises(errors.InputError, match="expected processor= as a tokenizer"):
        open_inputs(load(mlp(), processor=3), ["hello"])


def test_a_tokenizer_for_a_plain_module(bert):
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(30, 4)

        def forward(self, tokens):
            return self.table(tokens)

    model = load(Embedded(), processor=load(bert).processor)
    inputs = open_inputs(model, ["cat sat", "a"])
    one, two = inputs.batches(0, 2)
    assert (one.args[0].tolist(), two.args[0].tolist()) == ([[2, 4, 3]], [[2, 12, 14, 3]])
    assert one.kwargs == {}
    assert present(two.mask).sum().item() == 4


def test_images_as_pixel_values(vit):
    model = load(vit)
    batch = only(open_inputs(model, [torch.zeros(3, 8, 8)]))
    assert model.module(**batch.kwargs).logits.shape == (1, 2)


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "array", "tensor"])
def test_array_files_are_a_models_input(kind, tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    label = np.arange(6)
    path = tmp_path / f"a.{kind}"
    if kind == "npy":
        np.save(path, x)
    elif kind == "npz":
        np.savez(path, x=x, label=label)
    elif kind == "safetensors":
        from safetensors.numpy import save_file

        save_file({"x": x, "label": label}, path)
    data = {"array": x, "tensor": torch.from_numpy(x)}.get(kind, path)
    batch = only(open_inputs(load(mlp()), data))
    assert torch.equal(batch.args[0], torch.from_numpy(x))
    assert batch.label.tolist() == (list(range(6)) if kind in ("npz", "safetensors") else [-1] * 6)


def test_array_files_need_an_x(tmp_path):
    np.savez(tmp_path / "a.npz", left=np.ones((2, 3)))
    with pytest.raises(errors.InputError, match=r"expected an array 'x'.*got left"):
        open_inputs(load(mlp()), tmp_path / "a.npz")


def test_arrays_beside_the_input_may_be_of_any_shape(tmp_path):
    x, label = np.ones((6, 8), np.float32), np.arange(6)
    np.savez(tmp_path / "a.npz", x=x, label=label, emb=np.ones((6, 5)), seed=np.array(5))
    inputs = open_inputs(load(mlp()), tmp_path / "a.npz", ignore_columns="emb")
    assert only(inputs).label.tolist() == label.tolist()
    (row,) = inputs.source.take(2, 3)
    assert row["emb"].tolist() == [1.0] * 5
    assert "seed" not in row


def test_a_single_number_is_no_input(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array(1.0), label=np.arange(3))
    with pytest.raises(errors.InputError, match="one row per item, got a single number"):
        open_inputs(load(mlp()), tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("name", "values", "shape"),
    [
        ("label", np.eye(5), r"\(5, 5\)"),
        ("y", np.arange(5), r"\(5,\)"),
        ("id", np.array(3), r"\(\)"),
    ],
)
def test_columns_of_array_files_hold_one_value_for_each_row(tmp_path, name, values, shape):
    np.savez(tmp_path / "a.npz", x=np.ones((6, 8), np.float32), **{name: values})
    said = f"expected a value for each of 6 rows in array '{name}', got the shape {shape}"
    with pytest.raises(errors.InputError, match=said):
        open_inputs(load(mlp()), tmp_path / "a.npz")


@pytest.mark.truth("the arrays that were written")
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_feature_arrays_are_sites(kind, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"early": rng.normal(size=(5, 3)), "late": rng.normal(size=(5, 2, 2))}
    columns = {"label": np.array([0, 1, 0, 1, -1]), "group": np.array([7, 7, 8, 8, 9])}
    path = tmp_path / f"f.{kind}"
    if kind == "npz":
        named: dict[str, Any] = {**arrays, **columns, "id": np.array(["a", "b", "c", "d", "e"])}
        np.savez(path, **named)
    else:
        from safetensors.numpy import save_file

        save_file(arrays | columns, path)
    stream = open_arrays(path)
    assert [s.key for s in stream.schema] == ["early", "late"]
    (batch,) = list(stream.batches(0, 5))
    np.testing.assert_array_equal(batch.rows["early"].numpy(), arrays["early"])
    np.testing.assert_array_equal(batch.rows["late"].numpy(), arrays["late"].reshape(5, 4))
    assert batch.label.tolist() == [0, 1, 0, 1, -1]
    assert list(batch.group_keys) == [b"7", b"7", b"8", b"8", b"9"]
    if kind == "npz":
        assert list(batch.ids) == ["a", "b", "c", "d", "e"]


def test_hostile_and_wrong_array_files(tmp_path):
    (tmp_path / "junk.npz").write_text("junk")
    with pytest.raises(errors.InputError, match="it is not a NumPy file"):
        open_arrays(tmp_path / "junk.npz")
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(errors.InputError, match="a pickle"):
        open_arrays(tmp_path / "p.npy")
    np.savez(tmp_path / "p.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(errors.InputError, match="a pickle"):
        open_arrays(tmp_path / "p.npz")
    cases = {
        "huge.safetensors": (2**60).to_bytes(8, "little") + b"{}",
        "short.safetensors": b"abc",
        "list.safetensors": (2).to_bytes(8, "little") + b"[]",
        "words.safetensors": (4).to_bytes(8, "little") + b"{{{{",
        "offsets.safetensors": None,
        "cut.npy": b"\x93NUMPY\x01\x00",
        "not.npz": b"PK nothing",
    }
    header = b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,999]}}'
    cases["offsets.safetensors"] = len(header).to_bytes(8, "little") + header + b"1234"
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(errors.InputError, match=r"(not a safetensors|cannot be read|a pickle)"):
            open_arrays(tmp_path / name)
    np.savez(tmp_path / "u.npz", a=np.ones((3, 2)), b=np.ones((4, 2)))
    with pytest.raises(errors.InputError, match="the same number of rows"):
        open_arrays(tmp_path / "u.npz")
    np.savez(tmp_path / "e.npz", a=np.ones((0, 2)))
    with pytest.raises(errors.InputError, match="is empty"):
        open_arrays(tmp_path / "e.npz")
    np.savez(tmp_path / "s.npz", a=np.array(["x", "y"]))
    with pytest.raises(errors.InputError, match="expected numbers"):
        open_arrays(tmp_path / "s.npz")
    with pytest.raises(errors.InputError, match="no such file"):
        open_arrays(tmp_path / "none.npz")


@pytest.mark.parametrize("kind", ["pandas", "arrow"])
def test_a_table_is_read_row_by_row(kind):
    rows = [{"text": "one", "label": 0}, {"text": "two", "label": 1}, {"text": "six", "label": 1}]
    if kind == "pandas":
        table = pytest.importorskip("pandas").DataFrame(rows)
    else:
        table = pa.Table.from_pylist(rows)
    source = Iterated(table)
    assert list(source.rows()) == rows
    assert source.take(1, 3) == rows[1:]
    assert source.name == type(table).__name__


def test_a_table_without_rows_that_can_be_read_is_refused():
    class Frame:
        columns, dtypes = ("text",), ("str",)

    with pytest.raises(errors.InputError, match="got a Frame with columns"):
        Iterated(Frame())


def test_a_data_set_may_call_something_columns():
    class Named:
        columns = ("text",)

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> str:
            return ("one", "two")[index]

    assert list(Iterated(Named()).rows()) == [{"text": "one"}, {"text": "two"}]
