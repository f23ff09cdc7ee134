"""Weights that are no plain tensors: read and fitted as they are, changed only once plain."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import sonde
from narrow import expect
from sonde.compress import GPTQ, RTN
from sonde.core import InputError, SiteError
from sonde.detect import Mahalanobis
from sonde.tap import fingerprint
from sonde.weights import dequantised

ROWS = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))


class Times(nn.Module):
    """A layer whose weight may be sparse."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x):
        return (self.weight @ x.T).T


class Halved(Tensor):
    """Wraps half of a tensor's numbers, as the subclasses of torchao wrap their codes."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, n: int) -> "Halved":
        shape = torch.Size((n, *inner.shape[1:]))
        return Tensor._make_wrapper_subclass(cls, shape, dtype=inner.dtype)  # type: ignore[attr-defined]

    def __init__(self, inner: Tensor, n: int) -> None:
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    def dequantize(self) -> Tensor:
        return torch.cat([self.inner, -self.inner])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        plain = [x.dequantize() if isinstance(x, Halved) else x for x in args]
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return Halved(args[0].inner.clone(), len(args[0]))
        return func(*plain, **(kwargs or {}))


def net(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    first, last = nn.Linear(8, 6, bias=False), nn.Linear(6, 3)
    weight = first.weight.detach() * (first.weight.detach().abs() > 0.1)
    if kind == "dynamic":
        plain = nn.Sequential(first, nn.ReLU(), last).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)
    made = {
        "sparse_csr": weight.to_sparse_csr,
        "sparse_coo": weight.to_sparse,
        "Halved": lambda: Halved(weight[:3], 6),
    }[kind]()
    return nn.Sequential(Times(made), nn.ReLU(), last).eval()


@pytest.mark.truth("the same layers with plain weights")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("sparse_csr", "got 0.weight as sparse_csr"),
        ("sparse_coo", "got 0.weight as sparse_coo"),
        ("Halved", "got 0.weight as Halved"),
        ("dynamic", "_packed_params as packed weights"),
    ],
)
def test_converted_weights_are_read_and_hashed_and_changed_once_plain(kind, said):
    model = net(kind)
    stream = sonde.read(model, ROWS, sites="0", check=False)
    probe = sonde.fit(Mahalanobis(), stream, calibrate=0, progress=False)
    sonde.Guard(model, probe, alpha=None)
    with pytest.raises(sonde.core.StateError, match="another model"):
        sonde.Guard(net(kind, seed=1), probe, alpha=None)
    if kind != "dynamic":  # its weights are no tensors of the module
        assert fingerprint(model) == fingerprint(net(kind)) != fingerprint(net(kind, seed=1))
    for rewrite in (RTN(bits=4), GPTQ(bits=4)):
        with pytest.raises(InputError, match=said):
            rewrite.plan(model, dict.fromkeys(rewrite.reads(), ROWS))
    plain = dequantised(model)
    torch.testing.assert_close(plain.module(ROWS), model(ROWS), atol=0.03, rtol=0.05)
    assert len(RTN(bits=4).plan(plain).changes) > 0
    assert type(expect(Tensor, next(plain.module.parameters())).data) is Tensor


def test_a_weight_that_does_not_say_how_it_becomes_plain_is_refused_by_name():
    class Coded(Tensor):
        pass

    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4).as_subclass(Coded))
    with pytest.raises(InputError, match=r"got 0.weight as Coded"):
        dequantised(nn.Sequential(layer))


def test_weights_without_values_are_refused_by_name():
    with pytest.raises(SiteError, match=r"got 0.weight on the device 'meta'"):
        next(iter(sonde.read(nn.Sequential(nn.Linear(8, 2)).to("meta"), ROWS, sites="0")))
    with pytest.raises(InputError, match=r"got 0.weight of a lazy layer"):
        RTN().plan(nn.Sequential(nn.LazyLinear(3)))
