"""A module of random layers as Python source, and what is known of every tensor in it.

The writer follows one tensor from the inputs to the logits and knows the meaning of its axes,
because it wrote every line: what sonde says of them is never asked.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

ROW, DIM, MAYBE, FREE, POS, MERGED = "row", "dim", "maybe", "free", "pos", "merged"
SIZES = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor.

    Parameters
    ----------
    word : str
        ``row``; ``dim``, the features; ``maybe``, what may be them, because nothing has said yet
        which axis of the inputs it is, or because a layer has worked over another axis since;
        ``free``; ``pos``, an axis that a mask is for; ``merged``, rows and another axis in one.
    size : int
        0 for the examples.
    special : tuple of int
        Places of tokens that are no patches.
    """

    word: str
    size: int = 0
    special: tuple[int, ...] = ()


Axes = tuple[Axis, ...]


@dataclass(frozen=True)
class Spot:
    """A tensor of the model, and what its axes mean.

    Parameters
    ----------
    path : str
    call : int
        Which call of the module.
    port : {"out", "in"}
    keys : tuple of str or int
        How the tensor is taken out of what the module returns, from outside in.
    key : str or None
        The tensor's key as sonde writes it behind the port; None for the first tensor.
    axes : Axes
    own : bool
        Whether the module's class and weight say which axis holds its features.
    """

    path: str
    call: int
    port: str
    keys: tuple[str | int, ...]
    key: str | None
    axes: Axes
    own: bool = False

    @property
    def features(self) -> list[int]:
        """The axes that may be taken for the features, the right one first."""
        known = [i for i, axis in enumerate(self.axes) if axis.word == DIM]
        return (
            known if self.own else known + [i for i, a in enumerate(self.axes) if a.word == MAYBE]
        )


@dataclass
class Book:
    """What all writers of one model share.

    Parameters
    ----------
    rng : random.Random
    classes : list of str
        Source of the classes written so far.
    spots : list of Spot
    facts : set of str
        What the model does that no reader can make right: ``random``, ``reorders``.
    blocks : list of str
        Paths of what the residual stream passes one after the other.
    """

    rng: random.Random
    classes: list[str] = field(default_factory=list)
    spots: list[Spot] = field(default_factory=list)
    facts: set[str] = field(default_factory=set)
    blocks: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    n_names: int = 0


class Writer:
    """Writes one class: its layers and its forward.

    Parameters
    ----------
    book : Book
    axes : Axes
        Of ``x`` as the forward receives it.
    path : str
        Where the module stands in the model.
    mask : str
        Name of a boolean tensor in the forward, ``(row, pos)``, true at real tokens; empty without.
    """

    def __init__(self, book: Book, axes: Axes, path: str = "", mask: str = "") -> None:
        self.book, self.axes, self.path, self.mask = book, axes, path, mask
        self.init: list[str] = []
        self.lines: list[str] = []

    @property
    def rng(self) -> random.Random:
        """The one source of chance."""
        return self.book.rng

    @property
    def words(self) -> tuple[str, ...]:
        """The word of each axis."""
        return tuple(axis.word for axis in self.axes)

    def size(self, i: int) -> int:
        """Return the size of an axis."""
        return self.axes[i].size

    def name(self) -> str:
        """Return a name that no attribute has."""
        self.book.n_names += 1
        return f"m{self.book.n_names}"

    def is_feature(self, i: int) -> bool:
        """Return whether an axis may hold the features."""
        return self.words[i] in (DIM, MAYBE)

    def full(self, name: str) -> str:
        """Return the path of an attribute in the model."""
        return f"{self.path}.{name}" if self.path else name

    def featured(self, i: int, size: int) -> Axes:
        """Return the axes with the features on ``i``, where a layer has worked over it."""
        later = {DIM: MAYBE, MAYBE: FREE}
        axes = [replace(a, word=later.get(a.word, a.word)) for a in self.axes]
        axes[i] = Axis(DIM, size)
        return tuple(axes)

    def normed(self, i: int) -> Axes:
        """Return the axes after a norm over one of them."""
        return self.axes if self.words[i] == DIM else self.featured(i, self.size(i))

    def layer(
        self,
        made: str,
        axes: Axes | None = None,
        *,
        own: bool = False,
        call: str = "self.{name}(x)",
        keys: Sequence[str | int] = (),
        key: str | None = None,
        name: str = "",
    ) -> str:
        """Write a layer that ``x`` passes through, and record what goes in and comes out."""
        before = self.axes
        if not name:
            name = self.name()
            self.init.append(f"self.{name} = {made}")
        taken = "".join(f"[{k!r}]" if not str(k).startswith(".") else str(k) for k in keys)
        self.lines.append(f"x = {call.format(name=name)}{taken}")
        self.axes = before if axes is None else axes
        path = self.full(name)
        count = self.book.calls.get(path, 0)
        self.book.calls[path] = count + 1
        i = next((i for i, axis in enumerate(self.axes) if axis.word == DIM), 0)
        if own and len(before) == len(self.axes) and before[i].word == FREE:
            before = (*before[:i], replace(before[i], word=MAYBE), *before[i + 1 :])
        self.book.spots += [
            Spot(path, count, "in", (), None, before),
            Spot(path, count, "out", tuple(keys), key, self.axes, own),
        ]
        return name

    def line(self, text: str, axes: Axes | None = None) -> None:
        """Write a line of the forward that makes another ``x``."""
        self.lines.append(text)
        self.axes = self.axes if axes is None else axes

    def source(self, name: str, parameters: str, returned: str = "x") -> str:
        """Return the class."""
        made = ["super().__init__()", *self.init]
        return "\n".join(
            [
                f"class {name}(nn.Module):",
                "    def __init__(self):",
                *(f"        {line}" for line in made),
                "",
                f"    def forward(self, {parameters}):",
                *(f"        {line}" for line in self.lines),
                f"        return {returned}",
                "",
            ]
        )
