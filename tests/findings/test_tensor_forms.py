"""Forms of single input tensors: their code, and faults in models of several inputs."""

from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import sonde
from scan._zoo import quiet
from sonde.findings.evidence.trials.tensor_forms import tensor_forms
from sonde.tap.model.input_tensors import InputTensor

SEEN = ("SND015", "SND046", "SND068")


def _tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    tokens = torch.randint(1, 9, (40, 9))
    tokens[::2, 6:] = 0
    table = torch.rand(40, 4) + 0.5
    table[::3, 1] = -9
    return {"table": table, "other": torch.randn(40, 4), "tokens": tokens,
            "mask": torch.ones(40, 9, dtype=torch.bool), "series": torch.randn(40, 9, 3),
            "image": torch.rand(40, 2, 9, 9)}  # fmt: skip


@pytest.mark.truth("the line of each form, run as it is printed")
def test_every_line_does_what_its_form_does() -> None:
    given, kinds = _tensors(), {"tokens": "codes", "mask": "mask"}
    named = {n: InputTensor(n, kinds.get(n, "numbers"), x) for n, x in given.items()}  # type: ignore[arg-type]
    forms = tensor_forms(named)
    words = " ".join(form.words for form in forms)
    for part in ("column 1 of table multiplied by -1", "-9 in column 1 of table replaced",
                 "table and other exchanged", "order of tokens reversed",
                 "mask made from the padding of tokens", "series moved by +2 along axis 1",
                 "channel 1 (axis 2) of series", "image resized to 0.8 times its height and width",
                 "column 0 of table and column 3 of table exchanged"):  # fmt: skip
        assert part in words, part
    assert len({form.words for form in forms}) == len(forms)
    for form in forms:
        made = form.change(given, torch.arange(40))
        space = {"torch": torch} | {name: x.clone() for name, x in given.items()}
        exec(form.line, space)
        assert made, form.words
        for name, x in given.items():
            expected = made.get(name, x).to(x.dtype)
            torch.testing.assert_close(space[name], expected, rtol=1e-4, atol=1e-4, msg=form.line)


def test_a_series_of_one_channel_has_no_forms_of_single_steps() -> None:
    for shape in ((40, 9, 1), (40, 1, 9)):
        forms = tensor_forms({"x": InputTensor("x", "numbers", torch.randn(shape))})
        assert not [form for form in forms if form.columns]


class Towers(nn.Module):
    """Two tables of pixels and two pixels as one category."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(8, 24), nn.Linear(8, 24)
        self.code = nn.Embedding(16, 12)
        self.head = nn.Sequential(nn.Linear(60, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, left: Tensor, right: Tensor, code: Tensor) -> Tensor:
        parts = [self.left(left).relu(), self.right(right).relu(), self.code(code)]
        return self.head(torch.cat(parts, 1))


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    x, y = load_digits(return_X_y=True)
    kept = torch.from_numpy(x.var(0).argsort()[::-1][:18].copy())
    x, y = torch.from_numpy(x)[:, kept].float(), torch.from_numpy(y)
    z = (x - x.mean(0)) / x.std(0)
    code = (x[:, 16] / 4.3).long() * 4 + (x[:, 17] / 4.3).long()
    given = {"left": z[:, :8], "right": z[:, 8:16], "code": code}
    net, order = Towers(), torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, held = order[:900], order[900:]
    optimizer = torch.optim.Adam(net.parameters(), 1e-2, weight_decay=1e-4)
    for _ in range(200):
        batch = train[torch.randint(0, len(train), (256,))]
        loss = nn.functional.cross_entropy(net(*[v[batch] for v in given.values()]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval(), {name: v[held] for name, v in given.items()}, y[held]


def _column(name: str, i: int, change: Callable[[Tensor], Tensor]):
    def fault(given: dict[str, Tensor]) -> dict[str, Tensor]:
        made = given[name].clone()
        made[:, i] = change(made[:, i])
        return {**given, name: made}

    return fault


FAULTS = {
    "a factor": (_column("left", 3, lambda v: v * 37), "left[:, 3] ="),
    "an offset": (_column("right", 2, lambda v: v + 4), "right[:, 2] = right[:, 2] - "),
    "a factor and an offset of a tensor": (
        lambda x: {**x, "right": 0.2 * x["right"] - 3}, "right = ",
    ),
    "a sign": (_column("left", 1, lambda v: -v), "left[:, 1] = -1 * left[:, 1]"),
    "two tensors": (lambda x: {**x, "left": x["right"], "right": x["left"]},
                    "left, right = right, left"),
    "stale codes": (lambda x: {**x, "code": (x["code"] * 5 + 3) % 16}, "code = torch.tensor("),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.truth("the fault, and the accuracy of its line on rows that no scan has seen")
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_one_tensor_is_named_and_its_line_restores_the_answers(trained, name) -> None:
    net, given, y = trained
    fault, line = FAULTS[name]
    broken, fresh = fault(given), torch.arange(len(y)) >= 600
    report = _scan(net, {k: v[~fresh] for k, v in broken.items()}, y[~fresh])
    finding = next(f for f in report.findings if f.code == "SND015")
    assert report.json()["cause"] == "SND015"
    assert finding["fix"].startswith(line)
    space = {"torch": torch} | {k: v[fresh].clone() for k, v in broken.items()}
    exec(finding["fix"].split(": correct")[0], space)
    right = [
        float((net(*parts).argmax(1) == y[fresh]).float().mean())
        for parts in (
            [v[fresh] for v in given.values()],
            [v[fresh] for v in broken.values()],
            [space[k] for k in given],
        )
    ]
    assert right[2] - right[1] > 0.8 * (right[0] - right[1]) > 0.02


@pytest.mark.slow
def test_a_column_of_noise_is_named_and_no_form_of_it_is_the_cause(trained) -> None:
    """A small factor makes noise smaller, and half as many answers come back by it."""
    net, given, y = trained
    noise = torch.randn(len(y), generator=torch.Generator().manual_seed(1))
    report = _scan(net, _column("right", 1, lambda v: v + 6 * noise)(given), y)
    finding = next(f for f in report.findings if f.code == "SND015")
    assert report.json()["cause"] is None
    assert finding["location"] == {"tensors": ["right"], "columns": [1]} | {
        k: v for k, v in finding["location"].items() if k not in ("tensors", "columns")
    }
    assert "held at " in finding["sentence"]


@pytest.mark.slow
def test_the_inputs_of_training_are_clear(trained) -> None:
    net, given, y = trained
    report = _scan(net, given, y)
    assert report.json()["cause"] is None
    assert not [f for f in report.findings if f.code == "SND015"]


def _scan(net: nn.Module, given: dict[str, Tensor], y: Tensor):
    rows = [{**{k: v[i] for k, v in given.items()}, "label": int(y[i])} for i in range(len(y))]
    return sonde.scan(net, rows, settings=quiet(only=SEEN))
