"""Further calls that sonde refuses: those that need a trained model, files or other processes."""

import json
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LongformerConfig, LongformerModel

import sonde
from sonde import Model, Stream, compress, detect, edit, explain, layers, measure, train, weights
from sonde.cli.main import main as command
from sonde.core import State
from sonde.data import open_inputs
from sonde.data.processors import PillowProcessor
from sonde.data.sentence_folder import named_stages
from sonde.engine import Running
from sonde.files.gguf import write_control_vector
from sonde.files.state_file import read_state, write_state
from sonde.run.passes._cluster import connected
from sonde.run.passes.crew import Crew
from sonde.run.watching.metrics import PrometheusMetrics
from sonde.store import write_store
from sonde.store.exporting.to_lance import lance_module
from sonde.tap import Tap, record_forward
from sonde.tap.streams.named_axes import NamedAxes
from sonde.weights.folder import ModelFolder

if TYPE_CHECKING:
    from tools.refusals.provoked import Case, Place


def further_cases(p: "Place") -> "Iterator[Case]":
    """Yield what is wrong, in words, and the call."""
    yield from _data(p)
    yield from _detectors(p)
    yield from _compressed(p)
    yield from _changed(p)
    yield from _runs(p)
    yield from _commands(p)


def _data(p: "Place") -> "Iterator[Case]":
    chats = [{"messages": [{"role": "user", "content": "a"}]}, {"messages": "b"}]
    yield "a chat is a text", lambda: _read_all(open_inputs(_chatty(), chats))
    yield "the array is a single tensor", lambda: open_inputs(p.net, torch.tensor(1.0))
    yield "the processor asks for padding", lambda: PillowProcessor.from_config({"do_pad": True})
    dense = {"in_features": 3, "out_features": 3, "activation_function": "mine.nets.Swish"}
    stage = [("Dense", dense, dict[str, Tensor], "2_Dense")]
    yield "the activation is the user's own class", lambda: named_stages(stage)
    text = [{"text": "words", "a": 4, "b": 90}]
    yield (
        "a span ends behind the text",
        lambda: _read_all(sonde.read("sonde:stdlib", text, span=("a", "b"))),
    )
    long = p / "long.jsonl"
    with long.open("wb") as file:
        file.seek(260 * 2**20)
        file.write(b"\n")
    yield "a line has 260 MiB", lambda: open_inputs(sonde.load("sonde:stdlib"), long)
    vector = p / "vector.gguf"
    write_control_vector(vector, "llama", {n: torch.ones(7) for n in (1, 2)})
    yield "the file is a control vector", lambda: sonde.load(vector)
    rows = torch.zeros(4, 2).to(torch.float8_e4m3fn)
    yield "rows are of eight bits", lambda: write_store(Stream.of(rows), p / "eight")
    yield "two words are row", lambda: NamedAxes(("row", "row"))
    yield "the data are a stream", lambda: sonde.scan(p.net, sonde.read(p.net, p.x))
    yield "the engine of a live model is another", lambda: sonde.read(p.net, p.x, engine="vllm")
    write_state(p / "a.sonde", {}, {"s": _Box(torch.zeros(1000))})
    yield (
        "the state is larger than the limit",
        lambda: read_state(p / "a.sonde", {"s": _Box}, limit_bytes=3999),
    )
    yield "the address is only read", lambda: write_store(Stream.of(p.x), "https://host/a")


def _detectors(p: "Place") -> "Iterator[Case]":
    first = np.repeat([-2, -1, -2, -1, -2, -1], 3)
    steps = {"first_error": first, "position": np.tile([0, 1, 2], 6), "group": np.arange(18) // 3}
    broken = p.x[:18].clone()
    broken[1] = math.nan
    yield (
        "a step of a trajectory is NaN",
        lambda: detect.TrajectoryVerifier().fit(broken, ids=steps["group"], **steps),
    )
    none = torch.full((80,), -1)
    head = (torch.ones(3, 4), torch.zeros(3))
    yield (
        "no row has a label",
        lambda: detect.COSTARR().fit(p.x, none, logits=p.x[:, :3], head=head),
    )
    sides = {"pair": [0, 0, 1, 1] + [2] * 76, "side": torch.tensor([0, 1, 2, 3] + [-1] * 76)}
    label = torch.where(torch.arange(80) < 4, -1, torch.arange(80) % 2)
    yield (
        "each pair of prompts has one answer",
        lambda: detect.FeatureGaps(features=2, skip=0).fit({"a": p.x, "b": p.x}, label, **sides),
    )
    yield "texts were seen once", lambda: _seen_once(p)


def _compressed(p: "Place") -> "Iterator[Case]":
    codec = compress.EntropyBottleneck(4).eval().codec()
    yield "a number is 1e30", lambda: codec.encode(torch.full((2, 4), 1e30))
    yield "the stream is another file's", lambda: codec.decode(b"PK\x03\x04 a zip file")
    yield (
        "the rank is above that of all matrices",
        lambda: compress.LowRankWeights(rank=9, whiten="none").plan(p.net),
    )
    yield (
        "no layer has this name",
        lambda: compress.PruneChannels(layers=("nine",)).plan(p.net, {"calibration": p.x}),
    )
    hands = Model(_Hands().eval())
    yield (
        "the blocks hand on what the last one made",
        lambda: compress.DropBlocks(blocks=2, replace="linear").plan(hands, {"calibration": p.x}),
    )
    texts = Model(_Pictures().eval())
    images, more = (open_inputs(texts, torch.randn(8, 4)) for _ in "ab")
    yield (
        "the answers are maps at run time",
        lambda: compress.EarlyExit(sites=("blocks.0",)).fit(texts, images, more),
    )
    lost = compress.SequenceCoder(Model(_Lost().eval(), task="causal"), n_tokens=8, window=4)
    yield "a logit is NaN", lambda: lost.encode(torch.arange(4))


def _changed(p: "Place") -> "Iterator[Case]":
    old = p / "old"
    (old / "0_Transformer").mkdir(parents=True)
    stage = {"idx": 0, "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}
    (old / "modules.json").write_text(json.dumps([stage]), encoding="utf-8")
    yield "the transformer lies in a folder of its own", lambda: ModelFolder.open(old)
    llama = sonde.load("sonde:stdlib")
    fact = edit.Fact("def main", "main", "(")
    path = "model.layers.0.mlp"
    yield "the layer is a whole MLP", lambda: edit.RankOneEdit(fact, path).plan(llama, None)
    one, both = {"input_ids": torch.tensor([[1, 2]])}, torch.ones(1, 2).long()
    two = one | {"attention_mask": both}
    patch = explain.ActivationPatching
    limited = edit.LimitAttention("stripes", grid=(3, 5))
    three = layers.Attention(6, 3)
    yield "the edited attention has three heads", lambda: _limited(three, limited)
    yield "one side has a mask", lambda: patch().explain(llama, one, corrupt=two)
    dictionary = explain.SparseAutoencoder(features=8, k=2, passes=1).fit(p.x)
    dictionary.save(p / "d.safetensors")
    about = {"format": "sonde-dictionary/1", "value": None, "n": 3}
    save_file(load_file(p / "d.safetensors"), p / "e.safetensors", {"sonde": json.dumps(about)})
    yield "the dictionary lacks its act", lambda: explain.load_dictionary(p / "e.safetensors")
    attention = layers.Attention(192, 2)
    yield "a step of generation", lambda: _generated(llama, attention)
    stripes = layers.Attention(6, 3, "stripes", grid=(3, 5))
    yield "three heads are striped", lambda: stripes(torch.zeros(1, 15, 6))
    yield "the model has many attentions", lambda: sonde.read(llama, ["a b"], sites=":heads").schema
    recorded = record_forward(p.net, p.x)
    yield "the third call of one", lambda: recorded.from_site("0@3", torch.ones(80, 6))
    yield "the module never ran", lambda: record_forward(_Idle(), p.x).from_site("idle", p.x)
    square = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (2, 2)), nn.Identity())
    yield "the axis is that of the rows", lambda: _axis(square, p.x, 0)
    yield "no module says which axis", lambda: _tapped(nn.Sequential(_Products()), p.x)
    yield "a model of windows is given embeddings", _embedded
    frozen = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).requires_grad_(False)
    yield "all parameters are frozen", lambda: _trained(frozen, p.x)
    yield "no batch is given", lambda: _evaluated(nn.Sequential(nn.Linear(4, 4)), p.x)
    coded = nn.Sequential(nn.Linear(4, 4))
    coded[0].weight = nn.Parameter(torch.ones(4, 4).as_subclass(_Coded))
    yield "a weight is of the user's class", lambda: weights.dequantised(coded)
    shifted = nn.Sequential(nn.Linear(4, 4), _Shifted())
    yield "a constant is added", lambda: weights.residual_writers(shifted, p.x, "1")
    yield "the edited folder was changed", lambda: _changed_since(p)


def _runs(p: "Place") -> "Iterator[Case]":
    few = _of_groups(p, range(2, 7), 1)
    shared = _of_groups(p, [*range(2, 7), *range(20, 50)], 2)
    yield "a group is held out in one bundle", lambda: sonde.merge(few, shared)
    maps = nn.Sequential(nn.Conv2d(1, 4, 1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)).eval()
    images = list(torch.randn(6, 1, 8, 8))
    patches = sonde.read(maps, images, sites=["0", "2"], reducer="patches")
    yield "the grids differ", lambda: sonde.fit(measure.LayerCKA(), patches, progress=False)
    yield "no Ray answers there", lambda: _connected(Crew(runner="ray", address="127.0.0.1:9"))
    deep = p / ("a" * 90)
    deep.mkdir()
    yield "the path of Ray's sockets is too long", lambda: _connected_in(deep)
    yield "what workers write is deleted at once", lambda: _fitted_and_deleted(p)
    folder = p / "images"
    for i in range(12):
        (folder / str(i % 2)).mkdir(parents=True, exist_ok=True)
        _picture(i).save(folder / str(i % 2) / f"{i}.png")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    images = sonde.read(net, folder, image_size=8, image_mean=0.5, image_std=0.5)
    probe = sonde.fit(detect.Mahalanobis(), images, progress=False)
    yield (
        "images have another mean",
        lambda: sonde.score(probe, net, folder, image_size=8, image_mean=0.0, progress=False),
    )
    with _hidden("prometheus_client"):
        yield "prometheus-client is not there", PrometheusMetrics
    with _hidden("lance"):
        yield "Lance is not there", lance_module


def _commands(p: "Place") -> "Iterator[Case]":
    def asks(*words: str) -> Any:
        return lambda: command([*words])

    rows, digits = str(p / "rows.npz"), "sonde:digits"
    yield "groups and each input", asks("score", "x.sonde", "-", rows, "--group", "a", "--each")
    gradients = ("--measures", "gradient_conflict")
    yield "a measure takes gradients", asks("scan", digits, digits, *gradients)
    yield (
        "the loss needs a student",
        asks(
            *("train", digits, digits, "--terms", "structured_transfer"),
            *("--sites", "blocks.0", "-o", str(p / "t")),
        ),
    )


def _chatty() -> Model:
    model = sonde.load("sonde:stdlib")
    model.processor.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return model


def _read_all(stream: Any) -> None:
    for _ in stream.batches(0, len(stream)):
        pass


@dataclass(frozen=True)
class _Box(State):
    x: Tensor


def _seen_once(p: "Place") -> None:
    running = Running(detect.PAWN(features=4, gates=4, hidden=4))
    text = torch.arange(5).repeat_interleave(8) % 2
    scores = torch.rand(40, 7)
    running.update({"a": p.x[:40], "b": scores}, text, position=torch.arange(8).repeat(5))
    running.result()


def _generated(model: Model, layer: Any) -> None:
    ids = torch.tensor([[1, 2, 3]])
    with sonde.editing(model, layer.as_edit(), "model.layers.0"):
        model.module.generate(ids, max_new_tokens=2)  # pyright: ignore


def _limited(layer: nn.Module, change: edit.LimitAttention) -> None:
    with sonde.editing(layer, change, ":probs"):
        layer(torch.zeros(1, 15, 6))


def _axis(net: nn.Module, x: Tensor, axis: int) -> None:
    _ = sonde.read(net, x, sites="1", reducer=sonde.Reducer("mean", axis=axis)).schema


def _tapped(net: nn.Module, x: Tensor) -> None:
    with Tap(net, ["0"], "mean") as tap:
        net(x)
        _ = tap.rows


def _embedded() -> None:
    config = LongformerConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=30,
        intermediate_size=32, attention_window=8, max_position_embeddings=80,
    )  # fmt: skip
    model = Model(LongformerModel(config).eval(), config=config, task="encoder")
    with Tap(model, ["encoder.layer.0"], "mean") as tap:
        model.module(inputs_embeds=torch.zeros(1, 5, 16))
        _ = tap.rows


def _trained(net: nn.Module, x: Tensor) -> None:
    with sonde.training(net, {"0": train.RateReduction()}) as terms:
        net(x)
        terms.loss(label=torch.arange(len(x)) % 2)


def _evaluated(net: nn.Module, x: Tensor) -> None:
    with sonde.training(net, {"0": train.RateReduction()}) as terms:
        terms.evaluate([])


def _changed_since(p: "Place") -> None:
    model = sonde.load("sonde:digits", dtype="float32")
    name = next(n for n, w in model.module.state_dict().items() if "mlp" in n and w.ndim > 1)
    plan = weights.RewritePlan.of(model, {name: weights.LowRank(*_thin(model, name))})
    plan.save(model, p / "edited")
    weights_file = next((p / "edited").glob("*.safetensors"))
    save_file(load_file(weights_file), weights_file, {"format": "pt", "by": "me"})
    sonde.undo(p / "edited", p / "undone")


def _thin(model: Model, name: str) -> tuple[Tensor, Tensor]:
    n, m = model.module.state_dict()[name].shape
    return torch.ones(n, 1), torch.ones(1, m)


def _of_groups(p: "Place", names: Iterable[int], seed: int) -> Any:
    group = [f"{i}" for i in names for _ in range(12)]
    x = torch.randn(len(group), 5, generator=torch.Generator().manual_seed(seed))
    return sonde.fit(detect.Mahalanobis(), Stream.of(x, group=group), progress=False)


def _connected(crew: Crew) -> None:
    with connected(crew, 1):
        pass


def _connected_in(folder: Path) -> None:
    held = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        _connected(Crew(runner="ray"))
    finally:
        tempfile.tempdir = held


def _fitted_and_deleted(p: "Place") -> None:
    """Fit with two workers, while a thread deletes the states that they write."""
    directory, is_over = p / "deleted.run", Event()

    def delete() -> None:
        while not is_over.wait(0.002):
            for path in directory.glob("states/*.sonde"):
                path.unlink(missing_ok=True)

    thread = Thread(target=delete)
    thread.start()
    try:
        method = measure.ParticipationRatio()
        sonde.fit(method, Stream.of(p.x), progress=False, workers=2, directory=str(directory))
    finally:
        is_over.set()
        thread.join()


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Let a package fail to import, as where it is not installed."""
    held = {n: sys.modules.pop(n) for n in list(sys.modules) if n.partition(".")[0] == package}
    sys.modules[package] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules[package]
        sys.modules.update(held)


class _Hand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, x: Tensor, more: Tensor) -> Any:
        return x + self.map(x), 2 * more


class _Hands(nn.Module):
    """Blocks that hand on a second tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_Hand() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        more = torch.ones_like(x)
        for block in self.blocks:
            x, more = block(x, more)
        return x + more


class _Pictures(nn.Module):
    """Blocks whose answers are maps for some rows."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x[:, :, None]


class _Lost(nn.Module):
    """A causal model whose logits are NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 8)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table(input_ids) * math.nan


class _Idle(nn.Module):
    """A module that has a part that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def _picture(shade: int) -> Image.Image:
    return Image.fromarray(np.full((9, 9), 20 * shade, dtype=np.uint8))


class _Products(nn.Module):
    """Products of all triples of units."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, None, None] * x[:, None, :, None] * x[:, None, None]


class _Coded(Tensor):
    """A tensor that does not say how it becomes plain."""


class _Shifted(nn.Module):
    """A block that adds a constant that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)
        self.constant = nn.Buffer(torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.map(x) + self.constant
