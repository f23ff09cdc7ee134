"""Draw a task: tensors of real data with a target, cut into training, given and fresh rows."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from tools.faultgen import sources
from torch import Tensor

Kind = Literal["classes", "number", "numbers", "tokens", "map", "choice"]
Role = Literal["numbers", "codes", "mask", "bonds"]

N_GIVEN, N_FRESH = 320, 320
PAD_LABEL = -100


@dataclass(frozen=True)
class Rows:
    """Tensors by argument name, and the target; the first axis of each is the row."""

    tensors: Mapping[str, Tensor]
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def take(self, at: Tensor) -> "Rows":
        """Return some rows."""
        return Rows({n: t[at] for n, t in self.tensors.items()}, self.target[at])

    def with_tensor(self, name: str, values: Tensor) -> "Rows":
        """Return the rows with another tensor."""
        return replace(self, tensors={**self.tensors, name: values})


@dataclass(frozen=True)
class Spec:
    """Role and axes of a tensor: ``row``, then ``column channel time height width item token``.

    Parameters
    ----------
    role : Role
    axes : tuple of str
        Without the row.
    columns : tuple of str
        Names along ``column``, or empty.
    sizes : tuple of int
        Number of codes of each column, for codes.
    """

    role: Role
    axes: tuple[str, ...]
    columns: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def feature_axis(self) -> int | None:
        """Position of the axis of columns or channels, the row being 0; None without one."""
        return next((i + 1 for i, a in enumerate(self.axes) if a in ("column", "channel")), None)


@dataclass(frozen=True)
class Task:
    """A task with all its rows.

    Parameters
    ----------
    shape : str
        Kind of inputs: ``table``, ``mixed``, ``series``, ``forecast``, ...
    source : str
        The data set.
    kind : Kind
        What is answered.
    specs : mapping of str to Spec
    rows : Rows
    n_out : int
    in_order : bool
        Whether rows are in the order of time, so that the training rows come first.
    """

    shape: str
    source: str
    kind: Kind
    specs: Mapping[str, Spec]
    rows: Rows
    n_out: int
    in_order: bool = False

    def parts(self, draw: random.Random) -> tuple[Rows, Rows, Rows]:
        """Return training, given and fresh rows."""
        order = list(range(len(self.rows))) if self.in_order else _first_of_copies(self.rows)
        n = len(order)
        if not self.in_order:
            draw.shuffle(order)
        n_given, n_fresh = min(N_GIVEN, int(0.3 * n)), min(N_FRESH, int(0.25 * n))
        cut = n - n_given - n_fresh
        bounds = (order[:cut], order[cut : cut + n_given], order[cut + n_given :])
        train, given, fresh = (self.rows.take(torch.tensor(b)) for b in bounds)
        return train, given, fresh


def _first_of_copies(rows: Rows) -> list[int]:
    """Return the rows that are no copies of earlier ones, nor the same number everywhere."""
    flat = [t.reshape(len(rows), -1).double() for t in rows.tensors.values()]
    joined = torch.cat(flat, 1).numpy()
    firsts = np.unique(joined, axis=0, return_index=True)[1]
    blank = (flat[0] == flat[0][:, :1]).all(1) & torch.tensor(flat[0].shape[1] > 1)
    return [i for i in sorted(firsts.tolist()) if not blank[i]]


def floats(values: np.ndarray) -> Tensor:
    """Return 32-bit numbers."""
    return torch.from_numpy(np.ascontiguousarray(values)).float()


def _target(values: np.ndarray, kind: str, draw: random.Random) -> tuple[Tensor, int]:
    if kind == "classes":
        names, codes = np.unique(values.astype(str), return_inverse=True)
        return torch.from_numpy(codes).long(), len(names)
    numbers = floats(values.astype(float))[:, None]
    if draw.random() < 0.5:
        numbers = (numbers - numbers.mean()) / numbers.std()
    return numbers, 1


def _columns(
    entry: tuple[str, ...], draw: random.Random
) -> tuple[np.ndarray, list[str], np.ndarray, list[str], np.ndarray, str]:
    """Return numbers, codes and target of a table, standardised half of the time."""
    frame, target, kind = sources.table(entry)
    names = [c for c in frame.columns if c != target]
    codes = [c for c in names if str(frame[c].dtype) == "category" or len(set(frame[c])) <= 6]
    numbers = [c for c in names if c not in codes][: sources.MOST_COLUMNS]
    codes = codes[: sources.MOST_COLUMNS - 4]
    x = frame[numbers].to_numpy(float) if numbers else np.zeros((len(frame), 0))
    c = [np.unique(frame[n].astype(str).tolist(), return_inverse=True)[1] for n in codes]
    stacked = np.stack(c, 1) if c else np.zeros((len(frame), 0), dtype=int)
    if draw.random() < 0.5 and len(numbers):
        x = (x - x.mean(0)) / x.std(0).clip(1e-9)
    return x, numbers, stacked, codes, frame[target].to_numpy(), kind


def _entry(draw: random.Random) -> tuple[str, ...]:
    return draw.choice(sources.table_names())


def _named(entry: tuple[str, ...]) -> str:
    return f"{entry[0]} {entry[1]} {entry[2]}"


def table(draw: random.Random) -> Task:
    """Draw a table of numbers."""
    entry = _entry(draw)
    x, names, codes, coded, y, kind = _columns(entry, draw)
    both, columns = np.concatenate([x, codes], 1), (*names, *coded)
    keep = list(range(both.shape[1]))[: sources.MOST_COLUMNS]
    if len(keep) < 3:
        raise sources.Missing(f"{entry}: {len(keep)} columns")
    target, n_out = _target(y, kind, draw)
    spec = Spec("numbers", ("column",), tuple(columns[i] for i in keep))
    rows = Rows({"features_in": floats(both[:, keep])}, target)
    kind_ = "classes" if kind == "classes" else "number"
    return Task("table", _named(entry), kind_, {"features_in": spec}, rows, n_out)


def several(draw: random.Random) -> Task:
    """Draw a table whose targets are two or three of its columns."""
    entry = _entry(draw)
    x, names, *_ = _columns(entry, draw)
    if len(names) < 6:
        raise sources.Missing(f"{entry}: {len(names)} numbers")
    n = draw.choice((2, 3))
    at = draw.sample(range(len(names)), n)
    rest = [i for i in range(len(names)) if i not in at]
    spec = Spec("numbers", ("column",), tuple(names[i] for i in rest))
    y = floats(x[:, at])
    if draw.random() < 0.6:
        y = (y - y.mean(0)) / y.std(0)
    rows = Rows({"features_in": floats(x[:, rest])}, y)
    return Task("several numbers", _named(entry), "numbers", {"features_in": spec}, rows, n)


def mixed(draw: random.Random) -> Task:
    """Draw a table of numbers beside codes of categories."""
    entry = _entry(draw)
    x, names, codes, coded, y, kind = _columns(entry, draw)
    if len(names) < 2 or not coded:
        raise sources.Missing(f"{entry}: no codes")
    target, n_out = _target(y, kind, draw)
    sizes = tuple(int(codes[:, i].max()) + 1 for i in range(codes.shape[1]))
    specs = {
        "numbers_in": Spec("numbers", ("column",), tuple(names)),
        "codes_in": Spec("codes", ("column",), tuple(coded), sizes),
    }
    rows = Rows({"numbers_in": floats(x), "codes_in": torch.from_numpy(codes).long()}, target)
    kind_ = "classes" if kind == "classes" else "number"
    return Task("mixed", _named(entry), kind_, specs, rows, n_out)


def five(draw: random.Random) -> Task:
    """Draw a table as five tensors: two of numbers, two of codes, and which numbers are known."""
    entry = _entry(draw)
    x, names, codes, coded, y, kind = _columns(entry, draw)
    if len(names) < 4 or len(coded) < 2:
        raise sources.Missing(f"{entry}: too few columns")
    x = (x - x.mean(0)) / x.std(0).clip(1e-9)
    known = np.random.default_rng(draw.randrange(2**31)).random(x.shape) > 0.05
    target, n_out = _target(y, kind, draw)
    cut, half = len(names) // 2, len(coded) // 2
    sizes = tuple(int(codes[:, i].max()) + 1 for i in range(codes.shape[1]))
    specs = {
        "first_numbers": Spec("numbers", ("column",), tuple(names[:cut])),
        "rest_numbers": Spec("numbers", ("column",), tuple(names[cut:])),
        "first_codes": Spec("codes", ("column",), tuple(coded[:half]), sizes[:half]),
        "rest_codes": Spec("codes", ("column",), tuple(coded[half:]), sizes[half:]),
        "known_mask": Spec("mask", ("column",), tuple(f"{n}_known" for n in names)),
    }
    kept = floats(x * known)
    values = torch.from_numpy(codes).long()
    tensors = {
        "first_numbers": kept[:, :cut], "rest_numbers": kept[:, cut:],
        "first_codes": values[:, :half], "rest_codes": values[:, half:],
        "known_mask": torch.from_numpy(known),
    }  # fmt: skip
    kind_: Kind = "classes" if kind == "classes" else "number"
    return Task("five inputs", _named(entry), kind_, specs, Rows(tensors, target), n_out)


def bags(draw: random.Random) -> Task:
    """Draw sets of rows of a table with a mask; the target is their mean target."""
    entry = draw.choice([e for e in sources.table_names() if e[3] == "number"])
    x, names, _, _, y, _ = _columns(entry, draw)
    if len(names) < 3:
        raise sources.Missing(f"{entry}: {len(names)} numbers")
    x = (x - x.mean(0)) / x.std(0).clip(1e-9)
    rng = np.random.default_rng(draw.randrange(2**31))
    most, n = 6, 1000
    order = np.argsort(x[:, 0])  # members are alike, else every mean is the same
    start = rng.integers(0, len(x) - 40, n)
    at = order[start[:, None] + rng.integers(0, 40, (n, most))]
    mask = np.arange(most) < rng.integers(2, most + 1, n)[:, None]
    members = x[at] * mask[..., None]
    mean = (y[at].astype(float) * mask).sum(1) / mask.sum(1)
    mean = (mean - mean.mean()) / mean.std()
    specs = {
        "members_in": Spec("numbers", ("item", "channel"), tuple(names)),
        "member_mask": Spec("mask", ("item",)),
    }
    tensors = {"members_in": floats(members), "member_mask": torch.from_numpy(mask)}
    return Task("set", _named(entry), "number", specs, Rows(tensors, floats(mean)[:, None]), 1)


def points(draw: random.Random) -> Task:
    """Draw digits as sets of their ink points, with a mask."""
    x, y = sources.pictures("digits")
    keep = y < draw.choice((4, 6))
    x, y, most = x[keep, 0], y[keep], 20
    members, mask = np.zeros((len(x), most, 3)), np.zeros((len(x), most), dtype=bool)
    for i, picture in enumerate(x):
        at = np.argwhere(picture > 0.4)[:most]
        values = picture[at[:, 0], at[:, 1]]
        members[i, : len(at)] = np.column_stack([at / 3.5 - 1, values])
        mask[i, : len(at)] = True
    specs = {
        "members_in": Spec("numbers", ("item", "channel")),
        "member_mask": Spec("mask", ("item",)),
    }
    tensors = {"members_in": floats(members), "member_mask": torch.from_numpy(mask)}
    rows = Rows(tensors, torch.from_numpy(y).long())
    return Task("set", "digits as points", "classes", specs, rows, int(y.max()) + 1)


def series(draw: random.Random) -> Task:
    """Draw labelled series."""
    name = draw.choice(sources.SERIES)
    x, y = sources.labelled_series(name)
    if draw.random() < 0.5:
        x = (x - x.mean((0, 1))) / x.std((0, 1))
    spec = Spec("numbers", ("time", "channel"))
    rows = Rows({"signal_in": floats(x)}, torch.from_numpy(y).long())
    return Task("series", name, "classes", {"signal_in": spec}, rows, int(y.max()) + 1)


def forecast(draw: random.Random) -> Task:
    """Draw windows of a long series and the next values of its first channel."""
    name = draw.choice(list(sources.LONG))
    x = sources.long_series(name)
    if draw.random() < 0.5:
        x = (x - x.mean(0)) / x.std(0)
    past, ahead = draw.choice((16, 24)), draw.choice((1, 1, 3))
    step = max(1, (len(x) - past - ahead) // 1200)
    starts = range(0, len(x) - past - ahead, step)
    windows = np.stack([x[i : i + past] for i in starts])
    nexts = np.stack([x[i + past : i + past + ahead, 0] for i in starts])
    if len(windows) < sources.FEWEST_ROWS:
        raise sources.Missing(f"{name}: {len(windows)} windows")
    specs, tensors = (
        {"history_in": Spec("numbers", ("time", "channel"))},
        {"history_in": floats(windows)},
    )
    if draw.random() < 0.4:
        at = np.array([[i % 24, (i // 24) % 7] for i in starts])
        specs["calendar_in"] = Spec("codes", ("column",), ("hour_0", "day_1"), (24, 7))
        tensors["calendar_in"] = torch.from_numpy(at).long()
    kind = "number" if ahead == 1 else "numbers"
    return Task("forecast", name, kind, specs, Rows(tensors, floats(nexts)), ahead, in_order=True)


def pictures(draw: random.Random) -> Task:
    """Draw labelled pictures."""
    name = draw.choice(list(sources.PICTURES))
    x, y = sources.pictures(name)
    form = draw.choice(("unit", "standard", "bytes"))
    x = {"unit": x, "standard": (x - x.mean()) / x.std(), "bytes": x * 255}[form]
    spec = Spec("numbers", ("channel", "height", "width"))
    rows = Rows({"pixels_in": floats(x)}, torch.from_numpy(y).long())
    return Task("pictures", name, "classes", {"pixels_in": spec}, rows, int(y.max()) + 1)


def maps(draw: random.Random) -> Task:
    """Draw pictures with a label for each pixel: shapes or digits before a real texture."""
    rng = np.random.default_rng(draw.randrange(2**31))
    grounds = sources.pictures("textures")[0][:, 0]
    source = draw.choice(("shapes", "digits"))
    digits = sources.pictures("digits")[0][:, 0]
    found, truth = [], []
    for _ in range(700):
        ground = 0.6 * grounds[rng.integers(len(grounds))]
        kind = int(rng.integers(0, 3))
        if source == "shapes":
            mask = sources.shape_mask(kind, 16, rng)
        else:
            mask, kind = digits[rng.integers(len(digits))].repeat(2, 0).repeat(2, 1) > 0.5, 0
        value = rng.uniform(0.55, 1.0)
        found.append(np.where(mask, value, ground))
        truth.append(np.where(mask, 1 + (kind if source == "shapes" else 0), 0))
    x, y = np.stack(found)[:, None], torch.from_numpy(np.stack(truth)).long()
    spec = Spec("numbers", ("channel", "height", "width"))
    rows = Rows({"pixels_in": floats((x - x.mean()) / x.std())}, y)
    return Task("maps", f"{source} on textures", "map", {"pixels_in": spec}, rows, int(y.max()) + 1)


def texts(draw: random.Random) -> Task:
    """Draw texts as tokens with a mask."""
    name = draw.choice(list(sources.TEXTS))
    found, y = sources.texts(name)
    letters = name.startswith("languages") and draw.random() < 0.5
    cut = [list(t[:40]) if letters else t.split() for t in found]
    counts: dict[str, int] = {}
    for words in cut:
        for word in words:
            counts[word] = counts.get(word, 0) + 1
    kept = sorted(counts, key=lambda w: (-counts[w], w))[:300]
    place = {word: i + 2 for i, word in enumerate(kept)}
    most = 40 if letters else 16
    ids, mask = torch.zeros(len(cut), most).long(), torch.zeros(len(cut), most).bool()
    for i, words in enumerate(cut):
        n = min(most, len(words), 5 + (7 * i) % most)
        ids[i, :n] = torch.tensor([place.get(w, 1) for w in words[:n]])
        mask[i, :n] = True
    specs = {
        "input_ids": Spec("codes", ("token",), (), (len(kept) + 2,)),
        "attention_mask": Spec("mask", ("token",)),
    }
    rows = Rows({"input_ids": ids, "attention_mask": mask.long()}, torch.from_numpy(y).long())
    return Task("texts", name, "classes", specs, rows, int(y.max()) + 1)


def tagging(_: random.Random) -> Task:
    """Draw lines of Python source: each character is a name, a number, a text or other."""
    found = sources.python_tokens()
    letters = sorted({c for line, _ in found for c in line})
    place = {c: i + 1 for i, c in enumerate(letters)}
    ids = torch.zeros(len(found), 32).long()
    y, mask = torch.full((len(found), 32), PAD_LABEL), torch.zeros(len(found), 32).bool()
    for i, (line, marks) in enumerate(found):
        ids[i, : len(line)] = torch.tensor([place[c] for c in line])
        y[i, : len(line)] = torch.tensor(marks)
        mask[i, : len(line)] = True
    specs = {
        "input_ids": Spec("codes", ("token",), (), (len(letters) + 1,)),
        "attention_mask": Spec("mask", ("token",)),
    }
    rows = Rows({"input_ids": ids, "attention_mask": mask.long()}, y)
    return Task("tagging", "python source", "tokens", specs, rows, 4)


def graphs(draw: random.Random) -> Task:
    """Draw small graphs with a mask: all of the atlas, or digits as graphs of their ink."""
    name = draw.choice(("triangles", "connected", "digits as graphs"))
    if name == "digits as graphs":
        return _ink_graphs()
    found = sources.graphs()
    most = 7
    atoms, bonds = np.zeros((len(found), most, 2)), np.zeros((len(found), most, most))
    mask, y = np.zeros((len(found), most), dtype=bool), np.zeros(len(found))
    for i, (matrix, count, joined) in enumerate(found):
        n = len(matrix)
        bonds[i, :n, :n], mask[i, :n] = matrix, True
        atoms[i, :n] = np.column_stack([np.ones(n), matrix.sum(0) / 3])
        y[i] = count if name == "triangles" else joined
    target = floats((y - y.mean()) / y.std())[:, None]
    kind: Kind = "number" if name == "triangles" else "classes"
    if kind == "classes":
        ones, zeros = (np.flatnonzero(y == v) for v in (1, 0))
        keep = np.sort(np.concatenate([ones[: 2 * len(zeros)], zeros]))
        atoms, bonds, mask = atoms[keep], bonds[keep], mask[keep]
        target = torch.from_numpy(y[keep]).long()
    return _graph_task(name, kind, atoms, bonds, mask, target)


def _ink_graphs() -> Task:
    x, y = sources.pictures("digits")
    keep = y < 4
    x, y, most = x[keep, 0], y[keep], 24
    atoms, bonds = np.zeros((len(x), most, 3)), np.zeros((len(x), most, most))
    mask = np.zeros((len(x), most), dtype=bool)
    for i, picture in enumerate(x):
        at = np.argwhere(picture > 0.4)[:most]
        n = len(at)
        gap = np.abs(at[:, None] - at[None]).max(-1)
        bonds[i, :n, :n], mask[i, :n] = gap == 1, True
        atoms[i, :n] = np.column_stack([at / 3.5 - 1, picture[at[:, 0], at[:, 1]]])
    return _graph_task("digits as graphs", "classes", atoms, bonds, mask, torch.from_numpy(y))


def _graph_task(
    name: str, kind: Kind, atoms: np.ndarray, bonds: np.ndarray, mask: np.ndarray, target: Tensor
) -> Task:
    specs = {
        "atom_values": Spec("numbers", ("item", "channel")),
        "bond_matrix": Spec("bonds", ("item", "item2")),
        "atom_mask": Spec("mask", ("item",)),
    }
    tensors = {
        "atom_values": floats(atoms),
        "bond_matrix": floats(bonds),
        "atom_mask": torch.from_numpy(mask),
    }
    n_out = int(target.max()) + 1 if kind == "classes" else 1
    return Task("graphs", name, kind, specs, Rows(tensors, target), n_out)


def retrieval(draw: random.Random) -> Task:
    """Draw a query and candidates: one is the other half of the query's row or picture."""
    k = 5
    if draw.random() < 0.5:
        x, _ = sources.pictures("digits")
        x = (x[:, 0] - x.mean()) / x.std()
        half, rest = (p.reshape(len(x), -1) for p in (x[:, :4], x[:, 4:]))
        half, rest = half[:, half.std(0) > 0.1], rest[:, rest.std(0) > 0.1]
        name, names = "halves of digits", ()
    else:
        entry = draw.choice([e for e in sources.table_names() if e[1] in WIDE])
        wide, columns, *_ = _columns(entry, draw)
        wide = (wide - wide.mean(0)) / wide.std(0).clip(1e-9)
        half, rest, name = wide[:, ::2], wide[:, 1::2], _named(entry)
        names = tuple(columns[::2])
    rng = np.random.default_rng(draw.randrange(2**31))
    n = len(half)
    others = rng.integers(0, n, (n, k))
    y = rng.integers(0, k, n)
    others[np.arange(n), y] = np.arange(n)
    specs = {
        "query_in": Spec("numbers", ("column",), names),
        "candidates_in": Spec("numbers", ("item", "channel")),
    }
    rows = Rows(
        {"query_in": floats(half), "candidates_in": floats(rest[others])}, torch.from_numpy(y)
    )
    return Task("retrieval", name, "choice", specs, rows, k)


WIDE = ("breast_cancer", "modeldata/cells", "ISLR/College", "MASS/biopsy", "wine")

SHAPES: dict[str, Callable[[random.Random], Task]] = {
    "table": table,
    "several": several,
    "mixed": mixed,
    "five": five,
    "bags": bags,
    "points": points,
    "series": series,
    "forecast": forecast,
    "pictures": pictures,
    "maps": maps,
    "texts": texts,
    "tagging": tagging,
    "graphs": graphs,
    "retrieval": retrieval,
}
WEIGHTS = {"table": 4, "mixed": 3, "forecast": 3, "pictures": 3, "series": 2, "texts": 2}


def draw_task(draw: random.Random) -> Task:
    """Draw a task; those whose source is missing are passed over."""
    names = list(SHAPES)
    while True:
        name = draw.choices(names, [WEIGHTS.get(n, 1) for n in names])[0]
        try:
            return SHAPES[name](draw)
        except (sources.Missing, OSError, KeyError):
            continue
