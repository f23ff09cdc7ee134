"""Every loss: gradients, order of the rows, and how its value depends on the batch."""

import copy
import inspect

import pytest
import torch

from sonde import train
from sonde.core import InputError

NAMES = [name for name in train.__all__ if hasattr(getattr(train, name), "batching")]
LOSSES = [
    pytest.param(loss, parameters, id=f"{name}-{n}")
    for name in NAMES
    for loss in (getattr(train, name),)
    for n, parameters in enumerate(loss.examples)
]
WITH_ROWS = [one for one in LOSSES if one.values[0].batching != "none"]


def columns(loss, parameters, n=8):
    generator = torch.Generator().manual_seed(6)
    draw = {"generator": generator, "dtype": torch.float64, "requires_grad": True}
    made = {"x": torch.randn(n, 4, **draw), "y": torch.randn(n, 4, **draw)}
    made["z"] = (made["x"] + (made["y"] / 2).exp() * torch.randn(n, 4, **draw)).detach()
    made["z"].requires_grad_()
    made["probs"] = torch.randn(n, 2, 3, 5, **draw).softmax(-1)
    made["label"], made["logits"] = torch.arange(n) % 3, torch.randn(n, 3, **draw)
    if isinstance(loss, train.LearnedViews):
        made["view"] = torch.arange(n) // (n // 2)
    if isinstance(loss, train.CauchySchwarzBottleneck):
        made["label"], made["logits"] = torch.randn(2, n, 1, **draw)
    if isinstance(loss, train.MaskedFeatures):
        made["x"], made["y"] = (torch.randn(n, 3, d, **draw) for d in (4, 2))
        made["y"] = made["y"].detach()
        made["mask"] = torch.randn(n, 3, generator=generator).argsort(1) < 1
    if isinstance(loss, train.NextTokens):
        made["x"] = torch.randn(n, 4, 4, **draw)
        made["token"] = torch.randint(3, (n, 4), generator=generator)
    if parameters.get("distance") == "cross_entropy":
        made["x"], made["y"] = (torch.randn(n, 2, 3, 5, **draw).softmax(-1) for _ in "xy")
    if isinstance(loss, train.Orthogonal):
        made["weight"] = torch.randn(3, 2, 3, 3, **draw)
    names = inspect.signature(loss.forward).parameters
    return {name: made[name] for name in names if name in made}


@pytest.mark.parametrize(("loss", "parameters"), LOSSES)
def test_gradients_are_exact(loss, parameters):
    made = loss(**parameters).double()
    given = columns(made, parameters)
    floats = [name for name, x in given.items() if x.is_floating_point()]
    if "y" in floats and loss in (train.Align, train.InputDecoder):  # their targets have none
        given["y"] = given["y"].detach()
        floats = ["x"]
    floats = [name for name in floats if given[name].requires_grad]
    if loss is train.InputDecoder or getattr(made, "target", "") == "features":
        # rows are the target, or have no gradient: what the loss learns itself
        made(**given)
        learned = dict(made.named_parameters())
        assert torch.autograd.gradcheck(
            lambda *p: torch.func.functional_call(
                made, dict(zip(learned, p, strict=True)), kwargs=given
            ),
            [p.detach().requires_grad_() for p in learned.values()],
        )
        return

    def value(*rows):
        return made(**given | dict(zip(floats, rows, strict=True)))

    assert torch.autograd.gradcheck(value, [given[name] for name in floats])


@pytest.mark.parametrize(("loss", "parameters"), WITH_ROWS)
def test_rows_in_another_order_give_the_same_value(loss, parameters):
    made = loss(**parameters).double()
    given = columns(made, parameters)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    turned = {name: x[order] for name, x in given.items()}
    torch.testing.assert_close(made(**given), made(**turned))


@pytest.mark.parametrize(("loss", "parameters"), WITH_ROWS)
def test_a_mean_is_the_mean_of_the_parts_and_nothing_else_is(loss, parameters):
    made = loss(**parameters).double()
    given = columns(made, parameters, 12)
    parts = [{k: x[a:b] for k, x in given.items()} for a, b in ((0, 5), (5, 12))]
    joined = (5 * made(**parts[0]) + 7 * made(**parts[1])) / 12
    is_mean = bool(torch.isclose(joined, made(**given), rtol=1e-10))
    per_row = parameters.get("posterior") == -0.5  # without the mixture of the batch
    assert is_mean == (per_row or made.batching == "mean")


WITHOUT_BATCHING = {
    "Distil": ({}, {"logits": (8, 4), "teacher": (8, 4), "label": (8,)}),
    "GenericToSpecific": ({"dim": 4, "dim2": 3}, {"x": (8, 5, 4), "y": (8, 5, 3)}),
    "StructuredTransfer": (
        {"dims": [(2, 3), (3, 2)]},
        {"student": [(2, 2, 6, 6), (2, 3, 4, 4)], "teacher": [(2, 3, 6, 6), (2, 2, 4, 4)]},
    ),
}


def drawn(shape):
    """Return a tensor of a shape, labels for a shape of rows alone, or a list of tensors."""
    if isinstance(shape, list):
        return [drawn(one) for one in shape]
    return torch.arange(len(shape) * 8) % 3 if len(shape) == 1 else torch.randn(shape).double()


def in_type(value, dtype):
    if isinstance(value, list):
        return [in_type(one, dtype) for one in value]
    return value.detach().to(dtype) if value.is_floating_point() else value


@pytest.mark.truth("the same rows in float64")
@pytest.mark.parametrize(
    ("loss", "parameters"),
    LOSSES + [pytest.param(getattr(train, n), p, id=n) for n, (p, _) in WITHOUT_BATCHING.items()],
)
@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_autocast_and_half_types_do_not_change_a_value(loss, parameters, narrow):
    torch.manual_seed(4)
    made = loss(**parameters)
    shapes = WITHOUT_BATCHING.get(loss.__name__, (None, None))[1]
    given = (
        columns(made, parameters) if shapes is None else {k: drawn(s) for k, s in shapes.items()}
    )
    rows = {name: in_type(x, narrow) for name, x in given.items()}
    exact = {name: in_type(x, torch.float64) for name, x in rows.items()}
    wide = {name: in_type(x, torch.float32) for name, x in rows.items()}
    if isinstance(made, train.Mixup):
        made.change(torch.zeros(8, 1))
    with torch.no_grad():
        made(**wide)  # what is made at the first call
        expected = copy.deepcopy(made).double()(**exact)
        with torch.autocast("cpu", narrow):
            found = [copy.deepcopy(made)(**wide), copy.deepcopy(made)(**rows)]
        found.append(copy.deepcopy(made)(**rows))
    for value in found:
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_loss_in_a_half_type_is_refused(dtype):
    made = train.Separate("adversary", width=3).to(dtype)
    with pytest.raises(InputError, match=r"own weights in float32, got torch\..*loss\.float\(\)"):
        made(torch.randn(4, 3), torch.randn(4, 3))
