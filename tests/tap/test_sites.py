"""Which tensors of a model can be named, and how."""

from collections import namedtuple
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from models import ARCHITECTURES, VOCABULARY, albert, cnn, gpt2, llama, mlp, model_of, resnet18, t5
from narrow import expect
from sonde.core.errors import SiteError
from sonde.core.inputs import Model
from sonde.core.site import Site
from sonde.tap import Tap, live_stream, probe, resolve
from sonde.tap.model.blocks import block_paths
from sonde.tap.model.sites import default_sites
from tap_inputs import Arrays, images, inputs_for, texts

Pair = namedtuple("Pair", "ids states")


@dataclass
class Out:
    flags: Tensor
    states: Tensor


class Leafy(nn.Module):
    """Returns its input in the container that it was told to use."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.wrap = wrap

    def forward(self, x: Tensor):
        return self.wrap(x * self.weight)


class Toy(nn.Module):
    """Modules of every kind that a tap may meet; all inputs and outputs have 3 features."""

    def __init__(self) -> None:
        super().__init__()
        ints = torch.arange(2)
        self.plain = nn.Linear(3, 3)
        self.tuple = Leafy(lambda x: (x, x + 1))
        self.late = Leafy(lambda x: (None, ints, x))
        self.named = Leafy(lambda x: Pair(ints, x))
        self.dict = Leafy(lambda x: {"mask": ints, "hidden": x, "other": x + 2})
        self.data = Leafy(lambda x: Out(ints, x))
        self.deep = Leafy(lambda x: (x, (x + 1, [x + 2])))
        self.ints = Leafy(lambda x: ints)
        self.nothing = Leafy(lambda x: None)
        self.keyword = nn.Linear(3, 3)
        self.thrice = nn.Linear(3, 3)
        self.never = nn.Linear(3, 3)
        self.alias = self.plain
        self.several = nn.ModuleDict({"a": nn.Linear(3, 3)})
        self.only_weight = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(x)
        x = self.tuple(x)[0]
        x = self.late(x)[2]
        x = self.named(x).states
        x = self.dict(x)["hidden"]
        x = self.data(x).states
        x = self.deep(x)[0]
        self.ints(x)
        self.nothing(x)
        x = self.keyword(input=x)
        x = self.thrice(self.thrice(self.thrice(x)))
        x = self.several["a"](x)
        return nn.functional.linear(x, self.only_weight.weight)


@pytest.fixture(scope="module")
def toy():
    torch.manual_seed(0)
    return Toy().eval()


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def rows_of(module: nn.Module, sites, x: Tensor = X) -> dict[str, Tensor]:
    stream = live_stream(Model(module), Arrays(x, batch_size=len(x)), sites, "mean")
    return next(iter(stream.batches(0, len(x)))).rows


OFFSETS = {
    **{site: 0 for site in ("tuple:out", "late:out", "late:out.2", "named:out", "named:out.1")},
    **{site: 0 for site in ("dict:out", "data:out", "data:out.states", "keyword:in", "tuple:in")},
    **{"tuple:out.1": 1, "dict:out.other": 2},
    **{"deep:out.0": 0, "deep:out.1_0": 1, "deep:out.1_1_0": 2},
}


@pytest.mark.parametrize(("site", "offset"), OFFSETS.items())
@pytest.mark.truth("the toy's arithmetic, written out")
def test_leaves_of_outputs_and_inputs(toy, site, offset):
    assert torch.equal(rows_of(toy, site)[site], toy.plain(X).detach() + offset)


@pytest.mark.truth("the module applied once, twice, three times")
def test_calls_of_a_module_that_runs_three_times(toy):
    with torch.no_grad():
        one = toy.thrice(toy.keyword(toy.plain(X)))
        two, three = toy.thrice(one), toy.thrice(toy.thrice(one))
    rows = rows_of(toy, ["thrice@0", "thrice@1", "thrice@2", "thrice@last", "thrice@all"])
    for site, expected in {"@0": one, "@1": two, "@2": three, "@last": three}.items():
        assert torch.equal(rows[f"thrice{site}:out"], expected)
    assert torch.equal(rows["thrice@all:out"], torch.cat([one, two, three]))


def test_rows_of_all_calls_have_the_call_as_position(toy):
    stream = live_stream(Model(toy), Arrays(X), "thrice@all", "mean")
    batch = next(iter(stream.batches(0, 4)))
    assert batch.position["thrice@all:out"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert batch.example["thrice@all:out"].tolist() == [0, 1, 2, 3] * 3


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("thrice", r"called 3 times in one forward pass; write thrice@0 to @2, @last or @all"),
        ("thrice@3", r"called 3 times in one forward pass, got @3"),
        ("never", r"'never' \(Linear\) did not run"),
        ("only_weight", r"did not run.*weights may be used by a function"),
        ("several", r"a list of modules is never called itself.*several\.a"),
        ("ints", r"returns no floating-point tensor"),
        ("nothing", r"returns no floating-point tensor.*nothing"),
        ("tuple:out.7", r"returns no tensor '7', only \['0', '1'\]"),
        ("plian", r"Did you mean plain"),
        ("plain:scores", r"not supported yet"),
        ("plain:probs", r"expected an attention layer for the port probs, got .plain. \(Linear\)"),
        ("a b", r"expected a module"),
        ("plain@x", r"expected path"),
    ],
)
def test_refused_sites_say_what_to_do(toy, site, message):
    with pytest.raises(SiteError, match=message):
        _ = live_stream(Model(toy), Arrays(X), site).schema


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("layers.*", r"Did you mean transformer\.h\.\*\?"),
        ("layers.*.mlp", r"Did you mean h\.\*\.mlp\?"),
        ("transformer.h.*.mpl", r"Did you mean transformer\.h\.\*\.mlp,"),
        ("layers.3", r"Patterns here: .*transformer\.h, transformer\.h\.\*, "),
    ],
)
def test_a_pattern_of_another_model_is_told_the_patterns_of_this_one(pattern, message):
    with pytest.raises(SiteError, match=message) as caught:
        resolve(gpt2(), pattern)
    named = str(caught.value).partition("Did you mean ")[2].rstrip("?")
    assert all(resolve(gpt2(), name) for name in named.split(", ") if name)


def test_an_alias_is_the_module_under_its_first_name(toy):
    found = probe(Model(toy), next(Arrays(X).batches(0, 2)))
    assert [str(s) for s in resolve(toy, ["alias", "plain"], found)] == ["plain:out"]


def test_sites_come_in_the_order_of_execution(toy):
    found = probe(Model(toy), next(Arrays(X).batches(0, 2)))
    sites = resolve(toy, ["several.a", "keyword", "keyword:in", "plain", ":out"], found)
    expected = ["plain:out", "keyword:in", "keyword:out", "several.a:out", ":out"]
    assert [str(s) for s in sites] == expected


@pytest.mark.truth("the names of the modules")
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("model.layers.1", ["model.layers.1"]),
        ("layers.1", ["model.layers.1"]),
        ("layers.-1", ["model.layers.2"]),
        ("layers.-3.mlp", ["model.layers.0.mlp"]),
        ("layers.*.mlp", [f"model.layers.{i}.mlp" for i in range(3)]),
        ("blocks", [f"model.layers.{i}" for i in range(3)]),
        ("blocks.1", ["model.layers.1"]),
        ("blocks.-1.mlp", ["model.layers.2.mlp"]),
        ("norm", ["model.norm"]),
        ("layers.0.mlp.*_proj", [f"model.layers.0.mlp.{n}_proj" for n in ("gate", "up", "down")]),
        (Site("lm_head"), ["lm_head"]),
    ],
)
def test_patterns(pattern, expected):
    model = Model(llama(), task="causal")
    found = probe(model, next(texts().batches(0, 1)))
    assert [s.path for s in resolve(model.module, pattern, found)] == expected


def test_a_block_that_is_not_there_names_those_that_are():
    with pytest.raises(SiteError, match=r"has 3 blocks. Write blocks.0 to blocks.2"):
        resolve(llama(), "blocks.3")


def test_an_ambiguous_suffix_lists_the_candidates():
    with pytest.raises(SiteError, match=r"names 3 modules: model.layers.0.mlp, model.layers.1.mlp"):
        resolve(llama(), "mlp")
    with pytest.raises(SiteError, match=r"names 6 modules: encoder.block.0"):
        resolve(t5(), "block.*")


def test_a_module_named_blocks_hides_the_alias():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(x)

    assert list(rows_of(Named(), "blocks")) == ["blocks:out"]


def test_a_list_named_blocks_does_not_hide_its_members():
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks[1](self.blocks[0](x))

    assert list(rows_of(Listed(), "blocks")) == ["blocks.0:out", "blocks.1:out"]


def test_no_sites_at_all_is_an_error():
    with pytest.raises(SiteError, match="at least one site"):
        resolve(mlp(), [])
    with pytest.raises(SiteError, match=r"no list of blocks\. Name modules instead, such as 0, 1"):
        resolve(mlp(), "blocks")


@pytest.mark.truth("read off the definitions in tests/models.py")
def test_default_sites_of_small_nets():
    def paths(module, inputs):
        return [str(s) for s in default_sites(probe(Model(module), next(inputs.batches(0, 1))))]

    assert paths(mlp(), Arrays(torch.randn(3, 8))) == [f"{i}:out" for i in range(5)]
    expected = [f"{n}:out" for n in ("conv1", "act1", "conv2", "act2", "fc")]
    assert paths(cnn(), images(8, channels=1, keyword=None)) == expected
    stages = [f"layer{i}:out" for i in (1, 2, 3, 4)]
    assert paths(resnet18(width=8), images(32, keyword=None)) == stages
    layer = "encoder.albert_layer_groups.0"
    assert paths(albert(), texts()) == [f"{layer}@{i}:out" for i in range(3)]


class Block(nn.Module):
    """A residual block of width 3."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(self.norm(x)).relu()


class OtherBlock(Block):
    """A block of another class."""


class Attributes(nn.Module):
    """Three blocks of two classes that are no list."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.a, self.b, self.c = nn.Linear(3, 3), Block(), OtherBlock(), Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(self.inp(x))))


class Experts(nn.Module):
    """Modules side by side, all on one tensor or each on some of the rows."""

    def __init__(self, routed: bool) -> None:
        super().__init__()
        self.experts, self.routed = nn.ModuleList([Block(), Block(), Block()]), routed

    def forward(self, x: Tensor) -> Tensor:
        if not self.routed:
            return torch.stack([expert(x) for expert in self.experts]).mean(0)
        return torch.cat([e(x.repeat(i + 4, 1)) for i, e in enumerate(self.experts)])[: len(x)]


class Tables(nn.Module):
    """Several embeddings of the same tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(VOCABULARY, 4) for _ in range(2)])
        self.rest = nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.rest(torch.stack([t(input_ids) for t in self.tables]).sum(0))


class Bottom(nn.Module):
    """Halves a map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


class Kept(Bottom):
    """Keeps the size of a map."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).mean(1, keepdim=True).repeat(1, 1, 2, 2)


class Shifted(nn.Module):
    """Adds a constant; has a part, but no list."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x + 1)


def _jamba() -> nn.Module:
    from transformers import JambaConfig, JambaForCausalLM

    config = JambaConfig(
        vocab_size=61, hidden_size=16, intermediate_size=16, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1,
        expert_layer_period=2, num_experts=3, mamba_d_state=2, mamba_dt_rank=2, pad_token_id=0,
    )  # fmt: skip
    return JambaForCausalLM(config).eval()


def _encoder(n_layers: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.TransformerEncoder(layer, n_layers)


ROWS3, STEPS4 = Arrays(torch.randn(4, 3)), Arrays(torch.randn(4, 5, 4))
MAPS2 = Arrays(torch.randn(4, 2, 8, 8))
DEPTH = {
    "list of two classes": (
        lambda: nn.Sequential(
            nn.Linear(3, 5), Block(5), OtherBlock(5), Block(5), nn.LayerNorm(5), nn.Linear(5, 2)
        ),
        ROWS3, ["1", "2", "3"],
    ),
    "attributes": (Attributes, ROWS3, ["a", "b", "c"]),
    "side by side": (lambda: Experts(routed=False), ROWS3, []),
    "routed": (lambda: Experts(routed=True), ROWS3, []),
    "tables of embeddings": (Tables, texts(), []),
    "a part before the layers": (
        lambda: nn.Sequential(Shifted(), _encoder(3), nn.Linear(4, 2)),
        STEPS4, [f"1.layers.{i}" for i in range(3)],
    ),
    "stages of two classes": (
        lambda: nn.Sequential(
            nn.Sequential(Bottom(2), Kept(4)), nn.ReLU(), nn.Sequential(Bottom(4), Kept(8))
        ),
        MAPS2, ["0", "2"],
    ),
    "two kinds of layer": (_jamba, texts(), [f"model.layers.{i}" for i in range(4)]),
}  # fmt: skip


@pytest.mark.parametrize("case", DEPTH)
@pytest.mark.truth("read off the definitions above")
@pytest.mark.filterwarnings("ignore")
def test_blocks_are_what_one_stream_passes_whatever_their_class(case):
    build, inputs, expected = DEPTH[case]
    found = probe(Model(build().eval()), next(inputs.batches(0, 4)))
    assert block_paths(found.names, found) == expected


def test_of_many_leaves_64_with_weights_are_read():
    chain = nn.Sequential(*[nn.Tanh() if i % 3 else nn.Linear(3, 3) for i in range(301)])
    stream = live_stream(Model(chain), Arrays(X))
    read = [int(s.key.partition(":")[0]) for s in stream.schema]
    assert len(read) == 64
    assert (read[0], read[-1]) == (0, 300)
    assert all(isinstance(chain[i], nn.Linear) for i in read)
    assert {b - a for a, b in pairwise(read)} == {3, 6}
    assert "64 of 301 modules" in stream.left_out[0].reason


def test_dropout_is_no_default_site():
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Tanh())
    assert [s.key for s in live_stream(Model(net), Arrays(X)).schema] == ["0:out", "2:out"]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
@pytest.mark.truth("sizes in the configuration")
def test_order_of_execution_has_no_ties(architecture):
    from dataclasses import replace

    inputs = inputs_for(architecture.takes)
    inputs = (
        replace(expect(Arrays, inputs), keyword=None) if architecture.name == "resnet18" else inputs
    )
    stream = live_stream(model_of(architecture), inputs)
    orders = [s.site.order for s in stream.schema]
    assert orders == sorted(set(orders))


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module, name: str) -> None:
        super().__init__()
        self.add_module(name, inner)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(x)


@pytest.mark.parametrize(
    "prefix", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]
)
def test_wrapper_prefixes_are_stripped_and_accepted(prefix):
    outer = Wrapped(mlp(3, 4, 2), prefix)
    for text in ("2", f"{prefix}.2"):
        assert list(rows_of(outer, text)) == ["2:out"]


def test_a_child_called_module_keeps_its_name():
    outer = Wrapped(mlp(3, 4, 2), "module")
    assert list(rows_of(outer, "module.2")) == ["module.2:out"]


def test_interactive_tap_takes_calls_too(toy):
    with Tap(toy, ["thrice@1", "thrice@all", "plain"]) as tap:
        toy(X)
    rows = tap.rows
    assert rows["thrice@all:out"].shape == (12, 3)
    assert torch.equal(rows["thrice@all:out"][4:8], rows["thrice@1:out"])
    with Tap(toy, "thrice"), pytest.raises(SiteError, match="called more than once"):
        toy(X)
    with Tap(toy, "never") as tap:
        toy(X)
    with pytest.raises(SiteError, match=r"never:out did not run in the last forward"):
        _ = tap.rows


@pytest.mark.parametrize("made", ["weight_norm", "spectral_norm"])
@pytest.mark.truth("hooks on the layers")
def test_what_makes_the_weights_of_a_layer_is_no_layer(made):
    make = getattr(nn.utils.parametrizations, made)
    net = nn.Sequential(make(nn.Linear(6, 8)), nn.ReLU(), make(nn.Linear(8, 8)), nn.ReLU()).eval()
    x = torch.randn(4, 6)
    stream = live_stream(Model(net), Arrays(x))
    (batch,) = stream.batches(0, 4)
    assert stream.left_out == ()
    assert list(batch.rows) == ["0:out", "1:out", "2:out", "3:out"]
    torch.testing.assert_close(batch.rows["2:out"], net[:3](x))


def test_no_site_at_all_is_refused():
    with pytest.raises(SiteError, match="at least one site, got none"):
        live_stream(nn.Linear(3, 2), Arrays(torch.zeros(4, 3)), [])
