"""Readers of the real data: pictures, sounds, texts and tables, each with its labels."""

import ast
import gzip
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tools.field.nets import N_MELS
from tools.field.obtain import DEBIAN

STAMPS = ("animals", "food", "plants", "symbols", "town", "vehicles")
GARMENTS = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Boot",
)
LIBRARIES = ("pandas", "scipy", "sklearn", "sympy", "torch")
LANGUAGES = {"de": "German", "en": "English", "fr": "French"}
VOICES = ("be", "bg", "ca", "el", "es", "fr", "ro", "ru")
RATE, N_FRAMES = 16_000, 96


def stamps(size: int = 96, most: int = 110) -> Iterator[tuple[Image.Image, str]]:
    """Yield pictures of Tux Paint on white, with the folder that they lie in."""
    top = DEBIAN / "usr/share/tuxpaint/stamps"
    for kind in STAMPS:
        paths = sorted((top / kind).rglob("*.png"))
        chosen = np.random.default_rng(0).permutation(len(paths))[:most]
        for i in sorted(chosen):
            with Image.open(paths[i]) as opened:
                picture = opened.convert("RGBA")
            picture.thumbnail((size, size))
            canvas = Image.new("RGBA", (size, size), "white")
            at = ((size - picture.width) // 2, (size - picture.height) // 2)
            canvas.alpha_composite(picture, at)
            yield canvas.convert("RGB"), kind


def garments(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures (row, 28, 28) and classes of Fashion-MNIST; `part` is train or t10k."""
    place = DEBIAN / "usr/share/datasets/fashion-mnist"
    with gzip.open(place / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(place / f"{part}-labels-idx1-ubyte.gz") as file:
        return pixels, np.frombuffer(file.read(), np.uint8, offset=8)


def docstrings(each: int = 260) -> Iterator[tuple[str, str]]:
    """Yield first paragraphs of docstrings with the library that they come from."""
    for library in LIBRARIES:
        top, n, seen = Path(sysconfig.get_paths()["purelib"]), 0, set()
        top = next(p for p in (top, *_shared()) if (p / library).is_dir())
        paths = sorted(p for p in (top / library).rglob("*.py") if "test" not in str(p))
        for i in np.random.default_rng(1).permutation(len(paths)):
            if n == each:
                break
            for text in list(_documented(paths[i]))[:3]:
                if n < each and text not in seen:
                    seen.add(text)
                    n += 1
                    yield text, library


def _shared() -> Iterator[Path]:
    import sklearn

    yield Path(sklearn.__file__).parent.parent


def _documented(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            text = " ".join((ast.get_docstring(node) or "").split())[:400]
            if len(text) >= 120:
                yield text


def manuals(each: int = 220) -> Iterator[tuple[str, str]]:
    """Yield paragraphs of manual pages with their language."""
    for code, language in LANGUAGES.items():
        place = DEBIAN / "usr/share/man" / ("" if code == "en" else code)
        pages = sorted(p for section in "1578" for p in (place / f"man{section}").glob("*.gz"))
        n = 0
        for i in np.random.default_rng(2).permutation(len(pages)):
            if n < each and not pages[i].is_symlink():
                for text in _paragraphs(pages[i])[:2]:
                    n += 1
                    yield text, language


def _paragraphs(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8", errors="ignore") as file:
        blocks = re.split(r"\n\.(?:PP|P|LP|SH|TP)[^\n]*\n", file.read())
    found = []
    for block in blocks[3:]:
        lines = [re.sub(r"^\.[A-Z]+\s*", "", line) for line in block.splitlines()]
        text = re.sub(r"\\f.|\\&|\\[-|^]|\\\(..|\\\[..\]", "", " ".join(lines))
        text = " ".join(text.replace('"', "").split())
        if len(text) > 150 and "\\" not in text:
            found.append(text[:300])
    return found


def voices(each: int = 110) -> Iterator[tuple[np.ndarray, str]]:
    """Yield mel bands (frame, 40) of spoken words with the language that is spoken."""
    import soundfile
    from scipy.signal import resample_poly

    top, seen = DEBIAN / "usr/share/tuxpaint/stamps", set[bytes]()
    for language in VOICES:
        paths = sorted(top.rglob(f"*_desc_{language}.ogg"))
        n = 0
        for i in np.random.default_rng(3).permutation(len(paths)):
            if n == each:
                break
            digest = hashlib.sha256(paths[i].read_bytes()).digest()
            if digest in seen:  # one recording serves several stamps
                continue
            seen.add(digest)
            wave, rate = soundfile.read(paths[i], dtype="float32", always_2d=True)
            wave = resample_poly(wave.mean(1), RATE, rate)
            if len(wave) > RATE // 3 and np.abs(wave).max() > 0.01:
                n += 1
                yield mels(wave), language


def mels(wave: np.ndarray) -> np.ndarray:
    """Return power in 40 mel bands of 25 ms windows every 10 ms, at -30 dB; short ones repeat."""
    wave = wave * (10 ** (-30 / 20) / max(float(np.sqrt(np.mean(wave**2))), 1e-6))
    wave = np.resize(wave, RATE * N_FRAMES // 100 + 400)
    frames = np.lib.stride_tricks.sliding_window_view(wave, 400)[::160][:N_FRAMES]
    power = np.abs(np.fft.rfft(frames * np.hanning(401)[:-1], axis=1)) ** 2
    return (power @ _bands().T).astype(np.float32)


def _bands() -> np.ndarray:
    """Return triangles of equal area on Slaney's mel scale, (band, frequency)."""
    step, corner, growth = 200 / 3, 1000.0, np.log(6.4) / 27
    top = corner / step + np.log(8000 / corner) / growth
    m = np.linspace(0, top, N_MELS + 2)
    log = corner * np.exp(growth * (m - corner / step))
    edges = np.where(m < corner / step, m * step, log)
    at = np.linspace(0, 8000, 201)
    up = (at - edges[:-2, None]) / np.diff(edges)[:-1, None]
    down = (edges[2:, None] - at) / np.diff(edges)[1:, None]
    area = 2 / (edges[2:] - edges[:-2])
    return np.maximum(0, np.minimum(up, down)) * area[:, None]


def notes(n: int, first: int = 24, last: int = 44) -> tuple[np.ndarray, np.ndarray]:
    """Return frames (row, 1024) at 16 kHz of tones with overtones and noise, and their semitones.

    The pitch is exact by construction; level, overtones, phase and noise are drawn.
    """
    draw = np.random.default_rng(4)
    note = draw.integers(first, last, n)
    hertz = 32.70 * 2 ** ((note + draw.uniform(-0.25, 0.25, n)) / 12)
    time = np.arange(1024) / RATE
    waves = np.zeros((n, 1024))
    for k in range(1, 8):
        level = draw.uniform(0.3, 1, (n, 1)) / k
        phase = 2 * np.pi * draw.random((n, 1))
        waves += level * np.sin(2 * np.pi * k * hertz[:, None] * time + phase)
    waves += 0.05 * draw.normal(size=waves.shape)
    waves -= waves.mean(1, keepdims=True)
    return (waves / waves.std(1, keepdims=True)).astype(np.float32), note


def photographs() -> list[np.ndarray]:
    """Return the colour photographs that scikit-learn carries."""
    from sklearn.datasets import load_sample_images

    bunch: Any = load_sample_images()
    return list(bunch.images)
