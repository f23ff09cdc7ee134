"""Find the columns of input, label, id and group, and the kind of the input."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from sonde.core.errors import InputError, near
from sonde.data._checkpoints import FACTORY
from sonde.data.folders import AUDIO_SUFFIXES, IMAGE_SUFFIXES
from sonde.data.numbers import are_numbers
from sonde.data.processors import no_recipe
from sonde.data.sources import is_missing

Reads = Literal["text", "image", "image_text", "audio", "tensor", "callable"]
Kind = Literal[
    "text",
    "pair",
    "messages",
    "tokens",
    "trajectory",
    "span",
    "image",
    "image_text",
    "audio",
    "tensor",
    "numbers",
    "features",
    "item",
]
Sample = Mapping[str, Sequence[Any]]

TEXT_NAMES = ("text", "content", "sentence", "prompt")
IMAGE_NAMES = ("image", "img", "file", "file_name", "path")
CAPTION_NAMES = (*TEXT_NAMES, "caption", "question")
AUDIO_NAMES = ("audio", "speech", "sound", "file", "path", "x")
LABEL_NAMES = ("label", "labels", "target", "class", "y")
MEANT = {*LABEL_NAMES, "id", "group", "key", "group_key", "pair", "side", "position", "first_error"}
TOKENIZED = ("input_ids", "attention_mask", "token_type_ids")
TENSOR_NAMES = ("x", "pixel_values")
ITEMS: dict[Reads, tuple[str, ...]] = {
    "text": ("input_ids", "messages", *TEXT_NAMES),
    "image": (*IMAGE_NAMES, *TENSOR_NAMES),
    "image_text": (*IMAGE_NAMES, *CAPTION_NAMES),
    "audio": AUDIO_NAMES,
}
"""Names of columns that hold one item of a kind."""
STEPS = "steps"
PAIRED = ("pair", "side")
PROMPTS = ("instruction", "prompt", "task")


@dataclass(frozen=True)
class Flags:
    """The columns that the user named."""

    text: str | None = None
    image: str | None = None
    label: str | None = None
    id: str | None = None
    group: str | None = None
    target: str | None = None
    span: tuple[str, str] | None = None
    ignored: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The label columns, ``a,b``: the first is the label, the others serve other heads."""
        return tuple(n.strip() for n in (self.label or "").split(",") if n.strip())

    def names(self) -> set[str]:
        """Return every named column, except the words of a span, which may be delimiters."""
        whole = (self.image, *self.labels, self.id, self.group, self.target, *self.numbers)
        texts = (self.text or "").split(",")
        return {n.strip() for n in (*texts, *whole) if n is not None and n.strip()}


@dataclass(frozen=True)
class Layout:
    """The columns of a data set, by meaning.

    Parameters
    ----------
    kind : str
        What one item is.
    inputs : tuple of str
        Column of the item; two for pairs, and for an image with its text; the steps and a prompt
        for trajectories; all arguments for ``features``, all numbers for ``numbers``.
    label, id, group, target : str or None
    more_labels : tuple of str
        Further columns of labels, of a model with several heads.
    image : bool
        Whether items are images.
    paired : bool
        Whether columns ``pair`` and ``side`` say which items belong together.
    span : (str, str) or None
        Columns or delimiters of the part of a text that counts.
    span_columns : bool
        Whether ``span`` names columns.
    beside : tuple of str
        Other columns that are read. Beside tokens and tensors: all but texts and columns with a
        meaning of their own. Beside other items: only columns that ``forward`` takes by name.
    unused : tuple of str
        Columns beside the numbers that the user named.
    """

    kind: Kind
    inputs: tuple[str, ...]
    label: str | None = None
    more_labels: tuple[str, ...] = ()
    id: str | None = None
    group: str | None = None
    target: str | None = None
    image: bool = False
    paired: bool = False
    span: tuple[str, str] | None = None
    span_columns: bool = False
    beside: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def layout(
    sample: Sample,
    reads: Reads,
    flags: Flags,
    names: Collection[str],
    model: str,
    source: str,
    main: str = "",
) -> Layout:
    """Return the columns' meanings, from their names, first values and the user's flags.

    A column with the name of a parameter of ``forward`` (one of ``names``) is an input, whatever
    its name means by default, unless a flag gives it another meaning. If the ``main`` parameter has
    a column, or no other column could be read, only columns named after parameters are read.

    Raises
    ------
    InputError
        If a named column does not exist, or no column fits what the model reads.
    """
    for name in (*flags.labels, flags.id, flags.group, flags.target, flags.image):
        _must_exist(name, sample, source)
    for name in (flags.text or "").split(","):
        _must_exist(name.strip() or None, sample, source)
    sample = {n: v for n, v in sample.items() if n not in flags.ignored}
    inputs_by_name = {n for n, v in sample.items() if n in names and not _are_words(v)}
    meant = {n: v for n, v in sample.items() if n not in {*inputs_by_name, *flags.numbers}}
    named: dict[str, Any] = {
        "label": next(iter(flags.labels), None)
        or next((n for n in LABEL_NAMES if n in meant and n != flags.target), None),
        "more_labels": flags.labels[1:],
        "id": flags.id or ("id" if "id" in meant else None),
        "group": flags.group or ("group" if "group" in meant else None),
        "target": flags.target,
    }
    paired = are_pairs(meant)
    taken = {named["label"], named["id"], named["group"], flags.target, *flags.labels}
    taken |= {*PAIRED} if paired else set()
    free = {n: v for n, v in sample.items() if n not in taken}
    arguments = tuple(n for n in free if n in inputs_by_name)
    if _are_read(arguments, main, free, reads, flags):
        kind, inputs, image = "features", _arrays(free), False
    else:
        kind, inputs, image = _input(free, reads, flags, model, source)
    beside = {n: v for n, v in free.items() if n not in inputs}
    named["beside"] = _beside(beside, kind, inputs_by_name)
    if kind == "numbers" and flags.numbers:
        named["unused"] = tuple(beside)
    if flags.span is None:
        return Layout(kind, inputs, image=image, paired=paired, **named)
    by_columns = _check_span(flags.span, kind, sample, source)
    return Layout("span", inputs, paired=paired, span=flags.span, span_columns=by_columns, **named)


def _are_read(
    arguments: Collection[str], main: str, free: Sample, reads: Reads, flags: Flags
) -> bool:
    """Return whether the columns are direct model arguments rather than texts or images."""
    if reads not in ITEMS or not arguments or flags.text is not None or flags.image is not None:
        return False
    if main in arguments:
        return main not in ITEMS[reads]
    items = {*ITEMS[reads], *_strings(free), *(n for n, v in free.items() if _is_token_list(v))}
    return not items & (set(free) - set(arguments)) and not set(arguments) & {*ITEMS[reads], STEPS}


def _arrays(free: Sample) -> tuple[str, ...]:
    return tuple(n for n, v in free.items() if not _are_words(v))


def _beside(free: Sample, kind: Kind, inputs_by_name: Collection[str]) -> tuple[str, ...]:
    if kind not in ("tokens", "tensor"):
        return tuple(n for n in free if n in inputs_by_name and n not in TOKENIZED)
    words = {n for n, v in free.items() if _are_words(v)}
    return tuple(n for n in free if n in inputs_by_name or n not in words | MEANT)


def _are_words(values: Sequence[Any]) -> bool:
    """Return whether all values, except missing ones, are text and not numbers as text."""
    there = [v for v in values if v is not None]
    return bool(there) and all(isinstance(v, str) for v in there) and not are_numbers(there)


def are_pairs(sample: Sample) -> bool:
    """Return whether both pair columns exist and every given side is an integer."""
    if any(name not in sample for name in PAIRED):
        return False
    return all(_is_whole(v) for v in sample[PAIRED[1]] if not is_missing(v))


def _is_whole(value: Any) -> bool:
    try:
        return int(value) == float(value)
    except (TypeError, ValueError, OverflowError):
        return False


def _check_span(span: tuple[str, str], kind: Kind, sample: Sample, source: str) -> bool:
    """Return whether a span names two columns; raise if the items are not texts."""
    if kind != "text":
        raise InputError(
            f"{source}: expected texts, since a span is a part of a text, got items of kind "
            f"{kind!r}. Leave out span= (--span)."
        )
    present = [name for name in span if name in sample]
    if len(present) == 1:
        (missing,) = (name for name in span if name not in sample)
        _must_exist(missing, sample, source)
    return bool(present)


def _must_exist(name: str | None, sample: Sample, source: str) -> None:
    if name is not None and name not in sample:
        raise InputError(
            f"{source} has no column {name!r}, only "
            f"{', '.join(sample) or 'none'}.{near(name, sample)}"
        )


def _input(
    free: Sample, reads: Reads, flags: Flags, model: str, source: str
) -> tuple[Kind, tuple[str, ...], bool]:
    if reads == "text":
        return (
            _text_kind(free, flags, model, source),
            *_names_of_text(free, flags, model, source),
            False,
        )
    if reads == "image":
        return _image(free, flags, model, source)
    if reads == "image_text":
        return _image_text(free, flags, model, source)
    if reads == "audio":
        return "audio", (_audio(free, model, source),), False
    if reads == "callable":
        return _item(free, flags, model, source)
    return _tensor(free, flags, model, source)


def _names_of_text(free: Sample, flags: Flags, model: str, source: str) -> tuple[tuple[str, ...]]:
    if flags.text is not None:
        names = tuple(n.strip() for n in flags.text.split(","))
        if len(names) > 2:
            raise InputError(
                f"expected one text column or a pair of text columns, got {flags.text!r}."
            )
        return (names,)
    if any(isinstance(v, list) for v in free.get(STEPS, ())):
        return ((STEPS, *[n for n in PROMPTS if n in free][:1]),)
    for name in ITEMS["text"]:
        if name in free:
            return ((name,),)
    strings = _strings(free)
    if len(strings) == 1:
        return ((strings[0],),)
    if "x" in free and _is_token_list(free["x"]):
        return (("x",),)
    raise _no_column(free, strings, "text", "text_column= (--text-column)", model, source)


def _text_kind(free: Sample, flags: Flags, model: str, source: str) -> Kind:
    (names,) = _names_of_text(free, flags, model, source)
    if names[0] == STEPS and any(isinstance(v, list) for v in free.get(STEPS, ())):
        return "trajectory"
    if len(names) == 2:
        return "pair"
    values = free.get(names[0], ())
    if names[0] == "input_ids" or any(_is_token_list([v]) for v in values):
        return "tokens"
    return "messages" if any(isinstance(v, list) for v in values) else "text"


def _image(
    free: Sample, flags: Flags, model: str, source: str
) -> tuple[Kind, tuple[str, ...], bool]:
    if flags.image is not None:
        return "image", (flags.image,), True
    for name in IMAGE_NAMES:
        if name in free:
            return "image", (name,), True
    for name in TENSOR_NAMES:
        if name in free:
            return "tensor", (name,), False
    strings = [n for n in _strings(free) if _are_paths(free[n])]
    if len(strings) == 1:
        return "image", (strings[0],), True
    raise _no_column(free, strings, "image", "image_column= (--image-column)", model, source)


def _image_text(
    free: Sample, flags: Flags, model: str, source: str
) -> tuple[Kind, tuple[str, ...], bool]:
    """Return the columns of images and texts, or one of them if only one tower reads."""
    strings = _strings(free)
    paths = [n for n in strings if _are_paths(free[n])]
    others = [n for n in strings if n not in paths and n != flags.image]
    image = flags.image or next((n for n in (*IMAGE_NAMES, *paths[:1]) if n in free), None)
    text = flags.text or next((n for n in CAPTION_NAMES if n in free), None)
    if text is None and len(others) == 1:
        text = others[0]
    if text is not None and image is not None:
        return "image_text", (image, text), True
    if image is not None:
        return "image", (image,), True
    if text is not None:
        return "text", (text,), False
    flag = "image_column= and text_column= (--image-column, --text-column)"
    raise _no_column(free, others, "image", flag, model, source)


def _audio(free: Sample, model: str, source: str) -> str:
    strings = [n for n in _strings(free) if _are_paths(free[n], AUDIO_SUFFIXES)]
    for name in (*AUDIO_NAMES, *(strings if len(strings) == 1 else ())):
        if name in free:
            return name
    others = f"the columns {', '.join(free)}" if free else "no unused column"
    raise InputError(
        f"{model} reads recordings, but {source} has {others}. Call the column of files or "
        "samples 'audio'."
    )


def _item(
    free: Sample, flags: Flags, model: str, source: str
) -> tuple[Kind, tuple[str, ...], bool]:
    if flags.image is not None or flags.text is not None:
        return "item", (flags.image or flags.text or "",), flags.image is not None
    for name in (*IMAGE_NAMES, *TEXT_NAMES, "x"):
        if name in free:
            return "item", (name,), name in IMAGE_NAMES
    strings = _strings(free)
    if len(strings) == 1:
        return "item", (strings[0],), _are_paths(free[strings[0]])
    raise _no_column(free, strings, "item", "text_column= or image_column=", model, source)


def _tensor(
    free: Sample, flags: Flags, model: str, source: str
) -> tuple[Kind, tuple[str, ...], bool]:
    if any(name in free for name in flags.numbers) or _are_all_numbers(free, flags):
        return "numbers", _named_numbers(free, flags.numbers, source), False
    numbers = tuple(n for n, v in free.items() if are_numbers(v))
    if "x" in free and "x" not in numbers and not isinstance(free["x"][0], str):
        return "tensor", ("x",), False
    if "input_ids" in free:
        return "tokens", ("input_ids",), False
    items = [n for n, v in free.items() if not isinstance(v[0], np.ndarray | torch.Tensor)]
    words = [n for n in items if n not in numbers and n in (*TEXT_NAMES, *IMAGE_NAMES, "messages")]
    if words:
        _refuse_items(words[0], model, source)
    texts = [n for n, v in free.items() if n not in numbers and isinstance(v[0], str | None)]
    if numbers and texts:
        raise _not_numbers(texts[0], source)
    if numbers and len(numbers) == len(free):
        return "numbers", numbers, False
    arrays = tuple(n for n in free if n not in texts)
    if not arrays:
        raise InputError(
            f"{model} takes tensors, but {source} has no column of numbers, only "
            f"{', '.join(free) or 'none'}. Pass columns of numbers, or an array 'x' (.npz)."
        )
    return "features", arrays, False


def _are_all_numbers(free: Sample, flags: Flags) -> bool:
    return bool(flags.numbers and free) and all(map(are_numbers, free.values()))


def _named_numbers(free: Sample, names: tuple[str, ...], source: str) -> tuple[str, ...]:
    """Return the columns of numbers in the order of their flag; raise if any is missing."""
    missing = [name for name in names if name not in free]
    if missing:
        raise InputError(
            f"{source}: expected the columns of numbers {', '.join(names)}, got no "
            f"{', '.join(missing)}, only {', '.join(free)}.{near(missing[0], free)} Rename or "
            "add the missing columns: columns are matched by name."
        )
    return names


def _refuse_items(name: str, model: str, source: str) -> None:
    """Raise for texts and images if no processor turns them into tensors."""
    if name in IMAGE_NAMES:
        raise no_recipe(model, ("mean", "std"))
    raise InputError(
        f"{model} takes tensors, but {source} has {name!r}. In Python, pass processor= with a "
        f"tokenizer or a function that turns one item into a tensor; {FACTORY}."
    )


def _not_numbers(name: str, source: str) -> InputError:
    return InputError(
        f"{source}: expected numbers in column {name!r}, which would be used as a feature, got "
        f"texts. Declare what it is (--label-column, --id-column or --group-column {name}), or "
        f"leave it out (--ignore-columns {name})."
    )


def _no_column(
    free: Sample, candidates: Sequence[str], what: str, flag: str, model: str, source: str
) -> InputError:
    others = f"the columns {', '.join(free)}" if free else "no unused column"
    many = f" (these columns could be meant: {', '.join(candidates)})" if candidates else ""
    return InputError(
        f"{model} reads {what}s, but {source} has {others}{many}. Name the column with {flag}, "
        "or pass data of the right kind."
        if what in ("text", "image", "item")
        else f"{model} needs an {what}, but {source} has {others}. Pass {flag}."
    )


def _strings(free: Sample) -> list[str]:
    return [
        n for n, v in free.items() if all(isinstance(x, str) for x in v if x is not None) and any(v)
    ]


def _are_paths(values: Sequence[Any], wanted: Collection[str] = IMAGE_SUFFIXES) -> bool:
    suffixes = {"." + v.rsplit(".", 1)[-1].lower() for v in values if isinstance(v, str)}
    return not suffixes.isdisjoint(wanted)


def _is_token_list(values: Sequence[Any]) -> bool:
    first = values[0] if len(values) else None
    if isinstance(first, torch.Tensor):
        return first.ndim == 1 and not first.is_floating_point()
    if isinstance(first, np.ndarray):
        return first.ndim == 1 and first.dtype.kind in "iu"
    return isinstance(first, list) and bool(first) and all(type(v) is int for v in first)
