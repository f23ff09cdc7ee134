"""Which models a state takes for the one that it was fitted on, and which it does not."""

import hashlib
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

import sonde
from narrow import expect
from sonde import Guard
from sonde.core import Model, StateError, Stream
from sonde.core.errors import SondeWarning
from sonde.detect import DICE, Mahalanobis
from sonde.run.fitting.fit import fit
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.score import score
from sonde.tap import config_hash, live_stream
from tap_inputs import Texts

DRAW = torch.Generator().manual_seed(0)
ITEMS = [torch.randint(3, 64, (6,), generator=DRAW).tolist() for _ in range(60)]
MORE = [item[::-1] for item in ITEMS]


def built(kind=GPT2LMHeadModel, **settings):
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=64, n_positions=16, bos_token_id=1,
        eos_token_id=1, pad_token_id=0, **settings,
    )  # fmt: skip
    return kind(config).eval()


def texts(module, items):
    task = "causal" if isinstance(module, GPT2LMHeadModel) else "sequence"
    live = Model(module, config=module.config, task=task)
    return live_stream(live, Texts(items, special=False), "transformer.h.0", "last")


def probe_of(module):
    return fit(Mahalanobis(), texts(module, ITEMS), calibrate=0, progress=False)


def with_model(probe, **facts):
    return replace(probe, header=probe.header | {"model": probe.header["model"] | facts})


def assert_taken(probe, module):
    assert score(probe, texts(module, MORE), progress=False).num_rows == len(MORE)
    Guard(module, probe, alpha=None)
    calibrate(probe, texts(module, MORE), progress=False)


def assert_refused(probe, module, match):
    with pytest.raises(StateError, match=match):
        score(probe, texts(module, MORE), progress=False)
    with pytest.raises(StateError, match=match):
        Guard(module, probe, alpha=None)


@pytest.mark.slow
def test_a_state_that_does_not_know_the_attention_kernel_takes_any():
    module = built()
    probe = probe_of(module)
    assert probe.header["model"]["attn"] == "sdpa"
    assert_taken(with_model(probe, attn=None), module)
    facts = {k: v for k, v in probe.header["model"].items() if k != "attn"}
    assert_taken(replace(probe, header=probe.header | {"model": facts}), module)
    assert_refused(with_model(probe, attn="eager"), module, "attn is 'sdpa' here and was 'eager'")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [GPT2LMHeadModel, GPT2ForSequenceClassification])
def test_saving_a_model_leaves_it_the_same(kind, tmp_path):
    tuned = built(kind)
    tuned.config.architectures = ["GPT2LMHeadModel"]  # as of a checkpoint with another head
    for module in (built(kind), tuned):
        probe = probe_of(module)
        module.save_pretrained(tmp_path / "saved")
        assert_taken(probe, module)
        assert_taken(probe, kind.from_pretrained(tmp_path / "saved").eval())


@pytest.mark.slow
@pytest.mark.truth("the hash of the configuration as it was recorded, which states held before")
def test_states_of_before_take_the_model_that_they_took(tmp_path):
    module = built()
    probe = probe_of(module)
    for recorded in (None, ["GPT2LMHeadModel"], ["Another"]):
        module.config.architectures = recorded
        before = with_model(probe, config=config_hash(module.config))
        assert_taken(before, module)
    module.config.architectures = None
    before = with_model(probe, config=config_hash(module.config))
    module.save_pretrained(tmp_path)
    assert_taken(before, module)


def test_another_configuration_over_the_same_weights_is_refused():
    probe = probe_of(built())
    assert_refused(
        probe,
        built(layer_norm_epsilon=0.1),
        "ln_. is LayerNorm.*eps=0.1.* was LayerNorm.*eps=1e-05",
    )
    assert_refused(probe, built(scale_attn_weights=False), "attn.scaling is 1.0 here and was")


def twin(activation: type[nn.Module] = nn.ReLU, unsaved="", **settings):
    torch.manual_seed(0)
    norm = nn.LayerNorm(8, **settings)
    if unsaved:
        norm.register_buffer(unsaved, torch.ones(8), persistent=False)
    return nn.Sequential(nn.Linear(4, 8), norm, activation(), nn.Linear(8, 3)).eval()


ROWS = torch.randn(80, 4, generator=DRAW)


def fitted_on(net, rows=ROWS):
    stream = sonde.read(net, rows, sites="2:out")
    return fit(Mahalanobis(), stream, calibrate=0, progress=False)


@pytest.mark.truth("models that differ in what their weights do not say")
@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"activation": nn.Tanh}, r"2 is Tanh\(\) here and was ReLU\(\)"),
        ({"eps": 0.1}, "eps=0.1.* here and was .*eps=1e-05"),
        ({"unsaved": "scale"}, "module classes, their settings or unsaved buffers"),
    ],
    ids=str,
)
def test_a_twin_with_the_same_weights_is_refused(other, said):
    probe, net = fitted_on(twin()), twin(**other)
    with pytest.raises(StateError, match=said):
        score(probe, sonde.read(net, ROWS + 1, sites="2:out"), progress=False)
    with pytest.raises(StateError, match=said):
        Guard(net, probe, alpha=None)
    with pytest.raises(StateError, match="bundles of the same model"):
        probe.merge(fitted_on(net, ROWS + 1))
    probe.merge(fitted_on(expect(nn.Module, torch.compile(twin(), backend="eager")), ROWS + 1))


class Reduced(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.a = how, nn.Linear(4, 8)

    def forward(self, x):
        return getattr(self.a(x), self.how)()


@pytest.mark.truth("models that differ in a string that their forward reads")
def test_a_twin_with_another_plain_attribute_is_refused():
    torch.manual_seed(0)
    net = nn.Sequential(Reduced("tanh"), nn.Identity(), nn.ReLU()).eval()
    probe, part = fitted_on(net), expect(Reduced, net[0])
    before = of_before(with_model(probe, structure=_without_attributes(net)))
    part.how = "sigmoid"
    with pytest.raises(StateError, match="how is 'sigmoid' here and was 'tanh'"):
        Guard(net, probe, alpha=None)
    with pytest.raises(StateError, match="how is 'sigmoid' here and was 'tanh'"):
        score(probe, sonde.read(net, ROWS + 1, sites="2:out"), progress=False)
    with pytest.warns(SondeWarning, match="did not record active adapters"):
        Guard(net, before, alpha=None)  # of an earlier version, which did not know
    with pytest.warns(SondeWarning, match="did not record active adapters"):
        score(before, sonde.read(net, ROWS + 1, sites="2:out"), progress=False)


def of_before(probe):
    """Return a probe as versions without parts and behaviour wrote it."""
    header = {k: v for k, v in probe.header.items() if k != "behaviour"}
    facts = {k: v for k, v in header["model"].items() if k != "parts"}
    return replace(probe, header=header | {"model": facts})


def _without_attributes(net):
    """Return the hash as versions without attributes wrote it."""
    said = [
        f"{n}|{type(m).__name__}({' '.join(m.extra_repr().split())})|"
        for n, m in net.named_modules()
    ]
    return hashlib.sha256("\n".join(sorted(said)).encode()).hexdigest()


class Called(nn.Module):
    """Leaves its activation to a function; ``again`` is written otherwise and is the same."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(self.b.weight.new_zeros(()) + torch.relu(self.a(x)))


def called(forward=None):
    torch.manual_seed(0)
    kind = Called if forward is None else type("Called", (Called,), {"forward": forward})
    return kind().eval()


def hidden_tanh(self, x):
    return self.b(self.b.weight.new_zeros(()) + torch.tanh(self.a(x)))


def relu_by_clamp(self, x):
    return self.b(self.a(x).clamp(min=0))


def commented(self, given):
    """Say what it does."""
    # and more
    return self.b(self.b.weight.new_zeros(()) + torch.relu(self.a(given)))


@pytest.mark.filterwarnings("error")
def test_another_function_inside_a_forward_is_refused_if_it_computes_something_else():
    def read(net, rows):
        return sonde.read(net, rows, sites="a:out")

    def fitted(net, rows):
        return fit(Mahalanobis(), read(net, rows), calibrate=0, progress=False)

    probe, other = fitted(called(), ROWS), called(hidden_tanh)
    says = "the code of a forward method, .* has changed"
    with pytest.raises(StateError, match=says):
        score(probe, read(other, ROWS + 1), progress=False)
    with pytest.raises(StateError, match=says):
        Guard(other, probe, alpha=None)
    with pytest.warns(SondeWarning, match=says):
        assert probe.merge(fitted(other, ROWS + 1)).header["model"]["code"] is None
    same = called(commented)
    score(probe, read(same, ROWS + 1), progress=False)
    probe.merge(fitted(same, ROWS + 1))
    Guard(same, probe, alpha=None)
    Guard(called(relu_by_clamp), probe, alpha=None)  # other code, the same states
    unknown = replace(probe, header={k: v for k, v in probe.header.items() if k != "behaviour"})
    Guard(other, with_model(unknown, code=None), alpha=None)
    Guard(other, with_model(unknown, code="2.7:0"), alpha=None)


def test_a_state_of_before_is_taken_with_a_warning():
    before = of_before(with_model(fitted_on(twin()), structure=None))
    with pytest.warns(SondeWarning, match="classes and settings of the modules cannot be"):
        score(before, sonde.read(twin(nn.Tanh), ROWS, sites="2:out"), progress=False)
    with pytest.warns(SondeWarning, match="cannot be"):
        Guard(twin(nn.Tanh), before, alpha=None)


@pytest.mark.truth("the hash of the configuration as it was recorded")
@pytest.mark.parametrize("name", ["sonde:digits", "sonde:stdlib"])
def test_shipped_models_keep_their_hash(name):
    model = sonde.load(name)
    stream = sonde.read(model, f"{name}/test", sites="auto", limit=4)
    assert stream.identity()["config"] == config_hash(model.config)


@pytest.mark.truth("law 4: a state refuses a head that it was not fitted for")
def test_rows_under_another_head_are_refused():
    x, weight, bias = torch.randn(60, 4, generator=DRAW), torch.eye(3, 4), torch.ones(3)

    def under(*head, rows=x):
        return Stream.of(rows, head=head or None, logits=rows @ weight.T + bias)

    probe = fit(DICE(), under(weight, bias), calibrate=0, progress=False)
    assert len(probe.header["model"]["head"]) == 32
    for same in (under(weight, bias), under(weight.clone(), bias.clone()), under()):
        assert score(probe, same, progress=False).num_rows == 60
    for other in (under(weight * 2, bias), under(weight, bias + 1), under(weight, None)):
        with pytest.raises(StateError, match=r"another model: its head differs \(\w+ here, \w+ f"):
            score(probe, other, progress=False)
    plain = fit(Mahalanobis(), under(weight, bias), calibrate=0, progress=False)
    others = fit(Mahalanobis(), under(weight * 2, bias, rows=x + 1), calibrate=0, progress=False)
    with pytest.raises(StateError, match="bundles of the same model"):
        plain.merge(others)
