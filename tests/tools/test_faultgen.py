"""A seed gives one world, a drawn fault costs, and the judge runs what a report says."""

import copy
import random
from dataclasses import replace

import pytest
import torch
from tools.faultgen import (
    damages,
    drawing,
    grammar,
    judging,
    operators,
    table,
    tasks,
    truths,
    worlds,
)
from tools.faultgen.pasting import code_of
from tools.faultgen.places import Place, overlap
from torch import Tensor, nn

SPEC = tasks.Spec("numbers", ("column",), ("height_0", "weight_1", "age_2", "pulse_3"))


class Weigh(nn.Module):
    """Answer by a line through the columns."""

    def __init__(self) -> None:
        super().__init__()
        self.fc_out = nn.Linear(4, 1)
        self.fc_out.weight.data = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
        self.fc_out.bias.data = torch.tensor([0.3])

    def forward(self, features_in: torch.Tensor) -> torch.Tensor:
        """Return one number for each row."""
        return self.fc_out(features_in)


def small_world() -> worlds.World:
    net = Weigh().requires_grad_(False).eval()
    draw = torch.Generator().manual_seed(3)

    def rows(n: int) -> tasks.Rows:
        x = torch.randn(n, 4, generator=draw) * torch.tensor([1.0, 2.0, 0.5, 1.0]) + 1
        y = net(x) + 0.2 * torch.randn(n, 1, generator=draw)
        return tasks.Rows({"features_in": x}, y)

    task = tasks.Task("table", "drawn", "number", {"features_in": SPEC}, rows(9), 1)
    return worlds.World(task, "line", net, rows(80), rows(60), rows(70), net.state_dict())


def tenfold(world: worlds.World) -> grammar.Planted:
    """Plant a column that is ten times larger."""

    def on_rows(rows: tasks.Rows, _: int) -> tasks.Rows:
        x = rows.tensors["features_in"].clone()
        x[:, 1] *= 10
        return rows.with_tensor("features_in", x)

    return grammar.plant(world, grammar.Fault("numbers.one.scale.all", on_rows))


def said(fix: str, sentence: str = "", is_cause: bool = True) -> dict:
    finding = {"code": "SND015", "level": "warning", "sentence": sentence, "fix": fix}
    finding |= {"rows": [], "ignored": False}
    return {"findings": [finding], "cause": "SND015" if is_cause else None}


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (said("frame['weight_1'] /= 10: R^2 of 0.9 instead of -3."), judging.RIGHT),
        (said("frame['weight_1'] /= 11: R^2 of 0.9 instead of -3."), judging.RIGHT),
        (said("frame['weight_1'] /= 3: R^2 of 0.9 instead of -3."), judging.WRONG),
        (said("frame['pulse_3'] /= 10: R^2 of 0.9 instead of -3."), judging.WRONG),
        # the weight of the column mends it too, elsewhere than where it was broken
        (said("fc_out.weight[:, 1] /= 10: R^2 of 0.9 instead of -3."), judging.EQUIVALENT),
        # without a line, the column that is named is put right
        (said("Give it in another unit.", "weight_1 is off."), judging.RIGHT),
        (said("Give it in another unit.", "age_2 is off."), judging.WRONG),
        (said("nothing to paste", "weight_1 is off.", is_cause=False), judging.NAMED),
        (said("nothing to paste", "overweight_1, weight_10", is_cause=False), judging.MISSED),
        (said("y = 0.5 * y: less error.", is_cause=False), judging.MISSED),
    ],
)
def test_a_cause_is_judged_by_its_place_and_by_its_line_on_fresh_rows(report, expected):
    assert judging.judged(tenfold(small_world()), report).verdict == expected


def test_a_line_for_some_rows_is_run_on_these_rows_alone():
    def on_rows(rows: tasks.Rows, _: int) -> tasks.Rows:
        x = rows.tensors["features_in"].clone()
        x[len(x) // 2 :, 1] *= 10
        return rows.with_tensor("features_in", x)

    made = grammar.plant(small_world(), grammar.Fault("numbers.one.scale.span", on_rows))
    report = said("frame['weight_1'] /= 10. Do so for these rows alone.")
    assert judging.judged(made, report).verdict == judging.WRONG
    report["findings"][0]["rows"] = ["40", "50", "59"]
    assert judging.judged(made, report).verdict == judging.RIGHT
    report["findings"][0]["rows"] = ["4", "5", "59"]
    assert judging.judged(made, report).verdict == judging.WRONG


def test_the_line_of_a_warning_names_what_it_changes_only_if_it_helps():
    def on_rows(rows: tasks.Rows, _: int) -> tasks.Rows:
        return replace(rows, target=rows.target + 30)

    made = grammar.plant(small_world(), grammar.Fault("target.offset.all", on_rows))
    helps, little = (said(f"y = y + {n}.", is_cause=False) for n in (29, 2))
    assert judging.judged(made, helps).verdict == judging.NAMED
    assert judging.judged(made, little).verdict == judging.MISSED


def test_the_place_of_a_fault_is_what_differs():
    world = small_world()
    made = tenfold(world)
    assert made.truth == Place({"features_in": frozenset({1})})
    change = next(iter(damages.rescaled(world)))(random.Random(2))
    net = grammar.plant(world, grammar.Fault("net.rescaled", on_net=change))
    assert net.truth == Place(modules=frozenset({"fc_out"}))


def test_a_place_that_names_many_columns_names_none():
    truth = Place({"features_in": frozenset({1})})
    few, all_of_them = (Place({"features_in": frozenset(v)}) for v in ((0, 1), range(6)))
    specs = {"features_in": SPEC}
    assert overlap(few, truth, specs)
    assert not overlap(all_of_them, truth, specs)


@pytest.mark.parametrize(
    ("fix", "code"),
    [
        ("x = 0.5 * x + 3: correct on 98 % instead of 27 %.", "x = 0.5 * x + 3"),
        (
            "x = x.flip(1)  # channels: correct on 9 %.",
            "x = x.flip(1)  # channels: correct on 9 %.",
        ),
        (
            "Give the targets in the form of training. Or bring the model's answers y into the "
            "form of these targets: y = 10 ** y.",
            "y = 10 ** y",
        ),
        ("label = label + 1 (or correct the inputs): correct on 3 %.", "label = label + 1"),
        ("Load the weights again, the head first.", ""),
    ],
)
def test_the_line_of_a_fix_is_found(fix, code):
    assert code_of(fix) == code


def test_every_operator_keeps_shapes_and_changes_something():
    draw, g = random.Random(1), torch.Generator().manual_seed(1)
    axes = {"numbers": ("time", "channel"), "codes": ("token",), "mask": ("item",)}
    axes["bonds"] = ("item", "item2")
    for op in operators.OPERATORS:
        height = op.needs == "height"
        spec = tasks.Spec(op.role, ("channel", "height", "width") if height else axes[op.role])
        if op.role == "codes" and op.needs == "several":
            spec = tasks.Spec("codes", ("column",))
        x = torch.randn(50, 8, 8, 8, generator=g)[(slice(None), *[slice(None)] * len(spec.axes))]
        x = x[(..., *[0] * (x.ndim - 1 - len(spec.axes)))]
        x = {"numbers": x, "codes": (x.abs() * 9).long(), "bonds": x}.get(op.role, x > 0.3)
        new = op.make(draw, x, spec)(x, g)
        assert new.shape == x.shape, op.name
        assert not torch.equal(new.to(x.dtype), x), op.name


def test_kinds_are_open_or_closed_whatever_the_seed():
    kinds = {kind for kind, _ in grammar.candidates(small_world())}
    closed = {kind for kind in kinds if grammar.is_closed(kind)}
    assert 0.15 < len(closed) / len(kinds) < 0.5
    assert grammar.is_closed("numbers.one.scale.all") is grammar.is_closed("numbers.one.scale.all")


def test_tables_of_closed_kinds_do_not_name_kinds():
    result = {"task": "table", "family": "mlp", "answers": "number", "inputs": 1,
              "kind": "numbers.one.scale.all", "group": "numbers", "verdict": "named"}  # fmt: skip
    assert "numbers: scale" in table.faults([result])
    assert "scale" not in table.faults([result], kinds=False)


@pytest.mark.slow
def test_a_seed_gives_one_world_whose_fault_costs(tmp_path, monkeypatch):
    made = []
    for folder in ("a", "b"):  # each trains anew
        monkeypatch.setattr(worlds, "MODELS", tmp_path / folder)
        monkeypatch.setattr(tasks, "SHAPES", {"points": tasks.points})
        made.append(drawing.draw(5))
    first, again = made
    assert first.fault.kind == again.fault.kind
    assert first.truth == again.truth
    for name, values in first.faulty.given.tensors.items():
        assert torch.equal(values, again.faulty.given.tensors[name])
    costs = [drawing.cost(m) for m in made]
    assert costs[0] == costs[1] >= drawing.POINTS
    unharmed = replace(first, faulty=first.healthy)
    assert drawing.cost(unharmed) == 0


def test_a_warning_about_a_healthy_world_is_true_only_if_fresh_rows_say_so():
    world = small_world()
    copies = world.given.tensors["features_in"].clone()
    copies[:10] = copies[10:20] + 1e-3
    with_copies = replace(world, given=world.given.with_tensor("features_in", copies))
    finding = {"code": "SND042", "level": "warning", "sentence": "", "rows": ["0", "1", "12"]}
    report = {"findings": [finding | {"ignored": False}], "cause": None}
    assert judging.judged_healthy(report, with_copies)["verdict"] == judging.TRUE
    assert judging.judged_healthy(report, world) == {"verdict": judging.WARNED, "false": ["SND042"]}
    unknown = {"findings": [finding | {"code": "SND034", "ignored": False}], "cause": None}
    assert judging.judged_healthy(unknown, with_copies)["verdict"] == judging.WARNED
    assert (
        judging.judged_healthy({"findings": [], "cause": None}, world)["verdict"] == judging.CLEAN
    )


def test_a_net_that_raises_is_no_fault():
    def broken(net: nn.Module) -> nn.Module:
        net.fc_out = nn.Identity()
        net.fc_out.register_forward_pre_hook(lambda *_: int("no number"))
        return net

    made = tenfold(small_world())
    assert drawing.runs(made)
    assert not drawing.runs(replace(made, faulty=replace(made.faulty, net=broken(Weigh()))))


@pytest.mark.truth("a dead unit, a constant column and a class that is answered wrongly")
def test_warnings_of_units_columns_and_groups_are_asked_of_fresh_rows():
    world = small_world()
    blank = {"code": "", "level": "warning", "ignored": False, "sentence": "", "rows": [],
             "sites": [], "location": {"tensors": [], "columns": []}}  # fmt: skip

    def false(code, made, **more):
        report = {"findings": [blank | more | {"code": code}], "cause": None}
        return judging.judged_healthy(report, made)["false"]

    still = world.fresh.tensors["features_in"].clone()
    still[:, 1] = 3.0
    idle = replace(world, fresh=world.fresh.with_tensor("features_in", still))
    at = {"tensors": ["features_in"], "columns": [1]}
    assert false("SND083", idle, location=at) == []
    assert false("SND083", world, location=at) == ["SND083"]
    dead = copy.deepcopy(world.net)
    dead.fc_out.register_forward_hook(lambda *a: torch.zeros_like(a[2]))
    units = {"sentence": "1 of 1 units at fc_out are zero", "sites": ["fc_out:out"]}
    assert false("SND011", replace(world, net=dead), **units) == []
    assert false("SND011", world, **units) == ["SND011"]
    first, far = (world.net(x.tensors["features_in"])[:, 0] > 0 for x in (world.given, world.fresh))
    target = world.fresh.target + 50.0 * far[:, None]
    weak = replace(world, fresh=replace(world.fresh, target=target))
    rows = [str(i) for i in torch.nonzero(first)[:, 0].tolist()]
    group = {"rows": rows, "sites": ["fc_out:out"]}
    assert false("SND063", world, **group) == ["SND063"]
    assert false("SND063", weak, **group) == []


class Layered(nn.Module):
    """A first layer that tells two classes apart, a tanh, and answers at random."""

    def __init__(self, gain: float, shift: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.act = nn.Linear(4, 6), nn.Tanh()
        self.one.weight.data *= gain
        self.one.bias.data += shift

    def forward(self, features_in: Tensor) -> Tensor:
        h = self.act(self.one(features_in))
        return torch.stack([features_in[:, 3], features_in[:, 2]], 1) + 0 * h[:, :2]


@pytest.mark.truth("a tanh at its ends, units that follow one, states that a classifier reads")
def test_warnings_of_layers_are_asked_of_fresh_rows():
    def world(gain: float, shift: float = 0.0) -> worlds.World:
        def with_classes(rows: tasks.Rows) -> tasks.Rows:
            return replace(rows, target=(rows.tensors["features_in"][:, 0] > 1).long())

        plain = small_world()
        task = replace(plain.task, kind="classes", n_out=2)
        given, fresh = with_classes(plain.given), with_classes(plain.fresh)
        return replace(plain, task=task, net=Layered(gain, shift).eval(), given=given, fresh=fresh)

    def is_true(code: str, made: worlds.World, site: str) -> bool:
        return truths.is_true({"code": code, "sites": [f"{site}:out"], "sentence": ""}, made)

    assert is_true("SND013", world(1.0, 30.0), "act")
    assert not is_true("SND013", world(0.1), "act")
    assert is_true("SND023", world(1e-3, 3.0), "one")
    assert not is_true("SND023", world(1.0), "one")
    assert is_true("SND031", world(1.0), "one")
    apart, one = world(1.0), world(1.0)
    apart.net.one.weight.data[:4] = torch.eye(4)
    assert not is_true("SND022", apart, "one")
    one.net.one.weight.data[:] = one.net.one.weight.data[:1] * torch.arange(1.0, 7)[:, None]
    assert is_true("SND022", one, "one")
    one.net.one.weight.data[:, 0] = 0
    assert not is_true("SND031", one, "one")
