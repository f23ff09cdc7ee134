"""Generate the reference: a page for each public package, a section for each name it exports."""

import importlib
import inspect
import re
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from tools.see_also import see_also_export

from sonde.core.columns import Column
from sonde.run.instruments.families import FAMILIES

ROOMS = (
    "core",
    "engine",
    "stats",
    "tap",
    "weights",
    "data",
    "store",
    "metrics",
    "alarms",
    *(family for family in FAMILIES if family not in ("measure", "detect")),
    "report",
    "serving",
    "testing",
)
PACKAGES = (*(f"sonde.{room}" for room in ROOMS), "sonde_studies")
LONGEST = 400
LISTED = ("Parameters", "Attributes", "Returns", "Yields", "Raises", "Warns")
"""Sections of a docstring that list names or types, each with its description."""
LIST = re.compile(r"(?:- |\d+\. )")
FACT = re.compile(r"([A-Z][\w-]*) {2,}(\S.*)")


def reference_pages() -> dict[str, str]:
    """Return the page of every package by the name of its file."""
    return {_page(name): package_page(name) for name in PACKAGES}


def reference_index() -> str:
    """Return the page that lists the packages."""
    rows = "\n".join(
        f"| [`{name}`](reference/{_page(name)}.md) | {_summary(importlib.import_module(name))} |"
        for name in PACKAGES
    )
    return (
        "# Reference\n\nWhat the packages export, from the code itself; methods have "
        f"[pages of their own](methods.md).\n\n| package | what it is |\n|---|---|\n{rows}"
    )


def package_page(name: str) -> str:
    """Return the page of one package."""
    package = importlib.import_module(name)
    parts = [f"# `{name}`", _summary(package)]
    for export in package.__all__:
        more = [*studied_by(f"{_page(name)}.{export}"), *see_also_export(_page(name), export)]
        parts += [f"## `{export}`", *entry(export, getattr(package, export)), *more]
    return "\n\n".join(parts)


def studied_by(export: str) -> list[str]:
    """Return a paragraph that names the studies of an export; none if there is no study of it."""
    words = _studies().get(export, [])
    told = ", ".join(f"`sonde study {word}`" for word in words)
    return [f"Its claims are tested by {told}."] if words else []


@cache
def _studies() -> dict[str, list[str]]:
    """Return the studies of each export, as ``tools/rows.toml`` names them."""
    found: dict[str, list[str]] = {}
    text = Path(__file__).with_name("rows.toml").read_text("utf-8")
    for row in tomllib.loads(text).values():
        for code in row.get("code", ()):
            words = found.setdefault(code.partition("(")[0], [])
            words += [word for word in row.get("study", ()) if word not in words]
    return found


def documented(page: str) -> set[str]:
    """Return the names that have a section on a page."""
    return set(re.findall(r"^## `(\w+)`$", page, re.MULTILINE))


def entry(name: str, found: Any) -> list[str]:
    """Return how a name is called, and its docstring; of a value, the value."""
    if not (inspect.isclass(found) or inspect.isroutine(inspect.unwrap(found))):
        is_short = len(repr(found)) <= LONGEST and "<" not in repr(found)
        shown = f"{name} = {found!r}" if is_short else f"{name}: {type(found).__name__}"
        return [_block([shown], "python"), *_columns(found)]
    doc = inspect.getdoc(found) or ""
    return [_block([f"{name}{_signature(found)}"], "python"), *sections(doc)]


def _columns(found: Any) -> list[str]:
    """Return a list of what each column means, if a value maps names to columns."""
    if not (isinstance(found, dict) and all(isinstance(v, Column) for v in found.values())):
        return []
    head = "What a statistic may take beside the rows, by the name of its parameter."
    lines = (
        f"- `{name}` (*{one.kind}, {one.shape}*): {escaped(one.meaning)}"
        for name, one in found.items()
    )
    return [head, "\n".join(lines)]


def sections(doc: str) -> list[str]:
    r"""Return a numpy docstring as Markdown: parameters as a list, examples as code.

    Examples
    --------
    >>> sections("Count rows.\n\nParameters\n----------\nby : str\n    A column.")
    ['Count rows.', '**Parameters**', '- `by` (*str*): A column.']
    """
    parts = re.split(r"^(\w[\w ]*)\n-{3,}$", doc, flags=re.MULTILINE)
    found = _prose(parts[0])
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        if title == "References":
            continue
        found += [f"**{title}**", _section(title, body.strip("\n"))]
    return found


def _section(title: str, body: str) -> str:
    """Return what is below an underlined title; what is no list of names stays as it is written."""
    if title in LISTED and (items := _items(body)):
        return "\n".join(items)
    return _block(body.splitlines(), "pycon" if title == "Examples" else "text")


def _items(body: str) -> list[str]:
    """Return a line for each parameter, or none if a description has an inner layout."""
    found: list[list[str]] = []
    for line in body.splitlines():
        if line and not line.startswith(" "):
            found.append([line])
        elif not found or (line and not re.match(r" {4}[^ \-*>]", line)):
            return []
        else:
            found[-1].append(line.strip())
    return [_item(head, " ".join(filter(None, rest))) for head, *rest in found]


def _item(head: str, text: str) -> str:
    name, colon, kind = head.partition(" : ")
    said = f" (*{escaped(kind)}*)" if colon and kind else ""
    return f"- `{name}`{said}" + (f": {escaped(text)}" if text else "")


def escaped(text: str) -> str:
    """Return text whose code is marked as in Markdown, and in which nothing else is markup."""
    parts = re.split(r"(``.+?``|`[^`]+`)", text)
    return "".join(
        f"`{part.strip('`')}`" if i % 2 else re.sub(r"([\\*_<>\[\]$|{}&])", r"\\\1", part)
        for i, part in enumerate(parts)
    )


def _prose(text: str) -> list[str]:
    """Return paragraphs; aligned facts such as ``Range   [0, 1]`` as a list, formulas as blocks."""
    found = []
    for part in re.split(r"\n{2,}", text.strip("\n")):
        if FACT.match(part):
            found.append("\n".join(_facts(part)))
        elif part.startswith(" "):
            found.append(_block(part.splitlines(), "text"))
        elif part.strip():
            # One line: a broken one can start with "1." or "- ", which Markdown takes for a list.
            found.append(part if LIST.match(part) else " ".join(part.split()))
    return [text if text.startswith("```") else text.replace("``", "`") for text in found]


def _facts(part: str) -> list[str]:
    """Return a line for each fact of a block; lines that go on with a fact are indented."""
    found: list[tuple[str, str]] = []
    for line in part.splitlines():
        told = FACT.match(line)
        if told:
            found.append((told[1], told[2]))
        else:
            name, text = found[-1]
            found[-1] = name, f"{text} {line.strip()}"
    return [f"- **{name}**: {escaped(text)}" for name, text in found]


def _block(lines: Iterable[str], language: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _signature(found: Any) -> str:
    """Return the parameters with their defaults, without types; a function stands as ``...``."""
    try:
        known = inspect.signature(found)
    except (TypeError, ValueError):
        return ""
    bare = [p.replace(annotation=p.empty) for p in known.parameters.values()]
    text = str(known.replace(parameters=bare, return_annotation=known.empty))
    return re.sub(r"<(?:[^<>]|<\w+>)*>", "...", text)


def _summary(package: Any) -> str:
    return (
        (package.__doc__ or "").strip().partition("\n\n")[0].replace("\n", " ").replace("``", "`")
    )


def _page(name: str) -> str:
    return name.removeprefix("sonde.")
