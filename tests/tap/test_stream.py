"""What a live stream's batches carry beside rows: logits, gradients, head, identity."""

import copy
import json

import pytest
import torch
from torch import nn

import sonde
from models import bert, cnn, gpt2, llama, mlp, resnet18, vit
from narrow import present
from sonde.core.errors import InputError, SiteError
from sonde.core.inputs import Model
from sonde.tap import find_head, live_stream
from tap_inputs import Arrays, Texts, images, texts
from tap_snapshot import assert_unchanged, snapshot

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def only(stream):
    (batch,) = stream.batches(0, len(stream))
    return batch


@pytest.mark.truth("the model's own outputs")
def test_logits_of_a_causal_model_are_those_at_the_last_real_token():
    module, inputs = gpt2(), texts([5, 3, 4], batch_size=3)
    batch = only(live_stream(Model(module, task="causal"), inputs))
    for i, item in enumerate(inputs.items):
        with torch.no_grad():
            expected = module(torch.tensor([list(item)])).logits[0, -1]
        torch.testing.assert_close(present(batch.logits)[i], expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(present(batch.head)[0], module.lm_head.weight)


def test_logits_of_plain_nets_with_a_head_and_none_of_encoders():
    batch = only(live_stream(Model(mlp()), Arrays(X)))
    with torch.no_grad():
        assert torch.equal(present(batch.logits), mlp()(X))
    assert only(live_stream(Model(mlp()), Arrays(X), logits=False)).logits is None
    headless = nn.Sequential(nn.Linear(8, 3), nn.Tanh())
    assert only(live_stream(Model(headless), Arrays(X))).logits is None
    batch = only(live_stream(Model(bert(), task="encoder"), texts([3, 4])))
    assert batch.logits is None
    assert batch.head is None


@pytest.mark.truth("the layers by name")
def test_the_head_is_the_final_linear_layer():
    for module, path in [(gpt2(), "lm_head"), (vit(), "classifier"), (resnet18(width=8), "fc")]:
        weight, _ = present(find_head(module))
        assert torch.equal(weight, module.get_submodule(path).weight)
    assert find_head(bert()) is None
    assert find_head(nn.Sequential(nn.Tanh())) is None
    classes = live_stream(Model(cnn()), images(8, channels=1, keyword=None)).head
    assert torch.equal(present(present(classes)[1]), cnn().fc.bias)


def test_a_batch_carries_the_columns_of_its_examples():
    inputs = Texts([[1, 5, 6], [1, 7], [1, 8, 9]], labels=[2, 0, 1], batch_size=2)
    stream = live_stream(Model(gpt2(), task="causal"), inputs, seed=3)
    first, second = stream.batches(0, 3)
    assert first.ids == ["text0", "text1"]
    assert first.label.tolist() == [2, 0]
    assert second.order.tolist() == [2]
    assert first.seed == 3
    assert present(first.length).tolist() == [3, 2]
    assert first.keys == inputs.group_keys[:2]
    assert stream.group_keys == inputs.group_keys
    assert not stream.grouped


@pytest.mark.slow
def test_identity_is_json_and_tells_readings_apart():
    inputs = texts([3, 4])
    first = live_stream(Model(gpt2(), task="causal"), inputs)
    other = gpt2()
    with torch.no_grad():
        other.lm_head.weight[3, 3] += 1
    changed = [
        live_stream(Model(other, task="causal"), inputs),
        live_stream(Model(gpt2(), task="causal"), texts([3, 5])),
        live_stream(Model(gpt2(), task="causal"), inputs, "transformer.h.0"),
        live_stream(Model(gpt2(), task="causal"), inputs, reducer="mean"),
        live_stream(Model(gpt2(), task="causal"), inputs, objective="max_logit"),
        live_stream(Model(gpt2(), task="causal"), inputs, further=("tokens",)),
    ]
    texts_of = [json.dumps(s.identity(), sort_keys=True) for s in [first, *changed]]
    assert len(set(texts_of)) == 7
    again = live_stream(Model(gpt2(), task="causal"), inputs)
    assert json.dumps(again.identity(), sort_keys=True) == texts_of[0]


def test_a_stream_can_be_read_twice_with_the_same_bits():
    stream = live_stream(Model(llama(), task="causal"), texts())
    for a, b in zip(stream, stream, strict=True):
        assert all(torch.equal(a.rows[k], b.rows[k]) for k in a.rows)


def test_empty_inputs_are_an_error():
    with pytest.raises(InputError, match="at least one example"):
        _ = live_stream(Model(mlp()), Arrays(X[:0])).schema


# gradients --------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["kl_uniform", "max_logit", "nll"])
@pytest.mark.truth("central finite differences in float64")
def test_gradients_equal_finite_differences(objective):
    net = mlp().double()
    inputs = Arrays(X.double(), labels=[0, 1, 2, 3])
    batch = only(live_stream(Model(net), inputs, ["1"], objective=objective))
    states, grad, step = batch.rows["1:out"], batch.grad["1:out"], 1e-6

    def value(h):
        logits = net[4](net[3](net[2](h)))
        logs = logits.log_softmax(1)
        if objective == "kl_uniform":
            return (-logs.mean(1) - torch.log(torch.tensor(4.0, dtype=logs.dtype))).sum()
        return logits.max(1).values.sum() if objective == "max_logit" else -logs.diagonal().sum()

    with torch.no_grad():
        for i, j in [(0, 0), (1, 5), (3, 15)]:
            up, down = states.clone(), states.clone()
            up[i, j] += step
            down[i, j] -= step
            slope = (value(up) - value(down)) / (2 * step)
            torch.testing.assert_close(grad[i, j], slope, rtol=1e-6, atol=1e-8)


@pytest.mark.truth("W^T (softmax - uniform), the closed form at the head's input")
@pytest.mark.parametrize("sites", [["3"], ["4:in"], ["1", "3", "4:in"]])
def test_gradient_of_kl_uniform_in_closed_form(sites):
    net = mlp().double()
    batch = only(live_stream(Model(net), Arrays(X.double()), sites, objective="kl_uniform"))
    probabilities = present(batch.logits).softmax(1)
    expected = (probabilities - 0.25) @ present(batch.head)[0].double()
    for site in {"3:out", "4:in"} & set(batch.rows):
        torch.testing.assert_close(batch.grad[site], expected)


@pytest.mark.parametrize("sites", [["left:in"], ["body", "left:in", "right:in"]])
@pytest.mark.truth("the weight of one of two layers that read the same tensor")
def test_the_gradient_at_an_input_is_that_through_its_module(sites):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.left, self.right = nn.Linear(8, 3), nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x):
            x = self.body(x)
            return self.left(input=x) + 2 * self.right(x)

    net = Two().eval()
    batch = only(live_stream(Model(net), Arrays(X), sites, objective=lambda out, _: out.sum()))
    wanted = {"left:in": net.left.weight, "right:in": 2 * net.right.weight}
    wanted["body:out"] = wanted["left:in"] + wanted["right:in"]
    for site in batch.rows:
        torch.testing.assert_close(batch.grad[site], wanted[site].detach().expand(len(X), -1))


@pytest.mark.truth("the same net without in-place operations")
def test_gradients_of_an_in_place_net_are_those_before_the_change():
    inputs = images(32, keyword=None)
    sites = ["bn1", "layer1.0.bn2", "layer2"]
    grads = [
        only_first(
            live_stream(
                Model(resnet18(width=8, inplace=i)), inputs, sites, "flat", objective="max_logit"
            )
        ).grad
        for i in (True, False)
    ]
    for site, value in grads[0].items():
        assert torch.equal(value, grads[1][site])
        assert float(value.abs().max()) > 0


def only_first(stream):
    return next(iter(stream.batches(0, 4)))


def test_gradients_leave_parameters_flags_and_grads_alone():
    net = resnet18(width=8).train()
    net.conv1.weight.requires_grad_(False)
    net.fc.weight.grad = torch.ones_like(net.fc.weight)
    before = snapshot(net)
    stream = live_stream(Model(net), images(32, keyword=None), objective="kl_uniform")
    with torch.no_grad():
        batch = only_first(stream)
    assert_unchanged(before, net)
    assert set(batch.grad) == set(batch.rows)
    assert not batch.rows["layer1:out"].requires_grad
    assert not batch.logits.requires_grad


@pytest.mark.truth("autograd of each document alone")
def test_gradient_rows_of_tokens_align_with_their_states():
    module, inputs = gpt2().double(), Texts([[1, 5, 6, 7], [1, 8]])
    options = {"objective": "max_logit", "keep_special": True}
    model = Model(module, task="causal")
    batch = only(live_stream(model, inputs, "h.0", "tokens", **options))
    expected = []
    for item in inputs.items:
        seen = []
        handle = module.transformer.h[0].register_forward_hook(lambda m, a, o, s=seen: s.append(o))
        logits = module(torch.tensor([list(item)])).logits[0, -1]
        handle.remove()
        (grad,) = torch.autograd.grad(logits.max(), seen[0])
        expected.append(grad[0])
    found = batch.grad["transformer.h.0:out"]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-6, atol=1e-9)


def test_port_grad_gives_gradients_as_rows():
    stream = live_stream(Model(mlp()), Arrays(X), ["1", "1:grad"], objective="kl_uniform")
    batch = only(stream)
    assert torch.equal(batch.rows["1:grad"], batch.grad["1:out"])
    with pytest.raises(InputError, match="port grad needs objective"):
        _ = live_stream(Model(mlp()), Arrays(X), "1:grad").schema


def test_an_objective_of_ones_own_and_its_errors():
    net = mlp()
    batch = only(live_stream(Model(net), Arrays(X), "1", objective=lambda out, b: out[:, 0].sum()))
    assert batch.grad["1:out"].shape == (4, 16)
    cases = {
        r"scalar tensor": {"objective": lambda out, b: out},
        r"Did you mean max_logit": {"objective": "max_logits"},
        r"this batch has none": {"objective": "nll"},
    }
    for message, options in cases.items():
        with pytest.raises(InputError, match=message):
            only(live_stream(Model(net), Arrays(X), "1", **options))
    with pytest.raises(SiteError, match="no gradient reached '1:out'"):
        only(live_stream(Model(net), Arrays(X), "1", objective=lambda out, b: torch.ones(())))
    headless = Model(bert(), task="encoder")
    with pytest.raises(InputError, match="a model with logits"):
        only(live_stream(headless, texts([3, 4]), objective="kl_uniform"))


def test_rows_are_no_inference_tensors_and_can_train_a_probe():
    batch = only(live_stream(Model(mlp()), Arrays(X)))
    probe = nn.Linear(16, 1)
    probe(batch.rows["1:out"]).sum().backward()
    assert probe.weight.grad is not None


@pytest.mark.truth("the model without offload")
def test_a_model_offloaded_by_accelerate():
    accelerate = pytest.importorskip("accelerate")
    plain = llama()
    expected = only(live_stream(Model(plain, task="causal"), texts([3, 5])))
    offloaded = accelerate.cpu_offload(copy.deepcopy(plain), execution_device="cpu")
    assert next(offloaded.parameters()).device.type == "meta"
    model = Model(offloaded, task="causal")
    for logits in (True, False):
        stream = live_stream(model, texts([3, 5]), logits=logits)
        batch = only(stream)
        for key, rows in expected.rows.items():
            assert torch.equal(batch.rows[key], rows)
    assert all(p.device.type == "meta" for p in offloaded.parameters())
    before = live_stream(Model(plain, task="causal"), texts([3, 5])).identity()
    assert stream.identity()["model"] == before["model"]


def test_integer_and_float_inputs_are_moved_to_the_type_of_the_weights():
    net = mlp().double()
    assert only(live_stream(Model(net), Arrays(X))).rows["0:out"].dtype == torch.float64


def test_what_is_done_to_the_model_is_said_once(caplog):
    model = Model(mlp().train())
    for stream in (live_stream(model, Arrays(X, batch_size=1)), live_stream(model, Arrays(X))):
        list(stream)
        list(stream)
    assert [r.message[:30] for r in caplog.records] == ["the model is in training mode:"]


class OneSizeOnly(nn.Module):
    """Runs on batches of two only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(x.view(2, 8))


@pytest.mark.truth("the layer applied directly")
def test_a_model_for_one_batch_size_is_read_by_the_sizes_of_its_parameters():
    net = OneSizeOnly()
    batch = next(iter(live_stream(Model(net), Arrays(X, batch_size=2), "fc").batches(0, 2)))
    assert torch.equal(batch.rows["fc:out"], net.fc(X[:2]).detach())


@pytest.mark.slow
def test_a_stream_keeps_no_rows_that_its_reader_has_dropped():
    import gc
    import weakref

    batches = live_stream(Model(mlp()), Arrays(X, batch_size=2)).batches(0, 4)
    kept = weakref.ref(next(batches).rows["0:out"])
    gc.collect()
    assert kept() is None


class Averaging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 12)
        self.register_buffer("average", torch.zeros(12))

    def forward(self, x):
        x = torch.relu(self.a(x)) - self.average
        self.average += 0.1 * x.detach().mean(0)
        return x


@pytest.mark.truth("buffers before and after, of a model that moves them in eval mode")
def test_buffers_that_a_forward_moves_are_put_back():
    net, rows = Averaging().eval(), torch.randn(40, 8)
    stream = sonde.read(net, rows, sites="a", check=False)
    first, again = ([b.rows["a:out"] for b in stream] for _ in range(2))
    assert not bool(net.average.any())
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
