"""Which number is explained: one output, several outputs, targets that are no class."""

import inspect

import pytest
import torch
from torch import nn

import models
from sonde.core import InputError
from sonde.explain import (
    Attribution,
    Baseline,
    ClassSensitivity,
    Deletion,
    FaithfulnessViolation,
    GradTimesInput,
    IntegratedGradients,
    LogitLens,
    MetaSaliency,
    Objective,
    Relevance,
    Saliency,
    SanityChecks,
    SensitivityN,
)
from sonde.explain.objective import check_target

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(6, 4, generator=DRAW)
ZERO = Baseline("zero")


class Returning(nn.Module):
    """A linear layer whose outputs come in a form of one's own."""

    def __init__(self, form, width=3):
        super().__init__()
        self.hidden, self.head, self.form = nn.Linear(4, 5), nn.Linear(5, width), form

    def forward(self, x):
        hidden = self.hidden(x).tanh()
        return self.form(hidden, self.head(hidden))


def made(form, width=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Returning(form, width)


@pytest.mark.truth("the curve of the output itself, place after place by hand")
@pytest.mark.parametrize("form", [lambda h, y: y, lambda h, y: y[:, 0]], ids=["column", "number"])
def test_a_regression_is_judged_by_its_output(form):
    net = made(form, width=1)
    found = GradTimesInput().explain(net, X)
    judged = Deletion(ZERO, steps=4, n_random=2).judge(net, X, found)
    order = torch.as_tensor(found.value).argsort(1, descending=True)
    left, curve = X.clone(), [net(X).reshape(-1)]
    for rank in range(4):
        left[torch.arange(6), order[:, rank]] = 0.0
        curve.append(net(left).reshape(-1))
    torch.testing.assert_close(
        judged.curve.double(), torch.stack(curve).mean(1).double().detach(), atol=1e-5, rtol=0
    )
    assert judged.conventions["objective"] == found.conventions["objective"] == "output"


@pytest.mark.truth("softmax written out at the last real token, text by text")
def test_the_numbers_of_texts_and_of_their_copies():
    logits = torch.randn(3, 5, 7, generator=DRAW)
    tokens = torch.randint(0, 7, (3, 5), generator=DRAW)
    ends, target = [4, 3, 2], [6, 0, 2]
    mask = (torch.arange(5) <= torch.tensor(ends)[:, None]).long()
    for kind in ("logit", "log_prob", "prob", "margin", "answer"):
        goal = Objective(kind, target=target, length=2).fixed(logits, tokens, mask)
        wanted, drawn = [], []
        for scale in (1.0, 2.0):  # the second half of the batch are other outputs
            for row, end, k in zip(scale * logits, ends, target, strict=True):
                log_p = row - row.exp().sum(-1, keepdim=True).log()
                at = row[end].tolist()
                others = at[:k] + at[k + 1 :]
                answer = log_p[end - 2, tokens[len(wanted) % 3, end - 1]]
                number = {
                    "logit": at[k],
                    "log_prob": float(log_p[end, k]),
                    "prob": float(log_p[end, k].exp()),
                    "margin": at[k] - max(others),
                    "answer": float(answer + log_p[end - 1, tokens[len(wanted) % 3, end]]),
                }
                wanted.append(number[kind])
                drawn.append(log_p[end - 2 : end] if kind == "answer" else log_p[end, None])
        twice, both = goal.tiled(2), torch.cat([logits, 2 * logits])
        assert twice.of(both).tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        torch.testing.assert_close(twice.log_probs(both), torch.cat(drawn), rtol=1e-4, atol=1e-5)


def test_one_output_has_no_margin_and_no_second_class():
    net = made(lambda h, y: y, width=1)
    with pytest.raises(InputError, match="two classes"):
        Saliency().explain(net, X, objective=Objective("margin"))
    with pytest.raises(InputError, match="two classes"):
        ClassSensitivity().judge(net, X, Saliency())
    with pytest.raises(InputError, match="keeps spatial or token positions"):
        MetaSaliency().explain(net, X, site="hidden")
    maps = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(18, 1))
    x, inner = torch.randn(2, 1, 3, 3, generator=DRAW), GradTimesInput()
    learned = MetaSaliency(inner, step=0.1).explain(maps, x, site="0")
    other = torch.as_tensor(inner.explain(maps, x, site="0").value)
    assert not torch.allclose(torch.as_tensor(learned.value), other)


@pytest.mark.parametrize("target", ["positive", None, 1.5, torch.tensor([0.2, 1.7])])
def test_what_is_no_class_is_refused(target):
    with pytest.raises(InputError, match="predicted"):
        check_target(target)
    if isinstance(target, torch.Tensor):
        with pytest.raises(InputError, match="predicted"):
            Objective(target=target)


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (lambda h, y: {"loss": y.mean(), "score": y}, "score"),
        (lambda h, y: (y.mean(), y), "1"),
        (lambda h, y: {"hidden": h, "logits": y}, "logits"),
    ],
    ids=["loss in a dict", "loss in a tuple", "logits by name"],
)
def test_the_logits_are_found_and_named(form, name):
    found = Saliency().explain(made(form), X)
    wanted = Saliency().explain(made(lambda h, y: y), X)
    torch.testing.assert_close(found.value, wanted.value)
    assert found.conventions["output"] == name


def test_several_outputs_are_not_guessed_among():
    net = made(lambda h, y: (h, y))
    with pytest.raises(InputError, match="output='1'"):
        Saliency().explain(net, X)
    found = Saliency().explain(net, X, objective=Objective(output="1"))
    wanted = Saliency().explain(made(lambda h, y: y), X)
    torch.testing.assert_close(found.value, wanted.value)


class Weighted(nn.Module):
    """Multiplies its first argument by its second one."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x, weight):
        return self.head(x * weight)


@pytest.mark.truth("the gradient by hand: the head's weights times the second argument")
def test_a_second_tensor_is_repeated_with_its_example():
    net, weight = Weighted(), torch.rand(6, 4, generator=DRAW)
    found = IntegratedGradients(4, ZERO).explain(
        net, (X, weight), site=":in.x", objective=Objective(target=2)
    )
    torch.testing.assert_close(found.value, X * weight * net.head.weight[2])


@pytest.mark.truth("the same model in single precision")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_relevance_in_half_precision(dtype):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))
    goal = Objective(target=1)
    wanted = Relevance().explain(net, X, objective=goal).value
    found = Relevance().explain(net.to(dtype), X.to(dtype), objective=goal).value
    torch.testing.assert_close(torch.as_tensor(found).float(), wanted, atol=0.05, rtol=0.1)


def test_no_input_is_refused():
    with pytest.raises(InputError, match="at least one example"):
        Saliency().explain(made(lambda h, y: y), X[:0])


def test_methods_and_what_they_found_are_told_apart():
    net = made(lambda h, y: y)
    for judge in (Deletion(), SensitivityN(), FaithfulnessViolation()):
        judge_it = inspect.unwrap(type(judge).judge)  # without the checks of types under pytest
        with pytest.raises(InputError, match="explain"):
            judge_it(judge, net, X, Saliency())
    found = Saliency().explain(net, X)
    assert isinstance(found, Attribution)
    for judge in (SanityChecks(), ClassSensitivity()):
        with pytest.raises(InputError, match="the method itself"):
            inspect.unwrap(type(judge).judge)(judge, net, X, found)


@pytest.mark.truth("the same tokens in a batch that the data room makes")
def test_a_lens_takes_tensors():
    net = models.llama()
    ids = torch.randint(3, models.VOCABULARY, (2, 6), generator=DRAW)
    plain = LogitLens().explain(net, ids)
    named = LogitLens().explain(net, [{"input_ids": row[None]} for row in ids])
    assert plain.n == named.n == 12
    torch.testing.assert_close(plain.value, named.value)


@pytest.mark.truth("means of the map's logits over pixels, and their gradient by autograd")
def test_a_class_of_a_map_counts_over_its_pixels_or_at_one():
    torch.manual_seed(6)
    net = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, 4, 3, padding=1))
    x = torch.randn(3, 2, 5, 7, requires_grad=True)
    logits = net(x)
    tops = logits.argmax(1)
    most = tops.flatten(1).mode(1).values
    over = [
        row[k][top == k].mean() for row, k, top in zip(logits, most.tolist(), tops, strict=True)
    ]
    second = [
        row[2][top == 2].mean() if bool((top == 2).any()) else row[2].mean()
        for row, top in zip(logits, tops, strict=True)
    ]
    expected = {
        Objective(): torch.stack(over),
        Objective(target=2): torch.stack(second),
        Objective("log_prob", target=1, pixel=(3, 4)): logits.log_softmax(1)[:, 1, 3, 4],
        Objective("margin", target=0, other=3, pixel=(4, 6)): (logits[:, 0] - logits[:, 3])[
            :, 4, 6
        ],
    }
    for objective, value in expected.items():
        found = Saliency().explain(net, x.detach(), objective=objective)
        torch.testing.assert_close(found.objective.float(), value.detach())
        (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
        torch.testing.assert_close(torch.as_tensor(found.value).float(), gradient.abs())
    with pytest.raises(InputError, match=r"a map of 5 x 7, got \(5, 0\)"):
        Saliency().explain(net, x.detach(), objective=Objective(pixel=(5, 0)))
    flat = nn.Linear(2, 3)
    with pytest.raises(InputError, match="expected a map of logits"):
        Saliency().explain(flat, torch.randn(4, 2), objective=Objective(pixel=(0, 0)))
