"""The last section of a method's page: its commands, how-to pages, neighbours and picture."""

import importlib
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tools.gallery import PAGES, SHOTS, Page

from sonde.explain import Attributor
from sonde.run.compressing.methods import weight_methods
from sonde.run.instruments.catalogue import Method, methods
from sonde.run.instruments.families import Listed, snake_case
from sonde.run.instruments.listing import listed
from sonde.run.training import layers, losses

HOWTOS = Path(__file__).resolve().parent.parent / "docs" / "howto"
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
N_LISTED = 6
COMMANDS = {
    "measure": ("sonde fit {} MODEL DATA -o fitted.sonde",),
    "detector": (
        "sonde fit {} MODEL DATA -o probe.sonde",
        "sonde score probe.sonde MODEL OTHER",
    ),
    "shift": (
        "sonde fit {} MODEL DATA -o monday.sonde",
        "sonde drift monday.sonde tuesday.sonde",
    ),
    "cache rule": ("sonde cache MODEL TEXTS --rules {}",),
}
"""Commands by the kind of a method; a kind that only a part of its family has is asked below."""


def see_also(method: Method) -> list[str]:
    """Return the section of a method that ``sonde fit`` knows."""
    entry = next((e for e in listed() if e.is_fitted and e.name == method.word), None)
    kind = entry.kind if entry else "measure"
    commands = [line.format(method.word) for line in COMMANDS[kind]]
    names = (method.word, method.cls.__name__)
    pages = howtos_of(names)
    others = neighbours(method)
    near = ", ".join(f"[`{m.word}`]({m.word}.md)" for m in others)
    of_others = (howtos_of((m.word, m.cls.__name__)) for m in others)
    related = next((p for p in of_others if p), []) if not pages else []
    lines = [
        f"- **Command line**: {_code(commands)}; `sonde methods {method.word}` prints this page.",
        _linked(pages),
        _linked(related, "How-to on a related method"),
        f"- **Related methods**: {near}" if near else "",
    ]
    found = ["## See also", "\n".join(filter(None, lines))]
    shot = picture(names, [*pages, *related], commands)
    if shot:
        found.append(
            f"```{{figure}} ../_static/shots/{shot.name}.webp\n:alt: {shot.title}\n:class: shot\n"
            f":width: 480px\n:target: ../{shot.howto}.html\n\n{shot.title}\n```"
        )
    return found


def see_also_export(family: str, name: str) -> list[str]:
    """Return the list of an export that has no page of its own; none if nothing names it."""
    entry = next((e for e in listed() if (e.family, e.export) == (family, name)), None)
    if entry is None:
        return []
    commands = commands_of(entry)
    names = (name, word) if (word := _word_in(commands)) else (name,)
    pages = howtos_of(names)
    near = ", ".join(f"`{family}.{e.export}`" for e in relatives(entry))
    shot = picture(names, pages, commands)
    lines = [
        f"- **Command line**: {_code(commands)}" if commands else "",
        _linked(pages),
        f"- **Related**: {near}" if near else "",
        f"- **Picture**: [{shot.title}](../gallery.md)" if shot else "",
    ]
    text = "\n".join(filter(None, lines))
    return [text] if text else []


def _word_in(commands: Iterable[str]) -> str | None:
    """Return the word that commands have for a method, or None."""
    flagged = (re.search(r"--(?:method|methods|rules|terms|insert) ([\w-]+)", c) for c in commands)
    return next((found[1] for found in flagged if found), None)


def commands_of(entry: Listed) -> list[str]:
    """Return the commands that run a method, with its word filled in."""
    room = importlib.import_module(f"sonde.{entry.family}")
    export = getattr(room, entry.export)
    word = getattr(export, "word", snake_case(entry.export))
    found = [line.format(entry.name if entry.is_fitted else word)
             for line in COMMANDS.get(entry.kind, ())]  # fmt: skip
    if entry.family == "compress":
        words = {kind.__name__: w for w, kind in weight_methods().items()}
        if entry.export in words:
            found.append(f"sonde compress MODEL DATA --method {words[entry.export]}")
    if isinstance(export, type) and issubclass(export, Attributor):
        found.append(f"sonde explain MODEL DATA --methods {word}")
    if entry.family == "train" and word in _losses():
        found.append(f"sonde train MODEL DATA --terms {word} --sites SITE")
    if entry.family == "layers" and word in _layers():
        found.append(f"sonde train MODEL DATA --insert {word}@SITE")
    return found


def neighbours(method: Method) -> list[Method]:
    """Return methods of the same family, those that read and say most of the same first."""
    reads = _statistics(method)
    others = [m for m in methods().values() if m.family == method.family and m.word != method.word]

    def nearness(other: Method) -> tuple[float, str]:
        theirs = _statistics(other)
        shared = len(reads & theirs) / len(reads | theirs)
        return -shared - _similarity(method, other), other.word

    return sorted(others, key=nearness)[:N_LISTED]


def relatives(entry: Listed) -> list[Listed]:
    """Return exports of the same family and kind whose descriptions share rare words."""
    if entry.kind == "function":
        return []
    others = [e for e in listed() if not e.is_fitted and e.export != entry.export]
    like = [e for e in others if (e.family, e.kind) == (entry.family, entry.kind)]
    return sorted(like, key=lambda e: (-_similarity(entry, e), e.export))[:N_LISTED]


def _similarity(one: Method | Listed, two: Method | Listed) -> float:
    """Return the fraction of rare words that two descriptions share."""
    counts = _frequencies()
    a, b = _words(one), _words(two)
    weight = {w: 1 / counts[w] for w in a | b}
    return sum(weight[w] for w in a & b) / max(sum(weight.values()), 1e-9)


def howtos_of(names: Iterable[str]) -> list[str]:
    """Return the how-to pages whose code names a method, those that name it most often first."""
    pattern = _pattern(names)
    counts = {page: len(pattern.findall(text)) for page, (_, text) in _pages().items()}
    return sorted((p for p, n in counts.items() if n), key=lambda p: (-counts[p], p))[:N_LISTED]


def picture(names: Iterable[str], pages: Iterable[str], commands: Iterable[str]) -> Page | None:
    """Return the picture of a method: of its own command, else of a how-to, else of its kind."""
    shown = [page for page in PAGES if (SHOTS / f"{page.name}.webp").exists()]
    own = [page for page in shown if _pattern(names).search(page.command)]
    of_pages = [p for name in pages for p in shown if p.howto == f"howto/{name}"]
    starts = [command.split()[1] for command in commands]
    of_kind = [p for start in starts for p in shown if p.command.split()[0] == start]
    return next(iter([*own, *of_pages, *of_kind]), None)


def _pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of names in code; a word counts alone, or as an argument of a command."""
    called = r"(?:`|\bfit [\w,()=.' ]*?|--(?:methods?|rules|terms|insert) ['\"]?)"
    forms = (rf"\b{n}\b" if n[0].isupper() else rf"{called}{n}(?=[`,( ])" for n in names)
    return re.compile("|".join(forms))


def _linked(pages: Iterable[str], head: str = "How-to") -> str:
    links = ", ".join(f"[{_pages()[page][0]}](../howto/{page}.md)" for page in pages)
    return f"- **{head}**: {links}" if links else ""


def _code(commands: Iterable[str]) -> str:
    return ", then ".join(f"`{command}`" for command in commands)


@cache
def _pages() -> dict[str, tuple[str, str]]:
    """Return title and code of each how-to page."""
    found = {}
    for path in sorted(HOWTOS.glob("*.md")):
        text = path.read_text("utf-8")
        title = TITLE.search(text)
        found[path.stem] = (title[1] if title else path.stem, "\n".join(CODE.findall(text)))
    return found


@cache
def _losses() -> frozenset[str]:
    return frozenset(loss.word for loss in losses.listed() if loss.is_usable)


@cache
def _layers() -> frozenset[str]:
    return frozenset(layer.word for layer in layers.listed_layers())


def _statistics(method: Method) -> frozenset[str]:
    return frozenset(type(r.statistic).__name__ for r in method.cls().all_reads().values())


def _words(method: Method | Listed) -> frozenset[str]:
    return frozenset(
        re.findall(r"[a-z]{4,}", method.description.partition("Parameters")[0].lower())
    )


@cache
def _frequencies() -> Counter[str]:
    return Counter(w for entry in listed() for w in _words(entry))
