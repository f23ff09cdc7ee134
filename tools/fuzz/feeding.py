"""What the model is fed: shapes and types of items, masks under many names, second inputs."""

import random
from dataclasses import dataclass

from tools.fuzz.writing import DIM, FREE, MAYBE, POS, ROW, SIZES, Axes, Axis

MASKS = (
    ("attention_mask", "real", "bool"), ("attention_mask", "real", "int"),
    ("attention_mask", "real", "float"), ("key_padding_mask", "padded", "bool"),
    ("key_padding_mask", "-inf", "float"), ("src_key_padding_mask", "padded", "bool"),
    ("padding_mask", "padded", "bool"),
    ("mask", "real", "bool"), ("mask", "real", "float"), ("pad_mask", "padded", "bool"),
)  # fmt: skip
SECOND = ("y", "t", "label", "target", "cond", "scale", "class_id", "group", "id")
TRUTHS = {"real": "{name}.bool()", "padded": "~{name}", "-inf": "({name} == 0)"}


@dataclass(frozen=True)
class Feed:
    """The inputs of a model, as source.

    Parameters
    ----------
    parameters : str
        Of its forward.
    opening : tuple of str
        The first lines of its forward, after which ``x`` is there.
    axes : Axes
        Of that ``x``.
    init : tuple of str
        Attributes that the opening needs.
    item : str
        One item, from a generator ``g`` and its number ``i``.
    call : str
        What the model is called with, from the stacked ``items``: ``args, kwargs``.
    mask : str
        The name of the boolean mask, true at real tokens; empty without.
    real : str
        From an item, which of its positions are real; empty without.
    n : int
        How many items.
    spots : tuple of (str, Axes)
        The layers of the opening, and what they return.
    """

    parameters: str
    opening: tuple[str, ...]
    axes: Axes
    item: str
    call: str
    init: tuple[str, ...] = ()
    mask: str = ""
    real: str = ""
    n: int = 14
    spots: tuple[tuple[str, Axes], ...] = ()


def draw_feed(rng: random.Random) -> Feed:
    """Return one way in which a model is fed."""
    kinds = (plain, plain, plain, masked, masked, conditioned, conditioned, ids, ids, wide, long)
    return rng.choice(kinds)(rng)


def _shape(rng: random.Random) -> tuple[int, ...]:
    kind = rng.choice(("vector", "steps", "steps", "image", "image", "lines"))
    if kind == "vector":
        return (rng.choice((4, 6, 8)),)
    if kind == "steps":
        return rng.choice(SIZES[2:]), rng.choice(SIZES[1:])
    if kind == "image":
        side = rng.choice((6, 8, 10))
        return rng.choice((1, 3, 4)), side, rng.choice((side, 5, 7))
    return rng.choice((6, 8)), rng.choice((6, 5)), rng.choice((1, 3, 4))


def _axes(shape: tuple[int, ...]) -> Axes:
    return Axis(ROW), *(Axis(MAYBE if len(shape) > 1 else DIM, s) for s in shape)


def plain(rng: random.Random) -> Feed:
    """Return one tensor per item, bare, named, or beside a label."""
    shape = _shape(rng)
    name = rng.choice(("x", "x", "input", "features", "img"))
    change = rng.choice(("", "", " + 3", ".double()", " * 30"))
    value = f"(torch.randn({', '.join(map(str, shape))}, generator=g){change})"
    form, taken = rng.choice(
        (
            ("{}", "items"),
            ("{}.numpy()", "[torch.from_numpy(i) for i in items]"),
            ("({}, i % 3)", "[i[0] for i in items]"),
            ("{{'x': {}}}", "[i['x'] for i in items]"),
            ("{{'x': {}, 'label': i % 3}}", "[i['x'] for i in items]"),
        )
    )
    opening = () if name == "x" else (f"x = {name}",)
    return Feed(
        name, opening, _axes(shape), form.format(value), f"(torch.stack({taken}).float(),), {{}}"
    )


def masked(rng: random.Random) -> Feed:
    """Return padded steps with a mask of some name, type and side."""
    length, width = rng.choice((4, 5, 6, 8)), rng.choice((4, 6, 8))
    name, means, kind = rng.choice(MASKS)
    side = rng.choice(("right", "right", "left", "holes"))
    real = {
        "right": f"torch.arange({length}) < 1 + (i * 3) % {length}",
        "left": f"torch.arange({length}) >= (i * 3) % {length}",
        "holes": f"(torch.arange({length}) + i) % 3 != 0",
    }[side]
    made = {
        "real": f"({real}).{kind}()",
        "padded": f"~({real})",
        "-inf": f"torch.zeros({length}).masked_fill(~({real}), -torch.inf)",
    }[means]
    spoilt = rng.choice(("", "", "x = x.masked_fill(~real[..., None], torch.nan)", "x.mul_(0.5)"))
    opening = [f"real = {TRUTHS[means].format(name=name)}"]
    init: list[str] = []
    if rng.random() < 0.4:
        init.append(f"self.place = nn.Parameter(torch.randn({length}, {width}))")
        opening.append("x = x + self.place[: x.shape[1]]")
    if spoilt:
        opening.append(spoilt)
    value = f"torch.randn({length}, {width}, generator=g)"
    axes = (Axis(ROW), Axis(POS, length), Axis(DIM, width))
    item = f"{{'x': {value}, {name!r}: {made}}}"
    call = f"(), {{k: torch.stack([i[k] for i in items]) for k in ('x', {name!r})}}"
    undone = {"real": "i[{0!r}].bool()", "padded": "~i[{0!r}]", "-inf": "i[{0!r}] == 0"}[means]
    parameters = f"x, {name}" if rng.random() < 0.5 else f"x, {name}=None"
    return Feed(
        parameters, tuple(opening), axes, item, call, tuple(init), "real", undone.format(name)
    )


def conditioned(rng: random.Random) -> Feed:
    """Return a second input: needed or not, a number or more, named or in a tuple."""
    shape = _shape(rng)
    axes, name = _axes(shape), rng.choice(SECOND)
    value = f"torch.randn({', '.join(map(str, shape))}, generator=g)"
    kind = rng.choice(("number", "number", "like", "int"))
    second = {
        "number": "torch.tensor(i / 5.0)",
        "int": "torch.tensor(i % 4)",
        "like": f"torch.randn({', '.join(map(str, shape))}, generator=g)",
    }[kind]
    ones = ", 1" * len(shape)
    used = name if kind == "like" else f"{name}.view(-1{ones})"
    default = rng.choice(("", "=None"))
    opening = (f"x = x + {used}",) if not default else (f"x = x if {name} is None else x + {used}",)
    if rng.random() < 0.3:
        parameters, item = f"x, {name}{default}", f"({value}, {second})"
        call = "(torch.stack([i[0] for i in items]), torch.stack([i[1] for i in items])), {}"
    else:
        star = "*, " if rng.random() < 0.3 else ""
        parameters = f"x, {star}{name}{default}"
        item = f"{{'x': {value}, {name!r}: {second}}}"
        call = f"(), {{k: torch.stack([i[k] for i in items]) for k in ('x', {name!r})}}"
    return Feed(parameters, opening, axes, item, call)


def ids(rng: random.Random) -> Feed:
    """Return token ids, of one length or of several, with a mask or a causal model."""
    width, length = rng.choice((4, 6, 8)), rng.choice((4, 6, 8))
    init = [f"self.words = nn.Embedding(11, {width})"]
    opening = ["x = self.words(input_ids)"]
    if rng.random() < 0.5:
        init.append(f"self.place = nn.Parameter(torch.randn({length}, {width}))")
        opening.append("x = x + self.place[: x.shape[1]]")
    even = rng.random() < 0.5
    n = str(length) if even else f"1 + (i * 3) % {length}"
    value = f"torch.randint(0, 11, ({n},), generator=g)"
    form, taken = rng.choice((("{}.tolist()", "i"), ("{{'input_ids': {}}}", "i['input_ids']")))
    stacked = f"torch.stack([torch.as_tensor({taken}) for i in items])"
    axes = (Axis(ROW), Axis(FREE if even else POS, length), Axis(DIM, width))
    if even:
        parts = ("input_ids", "", "", f"(), {{'input_ids': {stacked}}}")
    else:
        opening.append("real = attention_mask.bool()")
        real = f"torch.ones(len({taken}), dtype=torch.bool)"
        call = f"(), {{'input_ids': {stacked}, 'attention_mask': torch.ones_like({stacked})}}"
        parts = ("input_ids, attention_mask", "real", real, call)
    parameters, mask, real, call = parts
    item, spots = form.format(value), (("words", axes),)
    parts = (call, tuple(init), mask, real)
    return Feed(parameters, tuple(opening), axes, item, *parts, spots=spots)


def wide(rng: random.Random) -> Feed:
    """Return inputs in another type than the model works in, which it changes itself."""
    shape = _shape(rng)
    axes = _axes(shape)
    size = shape[-1]
    value = f"torch.randn({', '.join(map(str, shape))}, generator=g)"
    kind = rng.choice(("float64", "bfloat16 first", "uint8"))
    if kind == "float64":
        item, opening = f"{value}.double() + 1e6", ("x = (x - 1e6).float()",)
        return Feed("x", opening, axes, item, "(torch.stack(items),), {}")
    if kind == "uint8":
        item = f"torch.randint(0, 255, {shape}, generator=g).to(torch.uint8)"
        return Feed("x", ("x = x / 255",), axes, item, "(torch.stack(items),), {}")
    init = (f"self.first = nn.Linear({size}, {size}, dtype=torch.bfloat16)",)
    opening = ("x = x + self.first(x.to(torch.bfloat16)).float()",)
    spots = (("first", (*axes[:-1], Axis(DIM, size))),)
    return Feed("x", opening, axes, value, "(torch.stack(items),), {}", init, spots=spots)


def long(rng: random.Random) -> Feed:
    """Return few examples of many positions around a large mean."""
    length = rng.choice((2048, 8192))
    axes = (Axis(ROW), Axis(FREE, length), Axis(DIM, 4))
    value = f"torch.randn({length}, 4, generator=g) + 100"
    return Feed("x", (), axes, value, "(torch.stack(items),), {}", n=4)
