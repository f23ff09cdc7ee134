"""Every loss: gradients, order of the rows, and how its value depends on the batch."""

import inspect

import pytest
import torch

from sonde import train

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
