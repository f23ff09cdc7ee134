"""Class and register tokens are found where they lie, not where they mostly do."""

import pytest
import torch
from torch import Tensor, nn

import sonde
from models import clip_vision, deit, dinov2, vit
from sonde.core.errors import SiteError
from sonde.core.inputs import Model
from sonde.tap import live_stream
from tap_inputs import Arrays, images

DIM, N_PATCHES = 8, 16


class Net(nn.Module):
    """Patches of an image among tokens of its own, in any order, and blocks that mix them all."""

    def __init__(self, order: str, positions: bool = False, hides: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, DIM, 8, stride=8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.register_tokens = nn.Parameter(torch.randn(1, 4, DIM))
        self.summary = nn.Parameter(torch.randn(1, 1, DIM))
        self.position = nn.Parameter(torch.randn(1, N_PATCHES + 9, DIM)) if positions else None
        layer = nn.TransformerEncoderLayer(DIM, 2, 16, batch_first=True)
        self.order, self.hides = order, hides
        self.layers = nn.ModuleList(
            [layer, nn.TransformerEncoderLayer(DIM, 2, 16, batch_first=True)]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        parts = {"p": x, "c": self.cls_token, "r": self.register_tokens, "s": self.summary}
        x = torch.cat([parts[one].expand(len(x), -1, -1) for one in self.order], 1)
        x = x if self.position is None else x + self.position[:, : x.shape[1]]
        x = x + x.mean(1, keepdim=True) if self.hides else x
        for layer in self.layers:
            x = layer(x)
        return x


def states(net: nn.Module, inputs) -> Tensor:
    with torch.no_grad():
        return net(inputs.x)


ORDERS = {
    "prc": 20,
    "pr": None,
    "rcp": 4,
    "crp": 0,
    "cp": 0,
    "sp": 0,
    "rp": None,
    "pc": 16,
    "cpr": 0,
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.truth("the order in which the tokens are put together")
def test_special_tokens_are_where_the_model_puts_them(order, positions):
    torch.manual_seed(0)
    net, inputs = Net(order, positions).eval(), images(32, n=3, keyword=None)
    out = states(net, inputs)
    start = sum({"r": 4, "p": 0}.get(one, 1) for one in order.partition("p")[0])
    patches = out[:, start : start + N_PATCHES]
    for reducer, want in (("patches", patches.flatten(0, 1)), ("mean", patches.mean(1))):
        (batch,) = live_stream(Model(net), inputs, "layers.1", reducer).batches(0, 3)
        torch.testing.assert_close(batch.rows["layers.1:out"], want)
    place = ORDERS[order]
    if place is None:
        with pytest.raises(SiteError, match=r"'cls'.*does not fit"):
            assert live_stream(Model(net), inputs, "layers.1", "cls").schema
    else:
        stream = live_stream(Model(net), inputs, "layers.1")
        (batch,) = stream.batches(0, 3)
        assert (stream.schema[0].reducer.name, stream.schema[0].cls) == ("cls", place)
        torch.testing.assert_close(batch.rows["layers.1:out"], out[:, place])
        assert live_stream(Model(net), inputs, "layers.1.linear1").schema[0].cls == place


def test_tokens_that_are_mixed_before_they_can_be_seen_are_asked_for():
    net, inputs = Net("cp", hides=True).eval(), images(32, n=3, keyword=None)
    with pytest.raises(SiteError, match=r"17 tokens, of which 1 are not patches.*'flat'"):
        assert live_stream(Model(net), inputs, "layers.1", "patches").schema
    (batch,) = live_stream(Model(net), inputs, "layers.1", "flat").batches(0, 3)
    assert batch.rows["layers.1:out"].shape == (3, 17 * DIM)


def test_special_tokens_among_the_patches_are_refused():
    net, inputs = Net("psp").eval(), images(32, n=3, keyword=None)
    with pytest.raises(SiteError, match="have unknown positions"):
        assert live_stream(Model(net), inputs, "layers.1", "patches").schema


@pytest.mark.parametrize(("build", "prefix"), [(vit, 1), (dinov2, 5), (deit, 2), (clip_vision, 1)])
@pytest.mark.truth("the configuration of each model")
def test_models_of_the_hub_have_their_class_token_first(build, prefix):
    torch.manual_seed(0)
    net = build()
    for p in net.parameters():
        nn.init.normal_(p)
    stream = live_stream(Model(net, task="encoder"), images(24, n=2))
    found = stream.schema[0]
    assert (found.prefix, found.suffix, found.cls, found.reducer.name) == (prefix, 0, 0, "cls")


@pytest.mark.truth("one token is in all images, the others are of each")
def test_parameters_without_a_token_are_no_tokens():
    net = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Flatten(2)).eval()

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut, self.none = net, nn.Parameter(torch.zeros(1, 0, 4))
            self.cls_token = nn.Parameter(torch.ones(1, 1, 4))
            self.act = nn.Tanh()

        def forward(self, x):
            x = self.cut(x).transpose(1, 2)
            return self.act(torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1))

    stream = sonde.read(Cut().eval(), [*torch.randn(4, 3, 8, 8)], "act")
    assert stream.schema[0].reducer.name == "cls"


class Spoken(nn.Module):
    """Numbers that are taken for ids: noise on them is none of the embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(24, 32), nn.LSTM(32, 64, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(self.embedding(x.long()))[0]


@pytest.mark.parametrize("n", [20, 32, 64])
@pytest.mark.truth("the states of the module itself")
def test_ids_that_come_as_numbers_are_no_special_tokens(n):
    torch.manual_seed(0)
    net, x = Spoken().eval(), torch.randint(4, 20, (8, n)).float()
    stream = live_stream(Model(net), Arrays(x, batch_size=8), "embedding", "mean")
    rows = next(stream.batches(0, 8)).rows["embedding:out"]
    torch.testing.assert_close(rows, net.embedding(x.long()).mean(1))


@pytest.mark.parametrize("site", ["encoder.layer.1", "encoder.layer.1.mlp.fc1"])
@pytest.mark.truth("the registers that the configuration counts, behind the class token")
def test_registers_are_counted_by_the_configuration_of_a_known_model(site):
    model = dinov2()
    with torch.no_grad():  # tokens that nothing tells apart from the patches of an image
        model.embeddings.register_tokens.fill_(torch.nan)
    (found,) = live_stream(Model(model, config=model.config), images(24), site, "patches").schema
    assert (found.prefix, found.suffix, found.cls) == (5, 0, 0)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_first_picture_that_is_not_finite_hides_no_token(broken):
    net, found = deit().eval(), []
    for where in ((), (0, slice(None), 2, 1), (0,)):
        given = images(24, n=2)
        if where:
            given.x[where] = broken
        found += [[(s.key, s.axes, s.prefix) for s in live_stream(Model(net), given).schema]]
    assert found[1] == found[2] == found[0]
    assert found[0][0][2] == 2
