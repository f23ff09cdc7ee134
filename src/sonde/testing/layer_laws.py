"""The laws of layers: functions that raise AssertionError if a layer breaks its promises.

Every law but ``start`` and ``unseen`` takes the layer with moved weights, since a layer that starts
as the identity would keep most promises by doing nothing.
"""

import copy
import inspect
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sonde.layers.layer import ORDERED, POSITIONS, Layer

SIZES = {"row": 3, "token": 6, "time": 6, "item": 5, "node": 5, "high": 4, "wide": 5}
ELSE = 4
PADDED = (0, 1, 7)
HALF = ((torch.float16, 300.0), (torch.bfloat16, 300.0))
"""Half types, and how large states are in them: their products overflow in float16."""
FAR = 7


@dataclass(frozen=True, eq=False)
class LayerCase:
    """A layer with its test inputs.

    Parameters
    ----------
    layer : Layer
        Layer to test.
    inputs : tuple of Tensor, optional
        Drawn by ``layout`` unless given.
    """

    layer: Layer
    inputs: tuple[Tensor, ...] | None = None

    def __repr__(self) -> str:
        """Return the call that made the layer."""
        words = {
            name: type(value).__name__ if isinstance(value, nn.Module) else repr(value)
            for name, value in self.layer.given.items()
        }
        given = ", ".join(f"{name}={value}" for name, value in words.items())
        return f"{type(self.layer).__name__}({given})"

    def drawn(self, **sizes: int) -> tuple[Tensor, ...]:
        """Return the tensors, in float64 unless they are integers."""
        if self.inputs is not None:
            return tuple(x.double() if x.is_floating_point() else x for x in self.inputs)
        generator = torch.Generator().manual_seed(5)
        return tuple(
            torch.randn(self._shape(words, sizes), generator=generator, dtype=torch.float64)
            for words in self.layer.layout
        )

    def _shape(self, words: str, sizes: dict[str, int]) -> list[int]:
        shape: list[int] = []
        for word in words.split():
            if word == "*axes":
                shape += [SIZES["row"], SIZES["token"]]
            elif word.startswith("*"):
                shape += [SIZES["high"], SIZES["wide"]]
            else:
                default = getattr(self.layer, word, SIZES.get(word, ELSE))
                shape.append(sizes.get(word, default))
        return shape


def moved(layer: Layer) -> Layer:
    """Return a copy in float64 and eval mode, with randomly changed parameters."""
    own, generator = copy.deepcopy(layer).double().eval(), torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in own.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return own


@torch.no_grad()
def outputs(layer: Layer, inputs: tuple[Tensor, ...], **masks: Tensor) -> list[Tensor]:
    """Return the output tensors of a copy of a layer."""
    returned = copy.deepcopy(layer)(*inputs, **masks)
    values = [returned] if isinstance(returned, Tensor) else list(returned)
    return [y for y in values if isinstance(y, Tensor)]


def _gap(a: list[Tensor], b: list[Tensor]) -> float:
    assert [x.shape for x in a] == [y.shape for y in b], "the shapes differ"
    pairs = [(x.double(), y.double()) for x, y in zip(a, b, strict=True) if x.numel()]
    return max(float((x - y).abs().max() / y.abs().max().clamp(min=1.0)) for x, y in pairs)


def is_insertable(case: LayerCase) -> bool:
    """Return whether a layer promises to start as the identity."""
    return case.layer.insertable


def law_start(case: LayerCase) -> None:
    """A new layer returns its input bit by bit, in training and in every dtype."""
    for training in (False, True):
        for kind, size in ((torch.float32, 1.0), (torch.float64, 1.0), *HALF):
            own, x = copy.deepcopy(case.layer).to(kind), (size * case.drawn()[0]).to(kind)
            (output,) = outputs(own.train(training), (x,))
            assert output.shape == x.shape, f"shape {tuple(output.shape)} of {tuple(x.shape)}"
            gap = float((output - x).abs().max())
            assert torch.equal(output, x), f"the first output is off by {gap:.3g} in {kind}"


def law_gradients(case: LayerCase) -> None:
    """Gradients of inputs and parameters equal finite differences, in float64."""
    own, given = moved(case.layer), case.drawn()
    floats = [i for i, x in enumerate(given) if x.is_floating_point()]
    trained = {name: p for name, p in own.named_parameters() if p.requires_grad}
    fixed = {n: p.detach() for n, p in own.named_parameters() if n not in trained}

    def value(*values: Tensor) -> tuple[Tensor, ...]:
        tensors = list(given)
        for i, x in zip(floats, values, strict=False):
            tensors[i] = x
        weights = dict(zip(trained, values[len(floats) :], strict=True))
        buffers = {name: b.clone() for name, b in own.named_buffers()}
        returned = functional_call(own, weights | fixed | buffers, tuple(tensors))
        returned = (returned,) if isinstance(returned, Tensor) else tuple(returned)
        return tuple(y for y in returned if y.is_floating_point())

    points = [given[i].clone().requires_grad_() for i in floats]
    points += [p.detach().clone().requires_grad_() for p in trained.values()]
    right = torch.autograd.gradcheck(value, points, fast_mode=True, raise_exception=False)
    assert right, "the gradients are not those of finite differences"


def law_again(case: LayerCase) -> None:
    """Two runs in eval mode are equal, and no input is changed in place."""
    own, given = moved(case.layer), case.drawn()
    before = [x.clone() for x in given]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = outputs(own, given)
        same = all(torch.equal(a, b) for a, b in zip(before, given, strict=True))
        assert same, "an input was changed in place"
        torch.manual_seed(2)
        assert _gap(first, outputs(own, given)) == 0.0, "two runs differ"


def has_rows(case: LayerCase) -> bool:
    """Return whether the first axis of every tensor of a layer is the examples."""
    return bool(case.layer.layout) and all(
        words.split()[0] in ("row", "*axes") for words in case.layer.layout
    )


def law_alone(case: LayerCase) -> None:
    """A row has equal outputs alone and in its batch, in eval mode."""
    own, given = moved(case.layer), case.drawn()
    whole = outputs(own, given)
    for i in range(len(given[0])):
        alone = outputs(own, tuple(x[i : i + 1] for x in given))
        gap = _gap(alone, [y[i : i + 1] for y in whole])
        assert gap < 1e-12, f"row {i} alone is off by {gap:.3g}"


def _axes(case: LayerCase, kinds: frozenset[str]) -> dict[str, list[int | None]]:
    """Return the axis of each word of some kinds in each tensor, None if the tensor lacks it."""
    split = [words.split() for words in case.layer.layout]
    words = {word for axis_words in split for word in axis_words if word in kinds}
    return {w: [s.index(w) if w in s else None for s in split] for w in sorted(words)}


def is_symmetric(case: LayerCase) -> bool:
    """Return whether a layer declares a symmetry."""
    return case.layer.symmetry != "none"


def law_symmetry(case: LayerCase) -> None:
    """Permuted or shifted positions permute or shift the output, or do not change it."""
    shifts = case.layer.symmetry == "translation"
    axes = _axes(case, POSITIONS)
    assert axes, "a symmetry is declared, but the layout has no positions"
    for word, places in axes.items():
        size = 4 * FAR if shifts else SIZES[word]
        given = case.drawn(**{word: size})
        order = torch.arange(size).roll(1) if shifts else torch.arange(size).flip(0).roll(2)
        if shifts:
            given = tuple(_middle(x, i) for x, i in zip(given, places, strict=True))
        turned = tuple(
            x if i is None else x.index_select(i, order) for x, i in zip(given, places, strict=True)
        )
        own = moved(case.layer)
        for y, z in zip(outputs(own, given), outputs(own, turned), strict=True):
            axis = next(i for i in places if i is not None)
            moves = axis < y.ndim and y.shape[axis] == size
            wanted, seen = (y.index_select(axis, order), z) if moves else (y, z)
            if shifts and moves:
                wanted, seen = (q.narrow(axis, FAR, size - 2 * FAR) for q in (wanted, seen))
            gap = _gap([seen], [wanted])
            assert gap < 1e-10, f"a {case.layer.symmetry} of {word} is off by {gap:.3g}"


def _middle(x: Tensor, axis: int | None) -> Tensor:
    """Return the tensor with zeros except near the middle of an axis."""
    if axis is None:
        return x
    inside = torch.zeros(x.shape[axis], dtype=torch.bool)
    inside[FAR + 4 : -FAR - 4] = True
    return x * inside.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def has_tokens(case: LayerCase) -> bool:
    """Return whether rows may be padded: the layer accepts any number of tokens or steps."""
    axes = _axes(case, ORDERED | {"item"})
    return bool(axes) and not any(isinstance(getattr(case.layer, w, None), int) for w in axes)


def law_padding(case: LayerCase) -> None:
    """Padding by 0, 1 and 7 at either end does not change real positions."""
    own, given = moved(case.layer), case.drawn()
    takes_mask = "mask" in inspect.signature(own.forward).parameters
    whole, generator = outputs(own, given), torch.Generator().manual_seed(3)
    for word, places in _axes(case, ORDERED | {"item"}).items():
        size = next(x.shape[i] for x, i in zip(given, places, strict=True) if i is not None)
        for n, first in ((n, first) for n in PADDED for first in (False, True)):
            padded = tuple(
                x if i is None else _padded(x, i, n, first, generator)
                for x, i in zip(given, places, strict=True)
            )
            real = torch.arange(size + n) >= n if first else torch.arange(size + n) < size
            masks = {"mask": real.expand(len(given[0]), -1)} if takes_mask else {}
            padded_outputs = outputs(own, padded, **masks)
            axis = next(i for i in places if i is not None)
            kept = [
                y.narrow(axis, n if first else 0, size) if y.shape != z.shape else y
                for y, z in zip(padded_outputs, whole, strict=True)
            ]
            gap = _gap(kept, whole)
            assert gap < 1e-10, f"{n} padded {word}s move real ones by {gap:.3g}"


def _padded(x: Tensor, axis: int, n: int, first: bool, generator: torch.Generator) -> Tensor:
    shape = [n if i == axis else s for i, s in enumerate(x.shape)]
    junk = (5.0 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(x.dtype)
    return torch.cat([junk, x] if first else [x, junk], axis)


def law_saved(case: LayerCase) -> None:
    """A copy, a saved file, and a new layer with an equal state dict give equal outputs."""
    own, given = moved(case.layer), case.drawn()
    wanted = outputs(own, given)
    new = type(own)(**copy.deepcopy(own.given)).double().eval()
    new.load_state_dict(own.state_dict())
    file = io.BytesIO()
    torch.save(own, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    for name, one in (("new layer", new), ("copy", copy.deepcopy(own)), ("file", read)):
        assert _gap(outputs(one, given), wanted) == 0.0, f"the {name} gives another output"


def is_bfloat16_safe(case: LayerCase) -> bool:
    """Return whether a layer promises to be accurate in bfloat16."""
    return case.layer.bfloat16_safe


def law_bfloat16(case: LayerCase) -> None:
    """Outputs in bfloat16 are within 2 % of float32, by root mean square."""
    own = moved(case.layer).bfloat16()
    given = tuple(x.bfloat16() if x.is_floating_point() else x for x in case.drawn())
    wide = tuple(x.float() if x.is_floating_point() else x for x in given)
    pairs = zip(outputs(own, given), outputs(copy.deepcopy(own).float(), wide), strict=True)
    for narrow, wanted in pairs:
        if not wanted.is_floating_point():
            continue
        assert narrow.dtype == torch.bfloat16, f"{narrow.dtype} of bfloat16"
        error = (narrow.float() - wanted).square().mean() / wanted.square().mean()
        assert float(error) < 0.02**2, f"bfloat16 is off by {float(error) ** 0.5:.2%}"


def has_floats(case: LayerCase) -> bool:
    """Return whether a layer reads floating-point states, and not only integers."""
    return any(x.is_floating_point() for x in case.drawn())


def law_large(case: LayerCase) -> None:
    """Large half-precision states give finite outputs if the float64 outputs fit the type."""
    for kind, size in HALF:
        own = moved(case.layer).to(kind)
        given = tuple((size * x).to(kind) if x.is_floating_point() else x for x in case.drawn())
        wide = tuple(x.double() if x.is_floating_point() else x for x in given)
        pairs = zip(outputs(own, given), outputs(copy.deepcopy(own).double(), wide), strict=True)
        for narrow, wanted in pairs:
            fits = wanted.to(narrow.dtype).isfinite()
            n = int((fits & ~narrow.isfinite()).sum())
            assert not n, f"{n} numbers of {kind} are not finite"


def takes_names(case: LayerCase) -> bool:
    """Return whether the tensors of a layer may be passed by keyword."""
    return len(_names(case)) >= len(case.layer.layout) > 0


def law_keyword(case: LayerCase) -> None:
    """Tensors by keyword give the results, and the shape errors, of positional tensors."""
    own, given = moved(case.layer), case.drawn()
    names = _names(case)[: len(given)]
    for i in range(-1, len(given)):
        changed = (lambda x: x, lambda x: x[None, None], lambda x: torch.cat([x, x], -1))
        for wrong in changed if i >= 0 else changed[:1]:
            tensors = [wrong(x) if i == j else x for j, x in enumerate(given)]
            first = _tried(own, tensors, {})
            second = _tried(own, (), dict(zip(names, tensors, strict=True)))
            if isinstance(first, str) or isinstance(second, str):
                assert first == second, f"{names[i]}: {second} by keyword, {first} by position"
            else:
                assert _gap(second, first) == 0.0, "another output by keyword"


def _names(case: LayerCase) -> list[str]:
    own = inspect.signature(case.layer.forward).parameters.values()
    is_free = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in own)
    return [] if is_free else [p.name for p in own]


def _tried(layer: Layer, args: Sequence[Tensor], named: dict[str, Tensor]) -> list[Tensor] | str:
    """Return the outputs, or the type of the error."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        try:
            return outputs(layer, tuple(args), **named)
        except Exception as error:  # whatever it is: the other call must have it too
            return type(error).__name__


def is_causal(case: LayerCase) -> bool:
    """Return whether a layer promises to ignore later tokens or steps."""
    return case.layer.causal


def law_causal(case: LayerCase) -> None:
    """Changes to later tokens or steps do not change earlier outputs, also in training."""
    words = case.layer.layout[0].split()
    axis = next(i for i, word in enumerate(words) if word in ORDERED)
    x, *others = case.drawn()
    for training in (False, True):
        own = moved(case.layer).train(training)
        (whole,) = outputs(own, (x, *others))
        for t in range(1, x.shape[axis]):
            for far in (3.0, -3.0):
                later = x.clone()
                part = later.narrow(axis, t, x.shape[axis] - t)
                part += far * part.roll(1, -1) + far
                (output,) = outputs(own, (later, *others))
                gap = _gap([output.narrow(axis, 0, t)], [whole.narrow(axis, 0, t)])
                assert gap < 1e-12, f"tokens before {t} move by {gap:.3g} with later ones"


def law_recomputed(case: LayerCase) -> None:
    """Both kinds of gradient checkpointing give a plain run's gradients and state."""
    for reentrant in (False, True):
        if reentrant and not has_floats(case):
            continue
        plain, again = _two_steps(case, None), _two_steps(case, reentrant)
        for name, wanted in plain.items():
            gap = _gap([again[name]], [wanted]) if wanted.is_floating_point() else 0.0
            same = gap < 1e-10 and (wanted.is_floating_point() or torch.equal(again[name], wanted))
            assert same, f"{name} is off by {gap:.3g} if a layer is recomputed ({reentrant=})"


def _two_steps(case: LayerCase, reentrant: bool | None) -> dict[str, Tensor]:
    """Return gradients and state after two training steps, plain or with checkpointing."""
    own, gradients = moved(case.layer).train(), dict[str, Tensor]()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        for step in range(2):
            given = [x * (1.0 + 0.3 * step) if x.is_floating_point() else x for x in case.drawn()]
            for x in given:
                x.requires_grad_(x.is_floating_point())

            def loss(*states: Tensor) -> Tensor:
                returned = own(*states)
                returned = [returned] if isinstance(returned, Tensor) else list(returned)
                parts = [y for y in returned if isinstance(y, Tensor) and y.is_floating_point()]
                return torch.stack([torch.sin(1.7 * y + 0.3).mean() for y in parts]).sum()

            if reentrant is None:
                loss(*given).backward()
            else:
                cast(Tensor, checkpoint(loss, *given, use_reentrant=reentrant)).backward()
            gradients |= {
                f"gradient {i}": x.grad for i, x in enumerate(given) if x.grad is not None
            }
    weights = {f"gradient of {n}": p.grad for n, p in own.named_parameters() if p.grad is not None}
    return gradients | weights | {name: x.detach() for name, x in own.state_dict().items()}


def law_unseen(case: LayerCase) -> None:
    """The first rows do not change parameters: no layer takes initial values from data."""
    own = copy.deepcopy(case.layer).double().eval()
    before = {name: p.detach().clone() for name, p in own.named_parameters()}
    with torch.no_grad():
        own(*case.drawn())
    after = dict(own.named_parameters())
    assert after.keys() == before.keys(), "the first rows made parameters"
    for name, p in before.items():
        assert not isinstance(after[name], nn.UninitializedParameter), f"{name} is not made"
        assert torch.equal(p, after[name]), f"the first rows changed {name}"


def law_counted(case: LayerCase) -> None:
    """``n_parameters`` and ``flops`` equal the numbers counted in a forward pass of the layer."""
    own, given = moved(case.layer), case.drawn()
    numbers = {(p.data_ptr(), p.numel()) for p in own.parameters()}
    counted = sum(n for _, n in numbers)
    assert own.n_parameters == counted, f"n_parameters {own.n_parameters}, counted {counted}"
    if any(not x.is_floating_point() for x in given):
        return
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        copy.deepcopy(own)(*given)
    promised, counted = own.flops(*(tuple(x.shape) for x in given)), counter.get_total_flops()
    assert promised == counted, f"flops {promised}, counted {counted}"
