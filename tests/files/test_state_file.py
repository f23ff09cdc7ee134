"""State files: exact bits, reproducible bytes, and fields decoded by the caller's types."""

import hashlib
import math
import struct
import subprocess
import sys
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import pytest
import torch
from jaxtyping import Float, jaxtyped
from safetensors import safe_open
from torch import Tensor

from narrow import expect
from sonde.core.calibration import Calibration
from sonde.core.errors import StateError, StoreError
from sonde.core.state import State, equal, map_tensors
from sonde.core.statistic import Learner, Statistic
from sonde.files._layout import head_of, read_contents
from sonde.files.state_file import check_state, read_header, read_state, state_type, write_state
from sonde.stats import HashSample, Moments
from sonde.stats.moments import MomentsState
from state_case import QUIET_NAN, Part, Rich, good, rich

S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class Box(State):
    x: Tensor


@dataclass(frozen=True)
class Number(State):
    value: float


def through(path, state: S) -> S:
    write_state(path, {}, {"s": state}, durable=False)
    return expect(type(state), read_state(path, {"s": type(state)})[1]["s"])


def test_every_kind_of_field_comes_back(tmp_path):
    before = rich()
    after = through(tmp_path / "a.sonde", before)
    for f in fields(Rich):
        if f.name != "odd":
            assert equal(getattr(before, f.name), getattr(after, f.name)), f.name
    assert struct.pack(">d", after.odd) == struct.pack(">d", QUIET_NAN)


@pytest.mark.truth("the bytes of the tensors in memory")
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    ],
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 5)])
def test_every_bit_of_every_type_survives(tmp_path, dtype, shape):
    width = torch.empty(0, dtype=dtype).element_size()
    n = math.prod(shape)
    raw = np.random.default_rng(3).integers(0, 256, n * width, dtype=np.uint8)
    raw[-width:] = 255
    whole = torch.frombuffer(bytearray(raw.tobytes() + bytes(8)), dtype=torch.uint8)
    x = whole[: n * width].view(dtype).reshape(shape)
    after = through(tmp_path / "a.sonde", Box(x))
    assert (after.x.dtype, after.x.shape) == (dtype, x.shape)
    assert after.x.reshape(-1).view(torch.uint8).numpy().tobytes() == raw.tobytes()


@pytest.mark.parametrize("value", [0.1, -0.0, 5e-324, 1.7e308, math.inf, -math.inf, QUIET_NAN])
def test_every_bit_of_a_float_survives(tmp_path, value):
    after = through(tmp_path / "a.sonde", Number(value))
    assert struct.pack(">d", after.value) == struct.pack(">d", value)


@pytest.mark.truth("the safetensors library")
def test_any_safetensors_reader_opens_the_tensors(tmp_path):
    state = Moments().observe(torch.randn(20, 3))
    write_state(tmp_path / "a.sonde", {}, {"s": state})
    with safe_open(tmp_path / "a.sonde", "pt") as file:
        assert list(file.metadata()) == ["sonde"]
        assert torch.equal(file.get_tensor("t0"), state.mean)
        assert torch.equal(file.get_tensor("t1"), state.scatter)


def test_tensors_lie_aligned_to_their_type(tmp_path):
    content = good(tmp_path / "a.sonde")
    start = 8 + int.from_bytes(content[:8], "little")
    assert start % 8 == 0
    with safe_open(tmp_path / "a.sonde", "pt") as file:
        widths = [file.get_tensor(f"t{i}").element_size() for i in range(len(file.keys()))]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.truth("hashlib")
def test_the_id_is_the_hash_of_the_file_and_does_not_depend_on_the_order_of_anything(tmp_path):
    one, two = rich(), Moments().observe(torch.ones(3, 2))
    first = write_state(tmp_path / "a", {"k": 1, "j": [2]}, {"x": one, "y": two, "z": None})
    second = write_state(tmp_path / "b", {"j": [2], "k": 1}, {"z": None, "y": two, "x": one})
    assert first == second == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path):
    program = (
        "import torch; from sonde.files.state_file import write_state; "
        "from sonde.stats import Moments; x = torch.arange(12.0).reshape(4, 3); "
        f"write_state({str(tmp_path / 'b')!r}, {{'k': 1}}, {{'s': Moments().observe(x)}})"
    )
    x = torch.arange(12.0).reshape(4, 3)
    write_state(tmp_path / "a", {"k": 1}, {"s": Moments().observe(x)})
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONHASHSEED": "7"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_views_and_shared_tensors_are_written_whole(tmp_path):
    x = torch.arange(20.0).reshape(4, 5)
    view = x.T[1:3, ::2]
    after = through(tmp_path / "a.sonde", Box(view))
    assert torch.equal(after.x, view)
    shared = Moments("diag").observe(x)
    write_state(tmp_path / "b.sonde", {}, {"a": shared, "b": shared})
    states = read_state(tmp_path / "b.sonde", lambda _: state_type(Moments()))[1]
    assert equal(states["a"], shared)
    assert (
        expect(MomentsState, states["a"]).mean.data_ptr()
        != expect(MomentsState, states["b"]).mean.data_ptr()
    )


def test_the_header_is_read_without_the_tensors(tmp_path):
    path = tmp_path / "a.sonde"
    write_state(path, {"units": [[0, 511]]}, {"s": Box(torch.zeros(100_000))})
    content = bytearray(path.read_bytes())
    content[-1] = 1
    path.write_bytes(content)
    assert read_header(path) == {"units": [[0, 511]]}
    with pytest.raises(StateError, match="checksum"):
        check_state(path)
    with pytest.raises(StateError, match="checksum"):
        read_state(path, {"s": Box})


def test_a_limit_on_the_header_and_on_the_payload(tmp_path):
    path = tmp_path / "a.sonde"
    write_state(path, {}, {"s": Box(torch.zeros(1000))})
    with pytest.raises(StateError, match="header of"):
        read_header(path, limit=64)
    with pytest.raises(StateError, match="4000 bytes, more than the limit 3999"):
        read_state(path, {"s": Box}, limit_bytes=3999)
    read_state(path, {"s": Box}, limit_bytes=4000)


def test_a_payload_larger_than_the_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.sonde"
    write_state(path, {}, {"s": Box(torch.zeros(1000))})
    path.write_bytes(path.read_bytes()[:-1] + b"\1")  # a reader of the payload would say so
    monkeypatch.setattr("sonde.files.state_file.whole_memory_bytes", lambda: 3999)
    with pytest.raises(StateError, match="4000 bytes, more than the memory of this machine, 3999"):
        read_state(path, {"s": Box})


def test_a_file_above_4_gib_is_opened(tmp_path):
    path, n = tmp_path / "a.sonde", 2**32 + 8  # a file with holes: nothing lies on the disk
    table = f',"t0":{{"dtype":"U8","shape":[{n}],"data_offsets":[0,{n}]}}'
    said = {"header": {"of": 1}, "states": {}, "hash": ""}
    head = head_of({"format": "sonde-state", "version": 1, **said}, table)
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    with path.open("r+b") as file:
        file.truncate(8 + len(head) + n)
    assert read_header(path) == {"of": 1}
    with path.open("rb") as file:
        assert read_contents(file, path).slots[0].end == n


def test_only_the_expected_states_are_read(tmp_path):
    path = tmp_path / "a.sonde"
    write_state(path, {}, {"s": Box(torch.zeros(1)), "empty": None})
    with pytest.raises(StateError, match=r"missing \['other'\], unknown \['s'\]"):
        read_state(path, {"other": Box, "empty": Box})
    with pytest.raises(StateError, match="unknown state 's'"):
        read_state(path, {"empty": Box}.__getitem__)
    assert read_state(path, {"s": Box, "empty": Box})[1]["empty"] is None


def test_the_type_is_the_callers_and_must_fit(tmp_path):
    path = tmp_path / "a.sonde"
    write_state(path, {}, {"s": Box(torch.zeros(1))})
    with pytest.raises(StateError, match=r"the fields \['value'\], got \['x'\].*fit again"):
        read_state(path, {"s": Number})
    write_state(path, {}, {"s": Number(1.0)})
    with pytest.raises(StateError, match="expected the fields"):
        read_state(path, {"s": Box})


@dataclass(frozen=True)
class Square(State):
    mean: Float[Tensor, "dim"]
    scatter: Float[Tensor, "dim dim"]


@dataclass(frozen=True)
class Loose(State):
    mean: Tensor
    scatter: Tensor


@pytest.mark.parametrize(
    ("mean", "scatter"),
    [
        (torch.zeros(3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(3, 3)),
        (torch.zeros(3), torch.zeros(9)),
        (torch.zeros(3, dtype=torch.int64), torch.zeros(3, 3)),
    ],
)
def test_shapes_and_types_of_the_annotation_are_checked(tmp_path, mean, scatter):
    path = tmp_path / "a.sonde"
    write_state(path, {}, {"s": Loose(mean, scatter)})
    with pytest.raises(StateError, match=r"s\.(mean|scatter): expected Float"):
        read_state(path, {"s": Square})


def test_sizes_of_a_caller_that_uses_jaxtyping_say_nothing(tmp_path):
    write_state(tmp_path / "a.sonde", {}, {"s": Loose(torch.zeros(3), torch.zeros(3, 3))})
    with jaxtyped("context"):
        assert isinstance(torch.zeros(5), Float[Tensor, "dim"])  # pyright: ignore[reportArgumentType]
        found = read_state(tmp_path / "a.sonde", {"s": Square})[1]["s"]
    assert expect(Square, found).mean.shape == (3,)


def test_a_class_that_refuses_its_values_is_a_state_error(tmp_path):
    @dataclass(frozen=True)
    class Unchecked(State):
        scores: Tensor
        guarantee: str
        delta: float

    path = tmp_path / "a.sonde"
    write_state(path, {}, {"s": Unchecked(torch.zeros(3, dtype=torch.float64), "pac", 2.0)})
    with pytest.raises(StateError, match=r"Calibration rejects these values.*delta"):
        read_state(path, {"s": Calibration})
    calibration = Calibration.from_scores([0.1, 0.2], "pac", 0.1)
    assert equal(through(path, calibration), calibration)


@pytest.mark.parametrize("value", [1j, [1], {"a": 1}, np.float64(1.0), np.int64(3)])
def test_what_is_no_state_value_is_not_written(tmp_path, value):
    @dataclass(frozen=True)
    class Wrong(State):
        x: object

    with pytest.raises(TypeError, match=r"a state holds tensors.*at s\.x"):
        write_state(tmp_path / "a.sonde", {}, {"s": Wrong(value)})
    assert list(tmp_path.iterdir()) == []


def test_complex_and_sparse_tensors_are_not_written(tmp_path):
    for x in (torch.zeros(2, dtype=torch.complex64), torch.eye(2).to_sparse()):
        with pytest.raises(TypeError, match="cannot store a tensor"):
            write_state(tmp_path / "a.sonde", {}, {"s": Box(x)})


def test_a_file_that_no_reader_would_take_is_not_written(tmp_path):
    with pytest.raises(StateError, match="exceed the limits of a reader"):
        write_state(tmp_path / "a.sonde", {"names": [0] * 400_000}, {})
    assert list(tmp_path.iterdir()) == []


def test_no_such_file_and_no_such_directory(tmp_path):
    with pytest.raises(StoreError, match=r"could not read .*No such file"):
        read_state(tmp_path / "none.sonde", {})
    with pytest.raises(StoreError, match="could not read"):
        read_header(tmp_path)
    with pytest.raises(StoreError, match=r"could not write .*Check that the directory exists"):
        write_state(tmp_path / "none" / "a.sonde", {}, {})


def test_state_type_is_what_observe_returns():
    class Chain(Learner[Number]):
        def start(self, dim: int) -> Number:
            return Number(float(dim))

        def update(self, state: Number, x: Tensor) -> Number:
            return state

    class Vague(Statistic[Number]):
        def observe(self, x: Tensor):
            return Number(1.0)

        def merge(self, a: Number, b: Number) -> Number:
            return a

    assert state_type(Moments()).__name__ == "MomentsState"
    assert state_type(HashSample()).__name__ == "HashSampleState"
    assert state_type(Chain()) is Number
    with pytest.raises(TypeError, match=r"Vague\.observe: expected a State class"):
        state_type(Vague())


def test_real_statistics_come_back(tmp_path):
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    draw, zero = torch.arange(50), torch.zeros(50, dtype=torch.int64)
    for statistic, columns in [
        (Moments(), (x,)),
        (Moments("diag"), (x,)),
        (HashSample(8), (x, draw, zero, zero)),
        (HashSample(8, column="label"), (zero, draw, zero, zero)),
    ]:
        state = statistic.observe(*columns)
        path = tmp_path / "a.sonde"
        write_state(path, {}, {"s": state})
        assert equal(read_state(path, {"s": state_type(statistic)})[1]["s"], state)


def test_half_precision_state_keeps_its_type_after_a_move(tmp_path):
    state = Part(torch.ones(3, dtype=torch.float16), 1)
    moved = map_tensors(state, lambda t: t.to("cpu", copy=True))
    assert equal(through(tmp_path / "a.sonde", moved), state)
