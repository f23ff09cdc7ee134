"""Which axis of an output holds features: what made it tells, never a size found elsewhere."""

import pytest
import torch
from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.core.inputs import Model
from sonde.core.site import Reducer
from sonde.run.reading.read import read
from sonde.tap import Tap, live_stream
from tap_inputs import Arrays


class Fixed(nn.Module):
    """Runs its body at one size only, so that no other size tells; its bias has any length."""

    def __init__(self, body: nn.Module, shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.body, self.shape = body, shape
        self.unrelated = nn.ParameterList([nn.Parameter(torch.zeros(n)) for n in sizes])

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.shape:
            raise ValueError("wrong size")
        return self.body(x)


class Turned(nn.Module):
    """Exchanges the two last axes; ``copied`` leaves no view behind."""

    def __init__(self, copied: bool = False) -> None:
        super().__init__()
        self.copied = copied

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        return x.contiguous() + 0 if self.copied else x


class Scaled(nn.Module):
    """A norm of somebody's own: one weight a feature, in the last axis."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True) * self.weight


class ChannelNorm(nn.LayerNorm):
    """Inherits from a norm of the last axis, works on the first."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1) * 1


class Added(nn.Module):
    """A residual block without a weight of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(dim), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.norm(x)).relu()


class First(nn.Module):
    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return x[0]


def linear(*more: nn.Module, bias: bool = False, dim: int = 32) -> nn.Module:
    return nn.Sequential(nn.Linear(6, dim, bias=bias), *more)


def conv1(*more: nn.Module, bias: bool = False, dim: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv1d(6, dim, 3, padding=1, bias=bias), *more)


def conv2(*more: nn.Module, bias: bool = False, dim: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, dim, 3, padding=1, bias=bias), *more)


def conv3(*more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv3d(3, 8, 1, bias=False), *more)


STEPS, SQUARE, LINE, IMAGE, VIDEO = (10, 6), (32, 6), (6, 10), (3, 16, 12), (3, 4, 6, 8)
LAST, SIGNAL = "row patch dim", "row dim patch"
MAP, CLIP = "row dim h w", "row dim t h w"
TABLE = {
    "Linear": (linear(), STEPS, LAST),
    "Linear, bias": (linear(bias=True), STEPS, LAST),
    "Linear, square": (linear(), SQUARE, LAST),
    "Linear, ReLU": (linear(nn.ReLU()), STEPS, LAST),
    "Linear, ReLU, square": (linear(nn.ReLU(inplace=True)), SQUARE, LAST),
    "Linear, GELU, Dropout": (linear(nn.GELU(), nn.Dropout()), STEPS, LAST),
    "Linear, Softmax": (linear(nn.Softmax(1)), STEPS, LAST),
    "Linear, LayerNorm": (linear(nn.LayerNorm(32)), STEPS, LAST),
    "Linear, LayerNorm of two axes": (linear(nn.LayerNorm([10, 32])), STEPS, LAST),
    "LayerNorm without weights": (linear(nn.LayerNorm(32, elementwise_affine=False)), SQUARE, LAST),
    "RMSNorm": (linear(nn.RMSNorm(32)), SQUARE, LAST),
    "own norm": (linear(Scaled(32)), STEPS, LAST),
    "residual": (linear(Added(32)), STEPS, LAST),
    "residual, square": (linear(Added(32)), SQUARE, LAST),
    "pooled features": (linear(nn.AvgPool1d(2)), STEPS, LAST),
    "padded steps": (linear(nn.ZeroPad2d((0, 0, 1, 0))), STEPS, LAST),
    "LSTM": (nn.Sequential(nn.LSTM(6, 32, batch_first=True), First()), SQUARE, LAST),
    "GRU": (nn.Sequential(nn.GRU(6, 12, batch_first=True), First()), STEPS, LAST),
    "RNN, no bias, square": (
        nn.Sequential(nn.RNN(6, 10, batch_first=True, bias=False), First()), STEPS, LAST,
    ),
    "Transformer layer": (
        linear(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)), SQUARE, LAST,
    ),
    "turned": (linear(Turned()), STEPS, SIGNAL),
    "turned, square": (linear(Turned()), SQUARE, SIGNAL),
    "turned, square, ReLU": (linear(Turned(), nn.ReLU()), SQUARE, SIGNAL),
    "turned and copied, square": (linear(Turned(copied=True)), SQUARE, SIGNAL),
    "turned, Conv1d": (linear(Turned(), nn.Conv1d(32, 10, 1, bias=False)), STEPS, SIGNAL),
    "Unflatten of steps": (linear(nn.Unflatten(1, (2, 5))), STEPS, "row h w dim"),
    "Conv1d": (conv1(), LINE, SIGNAL),
    "Conv1d, bias, square": (conv1(bias=True, dim=10), LINE, SIGNAL),
    "ConvTranspose1d": (conv1(nn.ConvTranspose1d(8, 10, 1)), LINE, SIGNAL),
    "Conv1d, BatchNorm1d": (conv1(nn.BatchNorm1d(8)), LINE, SIGNAL),
    "Conv1d, InstanceNorm1d, ReLU": (conv1(nn.InstanceNorm1d(8), nn.ReLU()), LINE, SIGNAL),
    "Conv1d, square, MaxPool1d": (conv1(nn.ReLU(), nn.MaxPool1d(2), dim=10), LINE, SIGNAL),
    "Conv1d, Upsample": (conv1(nn.Upsample(scale_factor=2)), LINE, SIGNAL),
    "Conv1d, turned": (conv1(Turned()), LINE, LAST),
    "Conv1d, turned and copied, square": (conv1(Turned(copied=True), dim=10), LINE, LAST),
    "Conv2d": (conv2(), IMAGE, MAP),
    "Conv2d, bias": (conv2(bias=True), IMAGE, MAP),
    "Conv2d, square": (conv2(dim=16), IMAGE, MAP),
    "Conv2d, InstanceNorm2d, ReLU": (conv2(nn.InstanceNorm2d(8), nn.ReLU()), IMAGE, MAP),
    "Conv2d, BatchNorm2d, GELU": (conv2(nn.BatchNorm2d(8), nn.GELU()), IMAGE, MAP),
    "Conv2d, GroupNorm, SiLU": (conv2(nn.GroupNorm(2, 8, affine=False), nn.SiLU()), IMAGE, MAP),
    "Conv2d, LocalResponseNorm": (conv2(nn.LocalResponseNorm(2)), IMAGE, MAP),
    "Conv2d, PReLU": (conv2(nn.PReLU(8)), IMAGE, MAP),
    "Conv2d, AdaptiveAvgPool2d": (conv2(nn.AdaptiveAvgPool2d(8)), IMAGE, MAP),
    "Conv2d, MaxPool2d, Dropout2d": (conv2(nn.MaxPool2d(2), nn.Dropout2d()), IMAGE, MAP),
    "Conv2d, PixelShuffle": (conv2(nn.PixelShuffle(2)), IMAGE, MAP),
    "Conv2d, padding": (conv2(nn.ReflectionPad2d(1)), IMAGE, MAP),
    "Conv2d, norm of channels": (conv2(ChannelNorm(8)), IMAGE, MAP),
    "Conv2d, patches": (conv2(nn.Flatten(2)), IMAGE, SIGNAL),
    "Conv2d, patches turned": (conv2(nn.Flatten(2), Turned()), IMAGE, LAST),
    "Unfold": (nn.Sequential(nn.Unfold(4, stride=4)), IMAGE, SIGNAL),
    "Conv3d, BatchNorm3d": (conv3(nn.BatchNorm3d(8)), VIDEO, CLIP),
    "ConvTranspose3d": (conv3(nn.ConvTranspose3d(8, 4, 1, bias=False)), VIDEO, CLIP),
    "Conv3d, MaxPool3d": (conv3(nn.ReLU(), nn.MaxPool3d(2)), VIDEO, CLIP),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.truth("the documented layout of each class")
def test_golden_table_of_feature_axes(name):
    body, shape, want = TABLE[name]
    net = Fixed(body, shape, sizes=(10, 12, 16, 33)).eval()
    last = f"body.{len(list(body.children())) - 1}"
    stream = live_stream(Model(net), Arrays(torch.randn(3, *shape)), [last, "body"], "mean")
    assert {s.key: s.axes for s in stream.schema} == {f"{last}:out": want, "body:out": want}


@pytest.mark.truth("the layers, written out")
def test_a_linear_layer_over_steps_has_its_outputs_as_features():
    net = nn.Sequential(nn.Linear(6, 32, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(320, 10))
    x = torch.randn(4, 10, 6)
    stream = live_stream(Model(net), Arrays(x), ["0", "1"], "mean")
    assert [(s.axes, s.dim) for s in stream.schema] == [("row patch dim", 32)] * 2
    (batch,) = stream.batches(0, 4)
    torch.testing.assert_close(batch.rows["1:out"], net[:2](x).detach().mean(1))


@pytest.mark.truth("channels are the first axis of convolutions")
def test_mel_bins_are_no_features():
    def block(i: int, o: int) -> nn.Module:
        conv = nn.Conv2d(i, o, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.InstanceNorm2d(o), nn.ReLU(), nn.MaxPool2d((1, 2)))

    blocks = nn.Sequential(block(1, 8), block(8, 16), block(16, 32))
    net = nn.Sequential(
        blocks, nn.Flatten(2), nn.Linear(40 * 3, 40), nn.Flatten(), nn.Linear(1280, 5)
    )
    stream = live_stream(Model(net.eval()), Arrays(torch.randn(2, 1, 40, 24)), "auto", "mean")
    found = [(s.axes, s.dim) for s in stream.schema if s.key.startswith("0.")]
    assert found == [("row dim h w", d) for d in (8, 16, 32)]


class Plain(nn.Module):
    """Two steps of functions: what is read is behind a function, not behind a layer."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.weight, self.mixes = nn.Parameter(torch.randn(10, 6)), mixes
        self.out, self.head = nn.Identity(), nn.Linear(100, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.weight.T
        x = x + x.mean(1, keepdim=True) if self.mixes else x
        return self.head(self.out(x).flatten(1))


def test_what_no_layer_tells_is_told_by_changes_of_the_input_or_asked_for():
    x = torch.randn(3, 10, 6)
    (told,) = live_stream(Model(Plain(mixes=False)), Arrays(x), "out", "mean").schema
    assert told.axes == "row patch dim"
    with pytest.raises(SiteError, match=r"could be the feature axis.*Give the axis"):
        assert live_stream(Model(Plain(mixes=True)), Arrays(x), "out", "mean").schema
    (named,) = live_stream(Model(Plain(mixes=True)), Arrays(x), "out", Reducer("mean", 2)).schema
    assert named.axes == "row patch dim"


def test_a_tap_tries_where_layers_of_both_kinds_are_around():
    x = torch.randn(2, 6, 10)
    net = nn.Sequential(nn.Conv1d(6, 8, 1), nn.ReLU(), Turned(), nn.Linear(8, 4))
    with Tap(net, ["0", "3"], "mean") as tap:
        net(x)
    assert {k: tuple(v.shape) for k, v in tap.rows.items()} == {"0:out": (2, 8), "3:out": (2, 4)}
    with Tap(net, ["1"], "mean") as tap:
        net(x)
    torch.testing.assert_close(tap.rows["1:out"], net[:2](x).mean(2))


class Words(nn.Module):
    """Reads texts of four tokens only, and has four channels."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.conv = nn.Embedding(11, 6), nn.Conv1d(4, 4, 1)
        self.place = nn.Parameter(torch.zeros(4, 6))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.conv(self.words(input_ids) + self.place)


@pytest.mark.truth("channels are the first axis of convolutions")
def test_channels_as_many_as_tokens_are_no_tokens():
    stream = read(Words().eval(), [torch.arange(4), torch.arange(4) + 1])
    assert {s.key: s.axes for s in stream.schema} == {
        "words:out": "row pos dim",
        "conv:out": "row dim patch",
    }


class Alike(nn.Module):
    """How alike any two steps are: no axis of features, whatever a norm takes for one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LocalResponseNorm(1), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x @ x.transpose(1, 2)).mean((1, 2))[:, None])


def test_an_axis_that_follows_the_inputs_is_none_of_features():
    with pytest.raises(SiteError, match="expected a feature axis at norm:out"):
        assert live_stream(Model(Alike()), Arrays(torch.randn(3, 10, 6)), "norm").schema


class Sparse(nn.Module):
    """A norm behind a rectifier, then a function: a change reaches what the rectifier passes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act, self.head = nn.RMSNorm(7), nn.Sigmoid(), nn.Linear(70, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(x.relu()).flip(0)).flatten(1))


@pytest.mark.truth("features are the last axis of an RMSNorm")
def test_an_axis_of_one_place_does_not_win_because_a_rectifier_stops_changes():
    generator = torch.Generator().manual_seed(331)
    x = torch.randn(3, 1, 10, 7, generator=generator)
    with pytest.raises(SiteError, match="Give the axis"):
        assert live_stream(Model(Sparse().eval()), Arrays(x), "act").schema


class Free(nn.Module):
    """Takes signals of any number of channels and any length."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.before, self.first, self.act = nn.Tanh(), first, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.first(self.before(x))).mean((1, 2))[:, None]


@pytest.mark.parametrize(
    "first", [nn.InstanceNorm1d(6), nn.AvgPool1d(2), nn.LocalResponseNorm(2)], ids=repr
)
@pytest.mark.filterwarnings("ignore:input's size at dim=1")
@pytest.mark.truth("norms and pools of signals have channels first")
def test_channels_that_a_model_takes_any_number_of_are_features_still(first):
    stream = live_stream(Model(Free(first)), Arrays(torch.randn(3, 6, 16)), ["first", "act"])
    assert [(s.axes, s.dim) for s in stream.schema] == [(SIGNAL, 6)] * 2
