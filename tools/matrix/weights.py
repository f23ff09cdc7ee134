"""Weights that are no plain tensors: every kind against every job, on a small net.

``python -m tools.matrix --weights`` prints the table; with ``--write`` it writes the page. Each job
is done by sonde, and again by torch's own hooks on the same net.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tools.matrix.jobs import Senseless, Wrong, check_equal, words
from tools.matrix.table import REFUSED, RIGHT, SENSELESS, WRONG, Cell, reasons, summary, table
from torch import Tensor, nn

import sonde
from sonde.compress import RTN
from sonde.core.edit import Add
from sonde.detect import Mahalanobis
from sonde.explain import GradTimesInput, Objective
from sonde.layers import Adapter
from sonde.measure import ParticipationRatio
from sonde.train import RateReduction
from sonde.weights import dequantised, fold_edit

PAGE = Path(__file__).parents[2] / "docs" / "matrix_weights.md"
PLACE = "2"
"""The layer whose weight is of the kind."""
SITE = f"{PLACE}:out"
COARSE = 0.05
"""Largest change of answers by eight bits, as a share of the largest answer."""


class SparseLinear(nn.Module):
    """A layer whose weight is a sparse COO tensor, which ``nn.Linear`` cannot multiply by.

    Parameters
    ----------
    layer : nn.Linear
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().to_sparse(), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the product plus the bias."""
        return torch.sparse.mm(self.weight, x.T).T + self.bias


class Int8(Tensor):
    """A weight of 8 bits with a scale for each row, which dequantises itself for every operation.

    Built like the quantised tensors of torchao, which are tried too if torchao is installed: codes
    and scales inside, ``dequantize``.
    """

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> "Int8":
        """Return a wrapper of the shape of the codes."""
        made: Any = Tensor._make_wrapper_subclass  # pyright: ignore[reportAttributeAccessIssue]
        self = made(cls, codes.shape, dtype=scale.dtype, device=codes.device)
        self.codes, self.scale = codes, scale
        return self

    @classmethod
    def of(cls, x: Tensor) -> "Int8":
        """Return the rounded tensor."""
        scale = x.abs().amax(1, keepdim=True) / 127
        return cls((x / scale).round().to(torch.int8), scale)

    def dequantize(self) -> Tensor:
        """Return the plain tensor."""
        return self.codes.to(self.scale.dtype) * self.scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Return the names of the inner tensors."""
        return ["codes", "scale"], None

    @classmethod
    def __tensor_unflatten__(
        cls, inner: dict[str, Tensor], _meta: None, _size: Any, _stride: Any
    ) -> "Int8":
        return cls(inner["codes"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(func(args[0].codes), func(args[0].scale))
        plain = [a.dequantize() if isinstance(a, cls) else a for a in args]
        return func(*plain, **(kwargs or {}))


def plain_net() -> Any:
    """Return the net before any conversion."""
    draw = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for x in net.parameters():
            x.copy_(torch.randn(x.shape, generator=draw))
    return net.eval()


def _with_weight(change: Callable[[Tensor], Tensor]) -> Any:
    net = plain_net()
    layer = net.get_submodule(PLACE)
    layer.weight = nn.Parameter(change(layer.weight.detach()), requires_grad=False)
    return net


def _sparse() -> Any:
    net = plain_net()
    net[int(PLACE)] = SparseLinear(net[int(PLACE)])
    return net


def _packed() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # torch warns that gradients end at such a layer
        return torch.ao.quantization.quantize_dynamic(plain_net(), {PLACE}, dtype=torch.qint8)


def _lazy() -> Any:
    net = plain_net()
    net[int(PLACE)] = nn.LazyLinear(8)
    return net


def _meta() -> Any:
    net = plain_net()
    net[int(PLACE)] = nn.Linear(8, 8, device="meta")
    return net


def _distributed() -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, distribute_module

    def given(_m: nn.Module, args: Any, mesh: Any) -> Any:
        return (DTensor.from_local(args[0], mesh), *args[1:])

    def handed_on(_m: nn.Module, out: Any, _mesh: Any) -> Any:
        return out.to_local()

    mesh, net = init_device_mesh("cpu", (1,)), plain_net()
    distribute_module(net.get_submodule(PLACE), mesh, input_fn=given, output_fn=handed_on)
    return net


def _torchao() -> dict[str, Callable[[], Any]]:
    """Return kinds of weights of torchao, if it is installed."""
    if find_spec("torchao") is None:
        return {}
    quantization: Any = import_module("torchao.quantization")
    configs = {
        "torchao int8": quantization.Int8WeightOnlyConfig(),
        "torchao int8, inputs too": quantization.Int8DynamicActivationInt8WeightConfig(),
        "torchao float8": quantization.Float8WeightOnlyConfig(),
        "torchao intx": quantization.IntxWeightOnlyConfig(weight_dtype=torch.int8),
    }

    def converted(config: Any) -> Any:
        net = plain_net()
        quantization.quantize_(net, config, filter_fn=lambda _module, name: name == PLACE)
        return net

    return {name: partial(converted, config) for name, config in configs.items()}


KINDS: dict[str, Callable[[], Any]] = {
    "float32": plain_net,
    "quantize_dynamic": _packed,
    "subclass with dequantize": lambda: _with_weight(Int8.of),
    "sparse CSR": lambda: _with_weight(Tensor.to_sparse_csr),
    "sparse COO": _sparse,
    "DTensor, one rank": _distributed,
    "lazy, never run": _lazy,
    "meta": _meta,
    **_torchao(),
}
ROWS = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
OTHERS = torch.randn(16, 6, generator=torch.Generator().manual_seed(2))
LABELS = torch.arange(48) % 3


def states(net: Any, rows: Tensor, path: str = PLACE) -> Tensor:
    """Return the outputs of a layer by a hook of torch."""
    found: list[Tensor] = []
    handle = net.get_submodule(path).register_forward_hook(lambda _m, _a, y: found.append(y))
    try:
        net(rows)
    finally:
        handle.remove()
    return found[0]


def answers(net: Any, rows: Tensor = ROWS) -> Tensor:
    """Return the answers, without gradients."""
    with torch.no_grad():
        return net(rows)


def _hooked(net: Any, change: Callable[[Tensor], Tensor]) -> Tensor:
    handle = net.get_submodule(PLACE).register_forward_hook(lambda _m, _a, y: change(y))
    try:
        return answers(net)
    finally:
        handle.remove()


def _stream(net: Any, rows: Tensor = ROWS) -> Any:
    return sonde.read(net, {"x": rows, "y": LABELS[: len(rows)]}, PLACE)


def read(net: Any) -> None:
    """Read a layer: rows are those of a hook."""
    found = torch.cat([b.rows[SITE] for b in _stream(net)])
    check_equal(found, states(net, ROWS).detach(), "rows")


def fit(net: Any) -> None:
    """Fit a measure: its value is that of the rows of a hook."""
    fitted = sonde.fit([ParticipationRatio()], _stream(net), calibrate=0, progress=False)
    found = fitted.result("participation_ratio", SITE).value
    values = torch.linalg.svdvals(
        (rows := states(net, ROWS).detach().double()) - rows.mean(0)
    ).square()
    check_equal(torch.tensor(float(found)), values.sum() ** 2 / values.square().sum(), "value")


def score(net: Any) -> None:
    """Score other rows by a fitted detector: as the detector does with rows of hooks."""
    probe = sonde.fit([Mahalanobis()], _stream(net), calibrate=0, progress=False)
    scored = sonde.score(probe, _stream(net, OTHERS), progress=False).sort_by("row")
    labelled = Mahalanobis().fit(states(net, ROWS).detach(), label=LABELS)
    found = torch.tensor(scored["score"].to_pylist())
    check_equal(found, labelled.score(states(net, OTHERS).detach()), "scores", 1e-3)


def scan(net: Any) -> None:
    """Scan: its accuracy is that of own answers."""
    labels = (answers(net).argmax(1) + (torch.arange(len(ROWS)) % 5 == 0)) % 3
    report = sonde.scan(net, {"x": ROWS, "y": labels}, sites=PLACE, progress=False).json()
    (site,) = report["sites"]
    if (site["n_rows"], site["dim"]) != (48, 8):
        raise Wrong(f"{site['n_rows']} rows of {site['dim']} numbers")
    found = report["answers"]["value"]
    expected = (answers(net).argmax(1) == labels).double().mean()
    check_equal(torch.tensor(float(found)), expected, "accuracy")


def edit(net: Any) -> None:
    """Add a direction to the outputs: as a hook does, and nothing afterwards."""
    direction = torch.ones(8)
    with sonde.editing(net, Add(direction), PLACE):
        found = answers(net)
    check_equal(found, _hooked(net, lambda y: y + direction), "edited")
    check_equal(answers(net), _hooked(net, lambda y: y), "after the edit", 0.0)


def fold(net: Any) -> None:
    """Fold the direction into the weights: as the hook does."""
    new = fold_edit(net, Add(torch.ones(8)), PLACE, inputs=ROWS).fold(net)
    check_equal(answers(new), _hooked(net, lambda y: y + 1), "folded")


def explain(net: Any) -> None:
    """Explain the first class: gradient times input by torch."""
    found = GradTimesInput().explain(net, ROWS[:4], objective=Objective(target=0))
    x = ROWS[:4].clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(x)[:, 0].sum(), x, allow_unused=True)
    if slope is None and "unused" in found.flags:
        raise Senseless
    check_equal(torch.as_tensor(found.value), torch.zeros_like(x) if slope is None else
                slope * x.detach(), "attributions")  # fmt: skip


def insert(net: Any) -> None:
    """Insert an adapter: the identity at first, gone without a trace."""
    new = sonde.inserted(net, {PLACE: Adapter(8, 2)})
    check_equal(answers(getattr(new, "module", new)), answers(net), "at the start")
    bare = sonde.removed(new)
    check_equal(answers(getattr(bare, "module", bare)), answers(net), "removed", 0.0)


def train(net: Any) -> None:
    """Attach a loss to the layer: value and gradient of the first layer are those of a hook."""
    with sonde.training(net, {PLACE: RateReduction()}) as terms:
        net(ROWS)
        loss = terms.loss(label=LABELS)
        loss.backward()
    found = net.get_parameter("0.weight").grad
    net.zero_grad()
    expected = RateReduction()(states(net, ROWS), LABELS)
    check_equal(loss.detach(), expected.detach(), "loss")
    expected.backward()
    wanted = net.get_parameter("0.weight").grad
    if wanted is None and found is None:
        raise Senseless
    if wanted is None or found is None:
        raise Wrong("gradient on one side alone")
    check_equal(found, wanted, "gradient", 1e-3)


def compress(net: Any) -> None:
    """Round linear layers to eight bits: answers change by at most 5 % of the largest."""
    new = RTN(bits=8, group=0).plan(net).fold(net)
    check_equal(answers(new), answers(net), "rounded", COARSE)


def dequantise(net: Any) -> None:
    """Turn the weights into plain ones: answers change by at most 5 % of the largest."""
    new = dequantised(net).module
    check_equal(answers(new), answers(net), "dequantised", COARSE)


JOBS: dict[str, Callable[[Any], None]] = {
    f.__name__: f
    for f in (read, fit, score, scan, edit, fold, explain, insert, train, compress, dequantise)
}


def _own_error(kind: str) -> str:
    """Return the error of a net that torch alone cannot run."""
    try:
        answers(KINDS[kind]())
    except Exception as error:
        return f"{type(error).__name__}: {words(error)}"
    return ""


def tried(kind: str, job: str) -> Cell:
    """Return what came of a job on a net whose middle layer has a weight of a kind."""
    said, verdict, own = "", RIGHT, _own_error(kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            JOBS[job](KINDS[kind]())
    except sonde.SondeError as error:
        said, verdict = f"{type(error).__name__}: {words(error)}", REFUSED
    except Senseless:
        verdict = SENSELESS
    except Wrong as error:
        said, verdict = words(error), WRONG
    except Exception as error:
        said, verdict = f"{type(error).__name__}: {words(error)}", WRONG
        if said == own:
            said, verdict = "", SENSELESS
    return Cell(kind, job, verdict, said)


@contextmanager
def one_rank() -> Iterator[None]:
    """Make this process the only rank of a group, which distributed tensors need."""
    if torch.distributed.is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="sonde-matrix-") as place:
        store = f"file://{place}/store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()


def weight_cells() -> list[Cell]:
    """Return every kind with every job."""
    with one_rank():
        return [tried(kind, job) for kind in KINDS for job in JOBS]


def weights_page(cells: list[Cell]) -> str:
    """Return the page."""
    has_torchao = any(name.startswith("torchao") for name in KINDS)
    of_torchao = f" (torchao {version('torchao')})" if has_torchao else ""
    about = [f"| {name} | {str(job.__doc__).splitlines()[0]} |" for name, job in JOBS.items()]
    return (
        "# Weights that are no plain tensors\n\n"
        "`python -m tools.matrix --weights --write` gives the middle layer of a net of three "
        "linear layers a\nweight of each kind, does each job by sonde and again by torch, and "
        f"writes this page.\n\n{summary(cells).partition(';')[0]}{of_torchao}.\n\n"
        "✓: equal. A number: refused with the reason below. –: torch alone has no answer,\n"
        "or no gradient.\n\n"
        "| job | what is compared |\n|---|---|\n"
        + "\n".join(about)
        + "\n\n"
        + table(cells).replace("| architecture |", "| kind |", 1)
        + "\n\n## Why jobs were refused\n\n"
        + reasons(cells)
        + "\n"
    )
