"""Find channels that must be removed together, from forward passes instead of names.

Every layer is frozen: it repeats its recorded output. NaN is put into one channel of this output.
If NaN arrives at an input of another layer, this input reads the channel: through additions,
products, attention, norms or flattening. Channels and inputs that reach one another are a unit. A
channel that reaches the model's output stays, and so does an input that the model's input reaches.
Each set of units of one kind is then tested: the model without half of the units must answer like
the model in which these units are 0.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from sonde.compress._blocks import placed_call
from sonde.compress._layers import Weighted, refuse_adapters
from sonde.core.inputs import Inputs, Model
from sonde.tap.hand.recording import Forward, intercepted
from sonde.tap.hooks.outputs import find, replaced
from sonde.tap.hooks.session import Session
from sonde.weights import Change, Resized, RewritePlan
from sonde.weights._kinds import in_and_out, kind_of

COPIES, MOST_NUMBERS, TOKENS = 64, 2**25, 8
"""Channels that are tried in one forward, numbers that layers may return in it, tokens of texts."""
SAME = 1e-4
"""Largest difference of answers, in parts of the largest answer, that is rounding."""
_CARRIERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.PReLU)
OUT, IN = "out", "in"
Places = dict[tuple[str, str], tuple[int, ...]]
"""Channels by the name of a layer and the side of it; those of a norm are at ``out``."""


@dataclass(frozen=True, eq=False)
class CoupledSet:
    """Units of one kind: each unit has an equal number of channels in each of the layers.

    Parameters
    ----------
    units : tuple of Places
        In the order of their channels.
    numbers : mapping of (str, str) to int
        Whole-number attributes of modules that depend on the number of units, such as the number
        of heads: by the names of module and attribute. Values are for all units.
    """

    units: tuple[Places, ...]
    numbers: Mapping[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])

    def __len__(self) -> int:
        return len(self.units)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, with the layers that compute the channels first."""
        return tuple(dict.fromkeys(name for name, _ in self.units[0]))

    def places(self, units: Sequence[int], layer: str, side: str) -> list[int]:
        """Return the input or output channels of some units in a layer, in order."""
        return sorted(i for unit in units for i in self.units[unit].get((layer, side), ()))

    def sides(self, side: str) -> list[str]:
        """Return the layers whose inputs, or outputs, hold the channels of the units."""
        return [name for name, own in self.units[0] if own == side]

    def attributes(self, n_kept: int) -> dict[str, dict[str, int]]:
        """Return the new attributes of each module if ``n_kept`` units stay."""
        values: dict[str, dict[str, int]] = defaultdict(dict)
        for (name, attribute), value in self.numbers.items():
            values[name][attribute] = value * n_kept // len(self)
        return values


def coupled_sets(model: Model, inputs: Inputs) -> tuple[list[CoupledSet], dict[str, str]]:
    """Return the sets of removable units, and the reason for each set that is not removable.

    Parameters
    ----------
    model : Model
    inputs : Inputs
        The first example is run.

    Raises
    ------
    InputError
        If the model has adapters.
    """
    refuse_adapters("coupled channels", model.module)
    watch = _Watch(model, inputs)
    sets, refused = list[CoupledSet](), dict[str, str]()
    for one in watch.sets():
        tried = watch.tried(one)
        if isinstance(tried, str):
            refused[one.layers[0]] = tried
        else:
            sets.append(tried)
    return sets, refused


def cut_changes(
    module: nn.Module,
    cuts: Sequence[tuple[CoupledSet, Sequence[int]]],
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, Change], dict[str, dict[str, Any]]]:
    """Return the tensors cut to the kept units, and the new sizes in modules' attributes.

    Parameters
    ----------
    module : nn.Module
    cuts : sequence of (CoupledSet, sequence of int)
        Sets, and the units of each that stay.
    weights : mapping of str to Tensor
        New values by the tensor's name, not cut yet.
    """
    kept: dict[tuple[str, str], list[int]] = {}
    numbers: dict[str, dict[str, int]] = defaultdict(dict)
    for one, units in cuts:
        for name, side in one.units[0]:
            gone = {*one.places(range(len(one)), name, side)} - {*one.places(units, name, side)}
            before = kept.get((name, side), range(width_of(module.get_submodule(name), side)))
            kept[name, side] = [i for i in before if i not in gone]
        for name, own in one.attributes(len(units)).items():
            numbers[name] |= own
    changes: dict[str, Change] = {}
    for name in dict.fromkeys(name for name, _ in kept):
        part: Any = module.get_submodule(name)
        rows, columns = kept.get((name, OUT)), kept.get((name, IN))
        for leaf, x in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if x.ndim == 0:
                continue
            path = f"{name}.{leaf}"
            new = weights[path] if path in weights else x.detach()
            axes = list(_axes(part, leaf, rows, columns))
            for axis, places in axes:
                new = new.index_select(axis, torch.tensor(places, device=new.device))
            if axes or path in weights:
                changes[path] = Resized(new)
        groups = getattr(part, "groups", 1)
        if groups > 1 and rows is not None:
            numbers[name]["groups"] = len(rows) * groups // part.out_channels
    return changes, {name: {"shapes": {}, "numbers": own} for name, own in numbers.items()}


def _axes(
    part: Any, leaf: str, rows: list[int] | None, columns: list[int] | None
) -> Iterator[tuple[int, list[int]]]:
    """Yield each axis of a tensor that loses positions, and the positions that stay."""
    is_matrix = leaf == "weight" and kind_of(part) is not None
    if rows is not None:
        yield axis_of(part, OUT) if is_matrix else 0, rows
    if columns is not None and is_matrix and getattr(part, "groups", 1) == 1:
        yield axis_of(part, IN), columns


def axis_of(part: nn.Module, side: str) -> int:
    """Return the axis of a layer's weight that holds its input or output channels."""
    is_turned = kind_of(part) in ("transposed", "rows")
    return int((side == OUT) == is_turned)


def width_of(part: Any, side: str) -> int:
    """Return the number of a layer's input or output channels."""
    kind = kind_of(part)
    if kind is None:
        return int(part.num_parameters if isinstance(part, nn.PReLU) else part.num_features)
    if kind == "maps":
        return int(part.out_channels if side == OUT else part.in_channels)
    if kind == "rows":
        return int(part.embedding_dim if side == OUT else 0)
    return in_and_out(part)[1 if side == OUT else 0]


def columns_of(one: CoupledSet, layer: Weighted) -> list[list[int]]:
    """Return, for each unit of a set, its columns in the matrix of a layer that reads it."""
    area = layer.matrix().shape[1] // width_of(layer.module, IN)
    places = [unit[layer.name, IN] for unit in one.units]
    return [[area * i + k for i in own for k in range(area)] for own in places]


class _Watch:
    """Forward passes that show, by NaN in its channels, where a layer's output arrives."""

    def __init__(self, model: Model, inputs: Inputs) -> None:
        self.model, self.module = model, model.module
        batch = next(iter(inputs.batches(0, 1)))
        args, kwargs = placed_call(model, batch)
        self.call = _shorter(args, kwargs)
        parts = list(self.module.named_modules())
        self.layers = {
            part: name
            for name, part in parts
            if name and kind_of(part) is not None and "weight" in part._parameters
        }
        self.carriers: dict[nn.Module, str] = {}
        for name, part in parts:
            if isinstance(part, _CARRIERS) and width_of(part, OUT) > 1:
                self.carriers[part] = name
        self.made: dict[nn.Module, list[Tensor]] = defaultdict(list)
        self._record()
        self.layers = {part: name for part, name in self.layers.items() if part in self.made}
        numbers = sum(x.numel() for several in self.made.values() for x in several)
        self.n_copies = max(4, min(COPIES, MOST_NUMBERS // max(numbers, 1)))
        self.first: dict[tuple[str, str], int] = {}
        self.size = 0
        for part, name in [*self.layers.items(), *self.carriers.items()]:
            for side in (OUT, IN) if part in self.layers else (OUT,):
                self.first[name, side] = self.size
                self.size += width_of(part, side)
        self.fixed = np.zeros(self.size, dtype=bool)
        self.edges: list[tuple[np.ndarray, np.ndarray]] = []

    def _record(self) -> None:
        def around(part: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            self.made[part].append(output.detach().clone())
            return output

        with Session(self.module), intercepted(list(self.layers), around), torch.no_grad():
            self.module(*self.call[0], **self.call[1])

    def frozen(
        self, marks: Mapping[nn.Module, Bool[Tensor, "copy _channel"]], from_input: bool = False
    ) -> dict[tuple[str, str], Bool[Tensor, "copy _channel"]]:
        """Return the channels that become NaN, in each copy, if channels of some layers are NaN.

        ``("", "out")`` stands for the model's output. With ``from_input`` the inputs are NaN.
        """
        n, counts, seen = self.n_copies, dict[nn.Module, int](), dict[tuple[str, str], Tensor]()

        def note(name: str, side: str, x: Tensor, axis: int) -> None:
            wide = x.reshape(n, -1, *x.shape[1:]).isnan()
            is_hit = wide.movedim(axis + 1 if axis > 0 else axis, -1).flatten(1, -2).any(1)
            old = seen.get((name, side))
            seen[name, side] = is_hit if old is None else old | is_hit

        def around(part: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
            x = find((args, kwargs), None)
            name = self.carriers.get(part)
            if name is not None:
                if x is not None:
                    note(name, OUT, x, 1 if x.ndim > 1 else 0)
                return forward(*args, **kwargs)
            name, call = self.layers[part], counts.get(part, 0)
            counts[part] = call + 1
            is_map = kind_of(part) == "maps"
            if x is not None:
                note(name, IN, x, 1 if is_map else -1)
            recorded = self.made[part][min(call, len(self.made[part]) - 1)]
            out = recorded.repeat(n, *[1] * (recorded.ndim - 1))
            mark = marks.get(part)
            if mark is not None:
                each = mark.repeat_interleave(len(recorded), 0)
                shape = [1] * out.ndim
                shape[0], shape[1 if is_map else -1] = each.shape
                out = out.masked_fill(each.reshape(shape), float("nan"))
            return out

        args, kwargs = tree_map(lambda x: self._copied(x, from_input), self.call)
        parts = [*self.layers, *self.carriers]
        # fused attention may drop NaN where it masks
        plain = sdpa_kernel(SDPBackend.MATH)
        with Session(self.module), plain, intercepted(parts, around), torch.no_grad():
            output = find(self.module(*args, **kwargs), None)
        assert output is not None  # the model returned a tensor before
        seen["", OUT] = output.reshape(n, -1).isnan().any(1, keepdim=True)
        return seen

    def _copied(self, x: Any, from_input: bool) -> Any:
        if not isinstance(x, Tensor) or x.ndim == 0 or x.shape[0] != 1:
            return x
        wide = x.repeat(self.n_copies, *[1] * (x.ndim - 1))
        return wide * float("nan") if from_input and x.is_floating_point() else wide

    def sets(self) -> Iterator[CoupledSet]:
        """Yield the sets of units that do not depend on the model's input or output."""
        self._fix()
        reach = self._reach()
        self.reached = {part: [key for key in hit if key[0]] for part, (hit, _) in reach.items()}
        plain: list[nn.Module] = []
        for part, (hit, mixes) in reach.items():
            name = self.layers[part]
            if "" in {one for one, _ in hit} or mixes:
                self._join_all(part, hit)
            if "" in {one for one, _ in hit}:
                self.fixed[self._range(name, OUT)] = True
            elif not mixes:
                plain.append(part)
        for several in _apart(plain, {part: set(reach[part][0]) for part in plain}):
            self._follow(several)
        yield from self._units()

    def _range(self, name: str, side: str) -> slice:
        part = self.module.get_submodule(name)
        start = self.first[name, side]
        return slice(start, start + width_of(part, side))

    def _fix(self) -> None:
        """Mark channels as fixed if the model's input reaches them or their weights are shared."""
        for (name, side), marks in self.frozen({}, from_input=True).items():
            if name:
                start = self.first[name, side]
                self.fixed[start + np.flatnonzero(marks[0].cpu().numpy())] = True
        owners: dict[int, list[str]] = defaultdict(list)
        for name, part in self.module.named_modules(remove_duplicate=False):
            for x in part._parameters.values():
                if x is not None:
                    owners[id(x)].append(name)
        for names in owners.values():
            for name in names if names[1:] else ():
                for side in (OUT, IN):
                    if (name, side) in self.first:
                        self.fixed[self._range(name, side)] = True

    def _reach(self) -> dict[nn.Module, tuple[dict[tuple[str, str], Tensor], bool]]:
        """Return the channels that each layer reaches, and whether its channels are mixed."""
        reached: dict[nn.Module, tuple[dict[tuple[str, str], Tensor], bool]] = {}
        layers, n = list(self.layers), self.n_copies
        for start in range(0, len(layers), n):
            some = layers[start : start + n]
            marks = [{}, {}]
            for i, part in enumerate(some):
                width = width_of(part, OUT)
                for own, last in zip(marks, (width, 1), strict=True):
                    own[part] = torch.zeros(n, width, dtype=torch.bool, device=self._device(part))
                    own[part][i, :last] = True
            whole, single = (self.frozen(own) for own in marks)
            for i, part in enumerate(some):
                hit = {key: x[i] for key, x in whole.items() if bool(x[i].any())}
                mixes = width_of(part, OUT) > 1 and any(
                    key[0] and bool(single[key][i].all()) and single[key].shape[1] > 1
                    for key in hit
                )
                reached[part] = hit, mixes
        return reached

    def _device(self, part: nn.Module) -> torch.device:
        return self.made[part][0].device

    def _join_all(self, part: nn.Module, hit: Mapping[tuple[str, str], Tensor]) -> None:
        """Join all channels of a layer with all channels that they reach."""
        own = np.arange(*self._range(self.layers[part], OUT).indices(self.size)[:2])
        parts = [own] + [self.first[key] + np.flatnonzero(x.cpu().numpy())
                         for key, x in hit.items() if key[0]]  # fmt: skip
        every = np.concatenate(parts)
        self.edges.append((np.full(len(every), every[0]), every))

    def _follow(self, parts: Sequence[nn.Module]) -> None:
        """Join each channel with all channels that it reaches; layers' channels are separate."""
        n, widest = self.n_copies, max(width_of(part, OUT) for part in parts)
        for start in range(0, widest, n):
            marks: dict[nn.Module, Tensor] = {}
            for part in parts:
                width = width_of(part, OUT)
                mark = torch.zeros(n, width, dtype=torch.bool, device=self._device(part))
                for i in range(start, min(start + n, width)):
                    mark[i - start, i] = True
                marks[part] = mark
            seen = self.frozen(marks)
            for part in parts:
                width, first = width_of(part, OUT), self.first[self.layers[part], OUT]
                for key in self.reached[part]:
                    copy, place = seen[key][: max(0, width - start)].cpu().numpy().nonzero()
                    self.edges.append((first + start + copy, self.first[key] + place))

    def _units(self) -> Iterator[CoupledSet]:
        for part, name in self.layers.items():
            groups = getattr(part, "groups", 1)
            if groups > 1:
                for side in (OUT, IN):
                    each = np.arange(width_of(part, side)).reshape(groups, -1)
                    heads = np.arange(groups) * (width_of(part, OUT) // groups)
                    ends = self.first[name, side] + each
                    starts = self.first[name, OUT] + heads
                    self.edges.append((starts.repeat(each.shape[1]), ends.ravel()))
        if not self.edges:
            return
        pairs = [np.concatenate(x) for x in zip(*self.edges, strict=True)]
        graph = coo_array((np.ones(len(pairs[0])), pairs), shape=(self.size, self.size))
        _, label = connected_components(graph, directed=False)
        bad = {*label[self.fixed].tolist()}
        members: dict[int, Places] = defaultdict(dict)
        for (name, side), start in self.first.items():
            stop = start + width_of(self.module.get_submodule(name), side)
            for place, own in enumerate(label[start:stop].tolist()):
                if own not in bad:
                    old = members[own].get((name, side), ())
                    members[own][name, side] = (*old, place)
        alike: dict[Any, list[Places]] = defaultdict(list)
        for unit in members.values():
            sides = {side for name, side in unit if name in self.layers.values()}
            if sides == {OUT, IN}:
                alike[tuple((key, len(places)) for key, places in unit.items())].append(unit)
        for units in alike.values():
            if units[1:]:
                yield CoupledSet(tuple(sorted(units, key=lambda u: [*u.values()])))

    def tried(self, one: CoupledSet) -> CoupledSet | str:
        """Return the set with its size-dependent attributes, or the reason why it cannot be cut."""
        kept = [i for i in range(len(one)) if i % 2 == 0]
        gone = [i for i in range(len(one)) if i % 2]

        def without(part: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
            x = find((args, kwargs), None)
            assert x is not None  # a layer that reads channels
            axis = 1 if kind_of(part) == "maps" else -1
            places = one.places(gone, self.layers[part], IN)
            new = x.index_fill(axis, torch.tensor(places, device=x.device), 0.0)
            args, kwargs = replaced((args, kwargs), x, new)
            return forward(*args, **kwargs)

        readers = [self.module.get_submodule(name) for name in one.sides(IN)
                   if getattr(self.module.get_submodule(name), "groups", 1) == 1]  # fmt: skip
        with Session(self.module), intercepted(readers, without), torch.no_grad():
            wanted = find(self.module(*self.call[0], **self.call[1]), None)
        assert wanted is not None  # the model returned a tensor before
        why = ""
        for numbers in self._numbers(one):
            coupled = CoupledSet(one.units, numbers)
            changes, forms = cut_changes(self.module, [(coupled, kept)], {})
            plan = RewritePlan.shaped(self.module, changes, forms=forms)
            try:
                new = plan.fold(self.module)
                with Session(new), torch.no_grad():
                    output = find(new(*self.call[0], **self.call[1]), None)
            except Exception as error:  # whatever a model raises for sizes that do not fit
                why = f"the model does not run without half of them ({type(error).__name__})"
                continue
            gap = float((output - wanted).abs().max()) if output is not None else float("inf")
            if gap <= SAME * float(wanted.abs().max()):
                return coupled
            why = "without half of them the model answers otherwise than with these at 0"
        return why

    def _numbers(self, one: CoupledSet) -> Iterator[dict[tuple[str, str], int]]:
        """Yield candidates for the attributes, of the module around a set, that depend on its size.

        First none, then whole numbers that equal a width or the number of units, then also
        multiples of this number.
        """
        yield {}
        widths = {len(one.places(range(len(one)), *key)) for key in one.units[0]}
        parts = {len(places) for places in one.units[0].values()}
        more = {len(one) * k for n in parts for k in range(1, n + 1) if n % k == 0}
        above = one.layers[0].split(".")[:-1]
        while above and not all(name.startswith(".".join(above) + ".") for name in one.layers):
            above.pop()
        name = ".".join(above)
        own = vars(self.module.get_submodule(name)) if above else {}
        for sizes in ({*widths, len(one)}, {*widths, *more}):
            yield {(name, key): value for key, value in own.items()
                   if type(value) is int and value in sizes and value % len(one) == 0}  # fmt: skip


def _shorter(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the arguments of a model's call, with texts cut to a few tokens."""
    ids = kwargs.get("input_ids")
    if ids is None or ids.ndim != 2:
        return args, kwargs
    length = ids.shape[1]
    cut = {name: x[:, :TOKENS] if isinstance(x, Tensor) and x.ndim == 2 and x.shape[1] == length
           else x for name, x in kwargs.items()}  # fmt: skip
    return args, cut


def _apart(
    parts: Sequence[nn.Module], reach: Mapping[nn.Module, set[tuple[str, str]]]
) -> list[list[nn.Module]]:
    """Return groups of layers whose outputs reach separate channels."""
    groups: list[tuple[list[nn.Module], set[tuple[str, str]]]] = []
    for part in parts:
        for members, taken in groups:
            if not taken & reach[part]:
                members.append(part)
                taken |= reach[part]
                break
        else:
            groups.append(([part], set(reach[part])))
    return [members for members, _ in groups]
