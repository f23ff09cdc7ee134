"""Draw the pages of the gallery: ``python -m tools.gallery`` (``make shots``).

Each command runs on what ships with sonde; the top of its page becomes a small WebP picture in
``docs/_static/shots``, which the gallery and the how-to pages show.
"""

import contextlib
import io
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.shots import browser, chromium

ROOT = Path(__file__).resolve().parent.parent
SHOTS = ROOT / "docs" / "_static" / "shots"
SIZE = (1000, 760)
WIDTH = 800
QUALITY = 60
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
DIGITS = "sonde:digits sonde:digits/test"
TRAIN = "sonde:digits sonde:digits/train"


@dataclass(frozen=True)
class Page:
    """A page of the gallery.

    Parameters
    ----------
    name : str
        Of the picture.
    title : str
    howto : str
        The how-to that explains it, from ``docs``.
    command : str
        What makes it, without the word ``sonde``; ``page:NAME`` runs the code of a how-to.
    file : str
        The page that is written.
    """

    name: str
    title: str
    howto: str
    command: str
    file: str


PREPARED = (
    f"fit mahalanobis,knn,msp {TRAIN} -o probe.sonde",
    f"fit mmd,frechet {DIGITS} -o monday.sonde --sites vit.layers.3",
    "fit mmd,frechet sonde:digits turned.npz -o tuesday.sonde --sites vit.layers.3",
    f"scan {DIGITS} -o right.json",
    f"scan {DIGITS} --image-mean 0 --image-std 1 -o wrong.json",
)
"""Commands whose files the pages below read."""
PAGES = (
    Page("scan", "Scan of a classifier", "tutorial", f"scan {DIGITS} -o scan.html", "scan.html"),
    Page(
        "normalisation",
        "Cause and fix: wrong normalisation",
        "howto/wrong_normalisation",
        f"scan {DIGITS} --image-mean 0 --image-std 1 -o wrong.html",
        "wrong.html",
    ),
    Page("labels", "Label errors", "howto/label_errors", "page:label_errors", "label-errors.html"),
    Page("shortcut", "A shortcut", "howto/shortcuts", "page:shortcuts", "shortcut.html"),
    Page(
        "language",
        "Scan of a language model",
        "tutorials/text",
        "scan sonde:stdlib sonde:stdlib/test --limit 96 -o language.html",
        "language.html",
    ),
    Page(
        "versus",
        "Two data sets compared",
        "howto/choose_a_detector",
        f"scan {DIGITS} --versus turned.npz -o versus.html",
        "versus.html",
    ),
    Page(
        "diff",
        "Two scans compared",
        "howto/gate",
        "scan --diff right.json wrong.json -o diff.html",
        "diff.html",
    ),
    Page(
        "evaluate",
        "How good detectors are",
        "howto/look_at_scores",
        f"evaluate probe.sonde {DIGITS} turned.npz -o evaluate.html",
        "evaluate.html",
    ),
    Page(
        "scores",
        "The most unusual inputs",
        "howto/guard",
        "score probe.sonde sonde:digits turned.npz -o scores.html --show-inputs",
        "scores.html",
    ),
    Page(
        "drift",
        "Data drift between two fits",
        "howto/compare_two_fits",
        "drift monday.sonde tuesday.sonde -o drift.html",
        "drift.html",
    ),
    Page(
        "explain",
        "Attribution, tested",
        "howto/explain_an_answer",
        f"explain {DIGITS} --methods saliency,integrated_gradients --limit 16 -o explain.html",
        "explain.html",
    ),
    Page(
        "trace",
        "Activation patching",
        "howto/trace_an_answer",
        'trace sonde:stdlib --clean "a = [1, 2" --corrupt "a = (1, 2" --answer "]" --instead ")"'
        " -o trace.html",
        "trace.html",
    ),
    Page(
        "units",
        "Atlas of neurons",
        "howto/look_at_units",
        f"units {DIGITS} --sites vit.layers.1 -o atlas.html",
        "atlas.html",
    ),
    Page(
        "steer",
        "A steered model, judged",
        "howto/steer",
        "edit steer sonde:stdlib --positive sonde:docstrings --negative sonde:code -o steered"
        " --limit 8 --strength 1 --force",
        "steered.html",
    ),
    Page(
        "forget",
        "Unlearning of a class",
        "howto/forget",
        "edit forget sonde:digits --forget sonde:digits --of-class 3 --limit 256 -o forgot --force",
        "forgot.html",
    ),
    Page(
        "attention",
        "Attention limited to a window",
        "howto/read_attention",
        "edit attention sonde:stdlib sonde:stdlib/test --pattern window:8 --limit 8"
        " --report far.html",
        "far.html",
    ),
    Page(
        "compress",
        "Quantisation: what it costs",
        "howto/compress",
        f"compress {TRAIN} --to 4bit --limit 64 --held 64 -o small",
        "small.html",
    ),
    Page(
        "sizes",
        "Search over sizes",
        "howto/choose_a_size",
        f"compress search {TRAIN} --to 8bit 4bit 50% --limit 32 --held 32 -o sizes.html",
        "sizes.html",
    ),
    Page(
        "compare",
        "Two models compared",
        "howto/compare_two_models",
        "compare sonde:digits small sonde:digits/test --limit 256 -o compare.html",
        "compare.html",
    ),
    Page(
        "train",
        "Fine-tuning with a loss on states",
        "howto/train",
        f"train {TRAIN} --terms rate_reduction --sites blocks.1 --epochs 1 --limit 64 --held 64"
        " -o trained",
        "trained.html",
    ),
    Page(
        "track",
        "Measures over a training run",
        "howto/training",
        "page:training && track run.track -o track.html",
        "track.html",
    ),
    Page(
        "recipe",
        "Answer of a recipe",
        "howto/recipes",
        f"recipe decode-states {DIGITS} -o decoded.html",
        "decoded.html",
    ),
)


def gallery_page() -> str:
    """Return the page with a card for each picture."""
    cards = [
        f":::{{grid-item-card}} {page.title}\n:link: {page.howto}\n:link-type: doc\n"
        f":img-bottom: _static/shots/{page.name}.webp\n:img-alt: {page.title}\n:::"
        for page in PAGES
        if (SHOTS / f"{page.name}.webp").exists()
    ]
    return (
        "# Gallery\n\nEvery command writes one self-contained page that works offline. These are "
        "pages of commands on\nthe models and data that ship with sonde (`make shots` draws them). "
        "A card leads to the how-to.\n\n::::{grid} 1 2 2 3\n:gutter: 3\n\n"
        + "\n".join(cards)
        + "\n::::"
    )


def _turned() -> None:
    import numpy as np
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    upright = digits.images[:500] / 8 - 1
    np.savez("turned.npz", x=np.rot90(upright, axes=(1, 2))[:, None].astype("float32"))


def _run(command: str) -> None:
    """Run a command, or the code of a how-to."""
    import shlex

    from sonde.cli import main

    if " && " in command:
        for part in command.split(" && "):
            _run(part)
        return
    if command.startswith("page:"):
        text = (ROOT / "docs" / "howto" / f"{command[5:]}.md").read_text("utf-8")
        with contextlib.redirect_stdout(io.StringIO()):
            exec("\n".join(BLOCK.findall(text)), {"__name__": "__main__"})
        return
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(shlex.split(command))
    if code:
        sys.exit(f"gallery: sonde {command} ended with {code}")


def draw(page_file: Path, target: Path) -> None:
    """Write the top of a page as a small WebP picture."""
    from PIL import Image

    with browser() as opened:
        size = dict(zip(("width", "height"), SIZE, strict=True))
        page = opened.new_page(viewport=size, color_scheme="light")
        page.goto(page_file.resolve().as_uri())
        taken = Image.open(io.BytesIO(page.screenshot()))
    taken.resize((WIDTH, SIZE[1] * WIDTH // SIZE[0])).save(target, quality=QUALITY, method=6)


def main(names: list[str]) -> int:
    """Draw the named pages, or all of them."""
    if chromium() is None:
        print("no chromium found: install it, then try again", file=sys.stderr)
        return 2
    SHOTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sonde-gallery-") as place, contextlib.chdir(place):
        os.environ["COLUMNS"] = "80"
        _turned()
        for command in (
            PREPARED if not names or {"diff", "evaluate", "scores", "drift"} & {*names} else ()
        ):
            _run(command)
        for page in PAGES:
            if (
                names
                and page.name not in names
                and (
                    page.name != "compress" or "compare" not in names  # which reads the small model
                )
            ):
                continue
            _run(page.command)
            target = SHOTS / f"{page.name}.webp"
            draw(Path(page.file), target)
            print(f"{target.relative_to(ROOT)}  {target.stat().st_size / 1024:.0f} KiB", flush=True)
    total = sum(path.stat().st_size for path in SHOTS.glob("*.webp"))
    print(f"{total / 2**20:.2f} MiB in all")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
