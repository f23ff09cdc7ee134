"""Squared gradients of single examples against one backward pass for each, in float64."""

import pytest
import torch
from torch import Tensor, nn

import models
from sonde.core import InputError, Model, StateError
from sonde.data import open_inputs
from sonde.tap.gradients.squared import SquaredGradients, squared_gradients


def brute(module, losses, n):
    """Return sums of squares, the gradient of each loss taken by itself."""
    named = {k: p for k, p in module.named_parameters() if p.is_floating_point()}
    sums = {k: torch.zeros_like(p, dtype=torch.float64) for k, p in named.items()}
    for row in range(n):
        gradients = torch.autograd.grad(losses(row), list(named.values()), allow_unused=True)
        for k, g in zip(named, gradients, strict=True):
            if g is not None:
                sums[k] += g.double().square()
    return sums


def assert_same(found, wanted, tolerance=1e-9):
    largest = max(x.max() for x in wanted.values())
    for name, total in zip(found.names, found.sums, strict=True):
        size = max(wanted[name].max(), 1e-20 * largest)  # biases of keys have no gradient
        away = float((total - wanted[name]).abs().max() / size)
        assert away < tolerance, f"{name} is {away:.2e} of its largest entry away"


def texts(n=5, seed=0):
    source = torch.Generator().manual_seed(seed)
    return [
        {"input_ids": torch.randint(3, 60, (length,), generator=source)}
        for length in torch.randint(3, 9, (n,), generator=source).tolist()
    ]


def of_texts(module, items):
    """Return sums for a language model, each text by itself and without padding."""

    def loss(row):
        ids = items[row]["input_ids"][None]
        logits = module(input_ids=ids).logits[0, :-1]
        return nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")

    return brute(module, loss, len(items))


def of_arrays(module, items):
    """Return sums for a classifier."""

    def loss(row):
        output = module(items[row]["x"][None])
        logits = getattr(output, "logits", output)
        return nn.functional.cross_entropy(logits, torch.tensor([items[row]["label"]]))

    return brute(module, loss, len(items))


def arrays(*shape, n=5, n_classes=4):
    source = torch.Generator().manual_seed(1)
    rows = torch.randn(n, *shape, generator=source, dtype=torch.float64)
    return [{"x": x, "label": i % n_classes, "id": f"r{i}"} for i, x in enumerate(rows)]


class Awkward(nn.Module):
    """Everything that a rule by the class of a module would get wrong, and what has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6, padding_idx=0)
        self.twice = nn.Linear(6, 6)
        self.across = nn.Linear(6, 6)
        self.routed = nn.Linear(6, 6)
        self.mixed = nn.LSTM(6, 6, batch_first=True)
        self.start = nn.Parameter(torch.randn(1, 1, 6))
        self.places = nn.Embedding(5, 6)
        self.scale = nn.Parameter(torch.rand(6))
        self.conv = nn.Conv1d(6, 8, 3, padding=1, stride=2, groups=2)
        self.norm = nn.GroupNorm(2, 8)
        self.up = nn.ConvTranspose1d(8, 4, 3)
        self.head = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        ids = (x.abs() * 4).long().clamp(max=8)
        h = torch.cat([self.start.expand(len(ids), -1, -1), self.table(ids)], dim=1)
        h = h * self.scale + self.places(torch.arange(h.shape[1]))
        h = self.twice(self.twice(h).tanh())
        h = self.across(h.transpose(0, 1)).transpose(0, 1)
        chosen = h[..., 0] > 0
        h = h.clone()
        h[chosen] = self.routed(h[chosen])
        h = h + self.mixed(h)[0]
        h = self.up(self.norm(self.conv(h.mT)).relu()).mean(2)
        return nn.functional.linear(self.head(h), self.table.weight)


def awkward():
    torch.manual_seed(0)
    return Awkward().double().eval()


def image(module):
    return Model(module, config=module.config, task="image_classifier")


CASES = {
    "text": lambda: (Model(models.gpt2().double(), task="causal"), texts(), of_texts),
    "vit": lambda: (image(models.vit().double()), arrays(3, 24, 24), of_arrays),
    "resnet": lambda: (
        Model(models.resnet18(width=2).double()),
        arrays(3, 32, 32),
        of_arrays,
    ),
    "awkward": lambda: (Model(awkward()), arrays(4), of_arrays),
}


@pytest.mark.truth("one backward pass for each example")
@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_one_backward_for_each_example(case):
    model, items, truth = CASES[case]()
    wanted = truth(model.module, items)
    for batch_size in (1, 2, 5):
        inputs = open_inputs(model, items, batch_size=batch_size)
        found = squared_gradients(model, inputs, progress=False)
        assert found.n == len(items)
        assert_same(found, wanted)


def net(seed=0):
    return Model(models.mlp(seed=seed).double())


def test_any_split_of_the_examples_merges_to_one_pass_and_a_file_keeps_every_bit(tmp_path):
    model, items = net(), arrays(8, n=9)
    whole = squared_gradients(model, open_inputs(model, items), progress=False)
    parts = [
        squared_gradients(model, open_inputs(model, p), progress=False)
        for p in (items[:4], items[4:])
    ]
    merged = parts[0].merge(parts[1])
    assert_same(merged, dict(zip(whole.names, whole.sums, strict=True)))
    assert merged.n == 9
    assert merged.mean_loss == pytest.approx(whole.mean_loss)
    whole.save(tmp_path / "squares.sonde")
    again = SquaredGradients.load(tmp_path / "squares.sonde")
    assert again.names == whole.names
    assert all(map(torch.equal, again.sums, whole.sums))
    other = squared_gradients(net(1), open_inputs(model, items), progress=False)
    with pytest.raises(StateError, match="of different models: its weights differ"):
        whole.merge(other)


@pytest.mark.truth("expectation over all classes")
def test_sampled_answers_give_the_expected_square_and_hang_on_no_batch():
    model = net()
    one = arrays(8, n=1)[0]
    copies = [one | {"id": str(i)} for i in range(1500)]
    by_batch = [
        squared_gradients(
            model, open_inputs(model, copies, batch_size=size), "sampled", progress=False
        )
        for size in (64, 500)
    ]
    assert_same(by_batch[0], dict(zip(by_batch[1].names, by_batch[1].sums, strict=True)))
    p = model.module(one["x"][None]).softmax(1)[0].detach()
    wanted = {name: torch.zeros_like(q) for name, q in model.module.named_parameters()}
    for c in range(4):
        squares = of_arrays(model.module, [one | {"label": c}])
        wanted = {name: wanted[name] + p[c] * squares[name] for name in wanted}
    for name, found in by_batch[0].means().items():
        assert float((found - wanted[name]).abs().sum() / wanted[name].abs().sum()) < 0.15


def test_the_model_is_as_before_and_what_is_frozen_is_read_too():
    model, items = net(), arrays(8)
    model.module.train()
    model.module.get_parameter("0.weight").requires_grad_(False)
    before = [p.clone() for p in model.module.parameters()]
    inputs = open_inputs(model, items)
    found = squared_gradients(model, inputs, parameters=["0.weight", "4.bias"], progress=False)
    assert found.names == ("0.weight", "4.bias")
    assert_same(
        found, {k: v for k, v in of_arrays(model.module.requires_grad_(True), items).items()}
    )
    assert model.module.training
    assert all(p.grad is None for p in model.module.parameters())
    assert all(map(torch.equal, before, model.module.parameters()))


def test_bad_input_is_refused():
    model, items = net(), arrays(8)
    inputs = open_inputs(model, items)
    with pytest.raises(InputError, match=r"no floating-point parameter '0\.wight'.*0\.weight"):
        squared_gradients(model, inputs, parameters=["0.wight"], progress=False)
    with pytest.raises(InputError, match="expected label, sampled or a callable"):
        squared_gradients(model, inputs, "labels", progress=False)
    unlabelled = open_inputs(model, [{"x": item["x"]} for item in items])
    with pytest.raises(InputError, match="no example that has a loss"):
        squared_gradients(model, unlabelled, progress=False)
    broken = [items[0] | {"x": items[0]["x"] * float("inf")}]
    with pytest.raises(InputError, match=r"NaN or infinity at 0\.weight"):
        squared_gradients(model, open_inputs(model, broken), progress=False)
