"""Calls that sonde refuses, each with a single thing wrong, which is stated in words beside it."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tools.refusals.further import further_cases
from torch import Tensor, nn

import sonde
from sonde import (
    Model,
    alarms,
    compress,
    detect,
    edit,
    explain,
    layers,
    measure,
    metrics,
    stats,
    train,
)  # fmt: skip
from sonde.cli.main import main as command
from sonde.core import Calibration, Site
from sonde.data import contrast, open_arrays, open_inputs
from sonde.engine import Running
from sonde.run.explaining.pairs import read_pairs
from sonde.store import Store, write_store
from sonde.store.exporting.export import export_store
from sonde.weights.unpacked_linear import StackLinear
from sonde_studies.recipes import recipe_of

Call = Callable[[], Any]
Case = tuple[str, Call]


@dataclass(frozen=True)
class Place:
    """A folder with a net, data, a store and files in which something is wrong."""

    folder: Path
    net: Model
    x: Tensor

    @classmethod
    def at(cls, folder: Path) -> "Place":
        """Return the place, with its files written."""
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
        x = torch.randn(80, 4)
        np.savez(folder / "rows.npz", site=x.numpy())
        (folder / "one.txt").write_text("words\n", encoding="utf-8")
        (folder / "bad.bin").write_bytes(b"no stack")
        (folder / "broken.jsonl").write_text('{"clean": \n', encoding="utf-8")
        (folder / "number.jsonl").write_text(
            json.dumps({"clean": "a", "corrupt": "b", "answer": 5}) + "\n", encoding="utf-8"
        )
        (folder / "bad.safetensors").write_bytes(b"\x00" * 40)
        for name in ("folder.txt", "folder.pt"):
            (folder / name).mkdir()
        torch.save({"a": object()}, folder / "object.pt")
        write_store(open_arrays(folder / "rows.npz"), folder / "store")
        return cls(folder, Model(net), x)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def cases(p: Place) -> Iterator[Case]:
    """Yield what is wrong, in words, and the call."""
    yield from _data(p)
    yield from _layers(p)
    yield from _models(p)
    yield from _figures(p)
    yield from _parameters(p)
    yield from _commands(p)
    yield from further_cases(p)


def _data(p: Place) -> Iterator[Case]:
    store = Store(p / "store")
    rows = [{"x": v, "label": i % 2} for i, v in enumerate(p.x)]
    yield "the path is a folder", lambda: open_arrays(p.folder)
    yield "there is no such path", lambda: open_arrays(p / "none.npz")
    yield "no array has this name", lambda: sonde.read("-", p / "rows.npz", sites="other")
    yield "the limit is 0", lambda: contrast(["a"], ["b"], limit=0)
    yield "one side is a sample of chunks", lambda: contrast("sonde:stdlib/train", ["b"])
    yield "the size is 0", lambda: open_inputs(p.net, rows, image_size=0)
    yield "x is one number", lambda: open_inputs(p.net, np.float64(1.0))
    none, folder = str(p / "none.txt"), str(p / "folder.txt")
    yield "names of classes do not exist", lambda: open_inputs(p.net, rows, classes=none)
    yield "names of classes are a folder", lambda: open_inputs(p.net, rows, classes=folder)
    yield "the model does not exist", lambda: sonde.load(str(p / "none.pt"))
    at = "torch.nn:Identity@"
    yield "the weights are a folder", lambda: sonde.load(f"{at}{p / 'folder.pt'}")
    yield "the weights do not exist", lambda: sonde.load(f"{at}{p / 'none.pt'}")
    yield "the weights hold an object", lambda: sonde.load(f"{at}{p / 'object.pt'}")
    yield "the weights are damaged", lambda: sonde.load(f"{at}{p / 'bad.safetensors'}")
    yield "the image does not exist", lambda: _images(str(p / "none.png"))
    yield "the image is a folder", lambda: _images(str(p.folder))
    yield "the image has NaN", lambda: _images(_grey(math.nan))
    yield "the image is too bright", lambda: _images(_grey(255.0))
    text = [{"text": "words", "a": 3, "b": 1}]
    yield (
        "a span ends before it begins",
        lambda: _read_all(sonde.read("sonde:stdlib", text, span=("a", "b"))),
    )
    yield "a span is one word", lambda: sonde.read("sonde:stdlib", text, span="a")
    yield (
        "the store has no such column",
        lambda: export_store(store, p / "rows.parquet", columns=["what"]),
    )
    yield "the data are empty", lambda: sonde.read(p.net, [])
    pets = [{"x": v, "label": "dog"} for v in p.x]
    yield "a label is unknown", lambda: open_inputs(p.net, pets, classes=["cat", "cow", "pig"])
    yield "there is no reader for this name", lambda: open_arrays(p / "one.txt")
    yield "rows are no whole numbers", lambda: store.take([0.5])
    yield "rows are a matrix", lambda: store.take([[0, 1]])
    yield "the unit size is another", lambda: store.units(7)
    yield "no site has this name", lambda: store.select(["nothing"])
    yield "a batch has no row", lambda: store.torch(batch_size=0)
    yield "the rank is the number of ranks", lambda: store.torch(rank=2, world_size=2)
    views = [{"first": v, "second": v, "label": i % 2} for i, v in enumerate(p.x)]
    yield (
        "the group column is not there",
        lambda: recipe_of("missing-view")(p.net, p.net, views, group_column="who"),
    )
    pairs = [{"before": v, "after": v + 1, "changed": i < 5} for i, v in enumerate(p.x)]
    yield "five pairs are changed", lambda: recipe_of("change-pairs")(p.net, pairs)
    yield (
        "two tasks are one",
        lambda: recipe_of("where-tasks-part")(p.net, rows, tasks=("label", "label")),
    )
    short = [{"view": v, "set": str(i), "label": 0} for i, v in enumerate(p.x)]
    yield "each thing has one view", lambda: recipe_of("view-sets")(p.net, short)


def _layers(p: Place) -> Iterator[Case]:
    plain: Any = {"1": nn.ReLU()}
    yield "the layer is no layer of sonde", lambda: layers.inserted(p.net, plain)
    yield "no layer is given", lambda: layers.inserted(p.net, {})
    gate = layers.UnitGate(4)
    attention = nn.ModuleDict({"a": nn.MultiheadAttention(4, 2)})
    yield (
        "the kernel never calls this part",
        lambda: layers.inserted(attention, {"a.out_proj": gate}),
    )
    listed = nn.Sequential(nn.ModuleList([nn.Linear(4, 4)]))
    yield "the site is a list", lambda: layers.inserted(listed, {"0": gate})
    of = layers.ConditionalNorm.of
    yield "the norm is a batch norm", lambda: of(nn.BatchNorm1d(4), 3)
    yield "the norm has two axes", lambda: of(nn.LayerNorm([2, 4]), 3)
    kind: Any = "other"
    yield "the kind is unknown", lambda: layers.SecondOrder(kind, 4)
    yield "there are no outputs", lambda: layers.SecondOrder("bilinear_heads", 4, n_outputs=0)
    yield "the heads do not divide", lambda: layers.SecondOrder("bilinear_heads", 4, heads=3)
    yield "a field has no unit", lambda: layers.UnitGate(4, "fields", fields=(4, 0))
    yield "the fields sum to 3", lambda: layers.UnitGate(4, "fields", fields=(2, 1))
    yield "the search width is 0", lambda: layers.SharedTable(2, 4, search_width=0)
    yield "states have the wrong width", lambda: gate(torch.ones(2, 5))
    yield (
        "an example has no real token",
        lambda: layers.Attention(4)(
            torch.ones(2, 3, 4), mask=torch.tensor([[1, 1, 0], [0, 0, 0]]).bool()
        ),
    )
    yield "the port does not exist", lambda: Site.parse("a:what")
    yield "the site does not exist", lambda: sonde.read(p.net, p.x, sites="nine").schema
    nested = nn.Sequential(p.net.module, nn.Sequential(nn.Linear(3, 2)))
    yield "the name fits several modules", lambda: layers.inserted(nested, {"*.0": gate})
    flat = nn.Sequential(nn.Flatten(0))
    yield "the output has no axis of features", lambda: sonde.read(flat, p.x).schema


def _models(p: Place) -> Iterator[Case]:
    net = p.net.module
    yield "the model has no stacks", lambda: compress.save_stack(p.net, p / "s.bin")
    yield "the file is another", lambda: compress.open_stack(net, p / "bad.bin")
    yield "the file does not exist", lambda: explain.load_dictionary(p / "no.safetensors")
    yield "the folder has no cfg.json", lambda: explain.load_dictionary(p.folder)
    yield "the file is no safetensors", lambda: explain.load_dictionary(p / "bad.safetensors")
    bank = train.TemplateBank(2)
    yield "weights are NaN", lambda: bank.of(_broken())
    yield "there is no linear layer", lambda: bank.of(nn.Sequential(nn.ReLU()))
    yield "the decoder has inner layers", lambda: train.InputDecoder(4, (5,)).solve(p.x, p.x)
    yield "labels are missing", lambda: train.Distil(weight=0.5)(p.x, p.x)
    yield "the other values are 3", lambda: train.Select("co_teaching")(p.x[:, 0], p.x[:3, 0])
    yield "there are no other values", lambda: train.Select("co_teaching")(p.x[:, 0])
    yield "change was never called", lambda: train.Mixup()(p.x, torch.arange(80) % 3)
    yield "the teacher is the model", lambda: _entered(sonde.training(net, {}, teacher=net))
    yield "the teacher is a word", lambda: _entered(sonde.training(net, {}, teacher="other"))
    yield "the stack has two blocks", lambda: StackLinear.use(_Blocks(2), 3)  # pyright: ignore
    router = edit.LinearRouter.reading("0", [])
    wider = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3))
    deeper = nn.Sequential(*net.children(), nn.Linear(3, 3))
    yield "an expert is wider", lambda: edit.TwinMerge().join(net, [wider], router)
    yield "an expert is deeper", lambda: edit.TwinMerge().join(net, [deeper], router)
    yield "there is no expert", lambda: edit.TwinMerge().join(net, [], router)
    one = open_inputs(p.net, p.x)
    none = one.at(np.array([], dtype=int))
    yield "one expert has no inputs", lambda: edit.LinearRouter.reading("0", [one, none])(net)
    maps = Model(nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (2, 2))).eval())
    square = open_inputs(maps, p.x)
    yield "the output is a map", lambda: compress.EarlyExit(sites=("0",)).fit(maps, square, square)
    yield "the pattern is a word", lambda: compress.PruneWeights(pattern="half")
    endless = Model(_Endless(), task="causal")
    endlessly = compress.SequenceCoder(endless, n_tokens=8, window=4)
    yield "logits are all infinite", lambda: endlessly.encode(torch.arange(4))
    yield "a patch does not exist", lambda: sonde.undo(p.folder, p / "undone")
    yield "this pattern sorts values", lambda: edit.LimitAttention("histogram:4:within")
    yield "texts of a class are missing", lambda: explain.concept_bank(p.net, {"a": []})
    yield "there is no class", lambda: explain.concept_bank(p.net, {})


def _figures(p: Place) -> Iterator[Case]:
    label, logits = torch.arange(80) % 2, torch.randn(80, 3)
    one = metrics.auroc(p.x[:, 0], label)
    other = metrics.auroc(p.x[:, 0], label, level=0.9)
    yield "the level is another", lambda: metrics.difference(one, other)
    third = metrics.auroc(p.x[:, 0], label, seed=3)
    yield "the seed is another", lambda: metrics.difference(one, third)
    cost = np.ones((2, 80))
    broken = {"cost": np.where(np.arange(80) == 3, math.nan, cost)}
    yield "a cost is NaN", lambda: metrics.choose_settings(broken, "cost")
    yield (
        "kinds are too few",
        lambda: metrics.choose_settings({"cost": cost}, "cost", kind=np.array([1, 2])),
    )
    yield "no step is given", lambda: metrics.localisation([], [], [])
    yield "two first errors in one", lambda: metrics.localisation([0.1, 0.2], [1, 1], [0, 0])
    yield "no step was flagged", lambda: metrics.step_f1([], [])
    yield "outliers with rule sum", lambda: alarms.fuse(p.x, out_of_distribution=p.x)
    rule: Any = "best"
    yield "the rule is unknown", lambda: alarms.fuse(p.x, rule=rule)
    yield (
        "labels go beyond the logits",
        lambda: detect.SHE().fit(p.x, label=label + 5, logits=logits),
    )
    yield "skip is negative", lambda: detect.FeatureGaps(skip=-1)
    yield "there is one patch", lambda: detect.FOD().fit(p.x[:2], group=[0, 1])
    yield (
        "there are more classes than allowed",
        lambda: detect.KLMatching(max_classes=2).fit(p.x, logits=logits),
    )
    yield "alpha is 2", lambda: detect.KNN().fit_predict(p.x, alpha=2.0)
    yield "the detector needs logits", lambda: detect.MSP().fit_predict(p.x)
    yield "nothing was fitted", lambda: Running(detect.PAWN()).result()
    yield "tokens are negative", lambda: compress.token_budget([1.0], [3], -1)
    yield "more tokens are kept than there are", lambda: compress.shortened(p.x[:3], [2, 1], [3, 1])
    yield "the parts sum to 2 of 3 tokens", lambda: compress.shortened(p.x[:3], [1, 1], [1, 1])
    yield "a length is no whole number", lambda: compress.shortened(p.x[:2], [1.5, 0.5], [1, 1])
    yield "columns differ in length", lambda: measure.disparity_decomposition([0], [1, 0], [0, 1])
    yield "the weight has three axes", lambda: measure.isometry_error(torch.ones(2, 3, 4))
    yield "the side is too small", lambda: measure.isometry_error(torch.ones(2, 2, 3, 3), side=2)
    rows: Any = p.x
    yield "the explanation is a tensor", lambda: explain.Deletion().judge(p.net, rows, rows)
    two = explain.Objective("logit", target=torch.tensor([0, 1]))
    yield (
        "targets are two for 80 rows",
        lambda: explain.Saliency().explain(p.net, p.x, objective=two),
    )


def _parameters(p: Place) -> Iterator[Case]:
    label = torch.arange(80) % 2
    place, image = torch.tensor([[0, 0], [0, -1]]), torch.zeros(2).long()
    near = stats.neighbour_average
    yield "a position is negative", lambda: near(p.x[:2], place, image, 3)
    yield "a position occurs twice", lambda: near(p.x[:2], 0 * place, image, 3)
    yield "there is one class", lambda: measure.neural_collapse(p.x, 0 * label)
    yield "a part lacks a class", lambda: measure.crossnobis(p.x, label, label)
    of = Calibration.from_scores
    yield "there is no held-out score", lambda: of([])
    yield "the scores are too few", lambda: of([0.1, 0.2]).threshold(0.01)
    yield "a held-out score is NaN", lambda: of([0.1, math.nan])
    yield "edges descend", lambda: stats.Histogram(torch.tensor([1.0, 0.0]))
    yield "k is odd", lambda: stats.Quantiles(k=7)
    yield (
        "the curves do not overlap",
        lambda: compress.bd_rate([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8]),
    )
    hits = edit.log_linear
    yield "hits are more than trials", lambda: hits([0.5, 2.0], [3, 9], [5, 5])
    yield "the ratios are equal", lambda: hits([2.0, 2.0], [3, 4], [5, 5])
    dictionary = explain.SparseAutoencoder
    yield "there are fewer rows than features", lambda: dictionary(features=90, k=3).fit(p.x)
    yield "k is above the features", lambda: dictionary(features=8, k=9).fit(p.x)
    diagonal: Any = ({"0": stats.Moments("diag").observe(p.x)},)
    yield "the moments are a diagonal", lambda: edit.RegMean(diagonal)


def _commands(p: Place) -> Iterator[Case]:
    def asks(*words: str) -> Call:
        return lambda: command([*words])

    rows, one = str(p / "rows.npz"), str(p / "one.txt")
    digits, text = "sonde:digits", "sonde:stdlib"
    yield "arrays are no models", asks("compare", "-", "-", rows)
    yield "the pairs are no JSON", lambda: read_pairs(p / "broken.jsonl")
    yield "the answer is a number", lambda: read_pairs(p / "number.jsonl")
    yield (
        "the budget is a word",
        asks("compress", digits, digits, "--budget", "small", "-o", str(p / "small")),
    )
    yield "the memory is 0", asks("fit", "knn", "-", rows, "--memory", "0GiB")
    yield "the rate is 2", asks("score", "x.sonde", "-", rows, "--alarm", "2")
    yield "learned without outliers", asks("score", "x.sonde", "-", rows, "--fuse", "learned")
    yield "a dictionary without features", asks("generate", text, "a", "--dictionary", one)
    yield "the temperature is 0", asks("generate", text, "a", "--temperature", "0")
    yield "the prompts do not exist", asks("generate", text, "none.txt")
    yield "the prompts are a folder", asks("generate", text, str(p / "folder.txt"))
    yield "the method is unknown", asks("fit", "nothing", "-", rows)
    yield "the methods are no list", asks("fit", "knn(", "-", rows)
    yield "there is no folder of rows", asks("evaluate", str(p / "store"), one, one)
    yield "there is no patch", asks("edit", "undo", str(p.folder), "-o", str(p / "undone"))
    yield (
        "the loss is unknown",
        asks("train", digits, digits, "--terms", "nothing@0", "-o", str(p / "trained")),
    )
    yield "the gate is not asked", asks("scan", digits, "--only", "SND001", "--fail-on", "SND002")
    yield "the page has another ending", asks("scan", digits, "-o", str(p / "page.txt"))


def _broken() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.constant_(net.get_parameter("0.weight"), math.nan)
    return net


def _entered(context: Any) -> None:
    with context:
        pass


def _read_all(stream: Any) -> None:
    for _ in stream.batches(0, len(stream)):
        pass


def _images(image: Any) -> None:
    inputs = open_inputs(sonde.load("sonde:digits"), [{"image": image}])
    for _ in inputs.batches(0, len(inputs)):
        pass


def _grey(value: float) -> Any:
    from PIL import Image

    return Image.fromarray(np.full((8, 8), value, dtype=np.float32))


class _Blocks:
    """What ``StackLinear.use`` reads of a layer."""

    def __init__(self, n: int) -> None:
        self.signs = torch.zeros(n)


class _Endless(nn.Module):
    """A causal model whose logits are infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 8)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table(input_ids) - torch.inf
