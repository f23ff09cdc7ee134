"""Base class of layers, which declares a layer's properties, and layers as edits."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sonde.core.edit import Edit, EditContext
from sonde.core.errors import InputError, ShapeError
from sonde.core.keywords import InitSignature, check_names, check_values
from sonde.core.renaming import current_names
from sonde.core.site import Site

Symmetry = Literal["permutation", "translation", "none"]
ORDERED = frozenset({"token", "time"})
POSITIONS = ORDERED | {"item", "node", "high", "wide"}
"""Axis words along which a layer may mix: order in a text or in time, sets, graphs, grids."""


class Layer(nn.Module):
    """An ``nn.Module`` that declares its inputs, its paper and its properties.

    ``sonde.testing`` tests every layer for its properties. Properties that depend on the parameters
    are set in ``__init__`` (``self.insertable = False``), the others in the class.

    Attributes
    ----------
    paper : str
        Key in ``docs/papers.bib``.
    variants : mapping of str to str
        Parameters of the constructor, as typed in a call, and the paper's key: one class serves
        many papers.
    examples : tuple of dict
        Small parameters to test the layer with; empty if the layer wraps a module.
    layout : tuple of str
        Axis words of each positional tensor of ``forward``. Examples lie along ``row``;
        ``token time item node high wide`` are positions; ``*axes`` stands for any axes; a word
        that is an attribute of the layer (``dim``) has that size. Every call is checked.
    insertable : bool
        Keeps the shape and gives back its input bit for bit before the first step of training.
    inside_attention : bool
        ``sonde.inserted`` runs the layer inside an attention, on its heads and queries.
    symmetry : {"permutation", "translation", "none"}
        Whether a permutation or a shift of the positions permutes or shifts the output, or leaves
        it as it is; "none" promises nothing.
    pointwise : bool
        The layer treats each position by itself, although its layout names positions.
    exact_gradient : bool
        False for a layer whose gradient passes straight through a step.
    causal : bool
        The output of a token or step does not depend on later ones.
    bfloat16_safe : bool
        In bfloat16 the output is within 2 % of float32.
    """

    paper: ClassVar[str] = ""
    variants: ClassVar[Mapping[str, str]] = {}
    examples: ClassVar[tuple[dict[str, Any], ...]] = ()
    layout: ClassVar[tuple[str, ...]] = ()
    insertable: bool = True
    inside_attention: ClassVar[bool] = False
    symmetry: Symmetry = "none"
    pointwise: bool = False
    exact_gradient: bool = True
    causal: bool = False
    bfloat16_safe: bool = True

    def __new__(cls, *args: Any, **parameters: Any) -> Any:
        """Return an empty layer that keeps its constructor's parameters, for saving."""
        check_names(cls, parameters)
        check_values(cls, args, parameters)
        new = super().__new__(cls)
        named = current_names(cls, parameters)
        given = inspect.signature(cls.__init__).bind_partial(new, *args, **named).arguments
        object.__setattr__(new, "given", dict(list(given.items())[1:]))
        object.__setattr__(new, "_names", _names(cls))
        return new

    __signature__ = InitSignature()
    given: dict[str, Any]
    """Parameters that the constructor was called with."""
    _names: tuple[str, ...]

    @property
    def n_parameters(self) -> int:
        """Number of trainable values; a shared tensor counts once."""
        return sum(p.numel() for p in self.parameters())

    @property
    def features_axis(self) -> int:
        """Axis of the features, negative if the features come last."""
        words = self.layout[0].split()
        at = words.index("dim") if "dim" in words else len(words) - 1
        return at - len(words) if any(w.startswith("*") for w in words[:at]) else at

    @property
    def mixes_positions(self) -> bool:
        """True if a position's output may depend on other positions, so whole texts are needed."""
        return bool(POSITIONS & {*self.layout[0].split()}) and not self.pointwise

    @torch.no_grad()
    def flops(self, *shapes: tuple[int, ...]) -> int:
        """Return the number of operations in products and convolutions of one forward pass.

        A product and a sum are two operations. Sums, activations and norms are left out.

        Parameters
        ----------
        *shapes : tuple of int
            Of each tensor of ``layout``.
        """
        own = copy.deepcopy(self).eval()
        like = next((p for p in own.parameters()), torch.zeros(()))
        given = [like.new_zeros(shape) for shape in shapes]
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            own(*given)
        return counter.get_total_flops()

    def as_edit(self, strength: float = 1.0) -> "LayerEdit":
        """Return an edit ``x + strength (layer(x) - x)`` for ``sonde.editing``.

        Parameters
        ----------
        strength : float, default=1.0
            0 gives back the same tensor.

        Raises
        ------
        InputError
            If the layer takes more than one tensor, or changes the shape.
        """
        if len(self.layout) != 1 or not self.insertable:
            raise InputError(
                f"{type(self).__name__}.as_edit: expected a layer that maps a tensor to a "
                "tensor of the same shape, got a layer with the inputs "
                f"{' and '.join(self.layout)}. Call this layer in your own code instead."
            )
        return LayerEdit(self, strength)

    def __call__(self, *args: Any, **parameters: Any) -> Any:
        """Check the tensors against ``layout`` and run the layer.

        Raises
        ------
        ShapeError
            With the axis words and the widths that the layer expects.
        """
        given = {**dict(zip(self._names, args, strict=False)), **parameters}
        states = [given.get(name) for name in self._names] if self._names else list(args)
        mask, x = given.get("mask"), states[0] if states else None
        if not torch.compiler.is_compiling():
            for words, one in zip(self.layout, states, strict=False):
                if isinstance(one, Tensor):
                    self._check(words.split(), tuple(one.shape))
            self._check_mask(mask, x)
        if not self._pads(mask, x) or mask is None or x is None:
            return super().__call__(*args, **parameters)
        # whatever stands at padding, also NaN, reaches no real position and comes out as it was
        real = mask.unsqueeze(-1)
        clean = x.masked_fill(~real, 0.0)
        if args:
            args = (clean, *args[1:])
        else:
            parameters[self._names[0]] = clean
        new = super().__call__(*args, **parameters)
        return torch.where(real, new, x) if self.insertable else new

    def _pads(self, mask: Any, x: Any) -> bool:
        """Return whether a mask marks the real positions of the states."""
        if not isinstance(mask, Tensor) or not isinstance(x, Tensor) or len(self.layout) != 1:
            return False
        return x.is_floating_point() and x.ndim == 3 and mask.shape == x.shape[:2]

    def _check_mask(self, mask: Any, x: Any) -> None:
        """Raise if a mask is not boolean, does not match the states, or leaves a row empty."""
        if not isinstance(mask, Tensor) or not isinstance(x, Tensor):
            return
        if mask.dtype != torch.bool:
            raise ShapeError(
                f"{type(self).__name__}.forward: expected a boolean mask, True at positions "
                f"that may be used, got {mask.dtype}. Pass mask.bool()."
            )
        n, place = mask.ndim, self.layout[0].split()[1]
        most = x.ndim - x.is_floating_point()  # ids of tokens have no axis of features
        if len(self.layout) == 1 and (n > most or mask.shape != x.shape[:n]):
            raise ShapeError(
                f"{type(self).__name__}.forward: expected a mask of shape {tuple(x.shape[:most])}, "
                f"like the states, got {tuple(mask.shape)}."
            )
        if n == 2 and place in POSITIONS and not bool(mask.any(1).all()):
            row = int((~mask.any(1)).nonzero()[0])
            raise InputError(
                f"{type(self).__name__}.forward: expected a real {place} in every row, got none in "
                f"row {row}. Drop the row."
            )

    def _check(self, words: list[str], shape: tuple[int, ...]) -> None:
        free = next((i for i, word in enumerate(words) if word.startswith("*")), None)
        right = len(shape) == len(words) if free is None else len(shape) >= len(words) - 1
        sizes = {word: n for word in words if isinstance(n := getattr(self, word, None), int)}
        for i, word in enumerate(words):
            place = i if free is None or i < free else i - len(words)
            right = right and (word not in sizes or shape[place] == sizes[word])
        if not right:
            wanted = " ".join(f"{w}={sizes[w]}" if w in sizes else w for w in words)
            raise ShapeError(
                f"{type(self).__name__}.forward: expected states ({wanted}), got {shape}. Choose "
                "a site with these axes, or reshape the states."
            )


@cache
def _names(kind: type[Layer]) -> tuple[str, ...]:
    """Return the names of the arguments of a layer's forward; none if it takes ``*args``."""
    own = list(inspect.signature(kind.forward).parameters.values())[1:]
    is_free = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in own)
    return () if is_free else tuple(p.name for p in own)


@final
@dataclass(frozen=True, eq=False)
class LayerEdit(Edit):
    """A layer as an edit of activations; see ``Layer.as_edit``.

    Parameters
    ----------
    layer : Layer
        The layer that is applied to the states.
    strength : float, default=1.0
        Weight of the layer's output beside the states; 0 changes nothing.
    """

    layer: Layer
    strength: float = 1.0

    def apply(
        self, x: Float[Tensor, "*axes dim"], site: Site, context: EditContext
    ) -> Float[Tensor, "*axes dim"]:
        """Return the mixture of the states and the layer's output."""
        if self.strength == 0.0:
            return x
        takes_mask = "mask" in inspect.signature(self.layer.forward).parameters
        place = context.position
        is_whole = not context.step or (place is not None and not bool(place[:, 0].any()))
        if self.layer.mixes_positions and not is_whole:
            raise InputError(
                f"{type(self.layer).__name__}: expected all tokens of a text, got a step of "
                f"generation at {site}. Call generate with use_cache=False."
            )
        parameters = {"mask": context.mask} if takes_mask and context.mask is not None else {}
        new = cast(Tensor, self.layer(x, **parameters))
        return new if self.strength == 1.0 else x + self.strength * (new - x)
