"""The systems of ``tools/rows.toml`` with their papers: a page of the site, an index for the CLI.

python -m tools.papers    writes src/sonde/cli/papers.json, which ``sonde methods --paper`` reads
"""

import importlib
import json
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tools.rows import Row, claims_of, main_verdict, rows_of, status, verdicts

from sonde.run.instruments.catalogue import methods
from sonde_studies import study_of
from sonde_studies.places import PLACES

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "src" / "sonde" / "cli" / "papers.json"
UNKNOWN = "authors not known to us"
MOST_NAMED = 3


def bibliography(path: Path = ROOT / "docs" / "papers.bib") -> dict[str, dict[str, str]]:
    """Return the fields of each entry of the bibliography, without TeX."""
    found: dict[str, dict[str, str]] = {}
    for entry in re.split(r"^@\w+\{", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        key, _, rest = entry.partition(",")
        fields = re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\}", rest, re.MULTILINE)
        found[key.strip()] = {name: plain(value) for name, value in fields}
    return found


def plain(text: str) -> str:
    """Return a text of the bibliography without accents of TeX and without braces."""
    text = re.sub(r"\{?\\['`\"^~cv]\{?\\?(\w)\}?\}?", r"\1", text)
    return text.replace("{", "").replace("}", "").replace("\\&", "&").replace("$^2$", "2")


def authors_of(fields: Mapping[str, str], most: int = 3) -> str:
    """Return authors as ``Ye, Zhang, Liu et al.``; what is not known says so."""
    names = [n for n in fields.get("author", "").split(" and ") if n and n != "others"]
    if not names:
        return UNKNOWN
    short = [name.partition(",")[0] for name in names]
    more = len(short) > most or "others" in fields["author"]
    return ", ".join(short[:most]) + " et al." * more


def cited(fields: Mapping[str, str]) -> str:
    """Return title, authors, venue and year of an entry as Markdown, with its DOI as a link."""
    where = ", ".join(fields[k] for k in ("howpublished", "booktitle", "year") if k in fields)
    doi = fields.get("doi")
    link = f" [doi:{doi}](https://doi.org/{doi})" if doi else ""
    who = authors_of(fields).rstrip(".")
    return f"*{fields.get('title', '')}*. {who}. {where or 'Year not known'}.{link}"


def index() -> list[dict[str, Any]]:
    """Return name, title, authors, year, code and studies of each system.

    Papers that methods cite, and that are no system's, follow under their first method's name.
    """
    papers = bibliography()
    once = {(row.system, row.paper): row for row in reversed(rows_of())}  # two numbers, one system
    systems = [
        {
            "name": row.system,
            "key": row.paper,
            **described(papers[row.paper]),
            "code": [code for code in row.code if not code.startswith("recipes.")],
            "recipes": recipes_of(row),
            "studies": [*row.study],
            "missing": row.missing,
        }
        for row in reversed(once.values())
    ]
    own = {row.paper for row in once.values()}
    codes = {key: [use.strip("`").removeprefix("sonde.") for use in uses if "." in use]
             for key, uses in cited_by().items() if key in papers and key not in own}  # fmt: skip
    return systems + [
        {
            "name": ", ".join(one.partition(".")[2] for one in code[:MOST_NAMED]),
            "key": key,
            **described(papers[key]),
            "code": code,
            "recipes": [],
            "studies": [],
            "missing": "",
        }
        for key, code in sorted(codes.items())
        if code
    ]


def described(fields: Mapping[str, str]) -> dict[str, str]:
    """Return title, authors and year of an entry; empty where they are not known."""
    authors = fields.get("author", "").removesuffix("others").removesuffix(" and ")
    return {"title": fields.get("title", ""), "authors": authors, "year": fields.get("year", "")}


def recipes_of(row: Row) -> list[str]:
    """Return the words of the recipes of a system: named ones, and those of its studies."""
    named = [code.partition("(")[0] for code in row.code if code.startswith("recipes.")]
    words = [code.removeprefix("recipes.").replace("_", "-") for code in named]
    from sonde_studies import recipes

    return [*dict.fromkeys([*words, *(word for word in row.study if word in recipes.RECIPES)])]


def papers_page(papers: dict[str, dict[str, str]]) -> str:
    """Return the page of systems, and the bibliography."""
    known = verdicts()
    parts = [
        "# Papers",
        "The systems whose mechanisms sonde offers: the paper, the code, the study that tests its "
        "claims at a size for one core, and what is not there. `sonde methods --paper ip-adapter` "
        "finds an entry by name, word of the title or author. Titles, authors and years of "
        "entries in the bibliography below that are marked *unverified* were written down without "
        "the paper at hand; check them before you cite them.",
        "A system is *whole* if the paper's own mechanism is here, every claim has a verdict "
        "([how to read them](studies.md)) and what was left out has a reason; *whole, place too "
        "small* if its claim waits for larger models or other data; *whole, fair place not run* if "
        "it waits for a model that `make places` or `make field` fetches; *part* if something of "
        "the mechanism is missing; *closed* if the paper has no mechanism. None of these words "
        "says that a claim was reproduced: the verdict on the main claim does.",
        places(),
        "## Systems",
    ]
    once = {(row.system, row.paper): row for row in reversed(rows_of())}
    for row in sorted(once.values(), key=lambda row: row.system.casefold()):
        parts += [f"### {row.system}", "\n".join(lines_of(row, papers[row.paper], known))]
    users = cited_by()
    lines = [
        f"- `{key}`: {cited(fields)}{' *Unverified.*' * ('note' in fields)}{_uses(users, key)}"
        for key, fields in sorted(papers.items())
    ]
    return "\n\n".join([*parts, "## Bibliography", "\n".join(lines)])


def places() -> str:
    """Return the table of places."""
    rows = "\n".join(
        f"| {name} | {place.what} | {place.cost} | {place.source or 'not offered'} |"
        for name, place in PLACES.items()
    )
    return f"| place | models and data | cost of a seed | source |\n|---|---|---|---|\n{rows}"


def lines_of(row: Row, paper: Mapping[str, str], known: dict[tuple[str, str], str]) -> list[str]:
    """Return the entry of one system."""
    lines = [f"- Paper: {cited(paper)}{' *Unverified.*' * ('note' in paper)} `{row.paper}`"]
    lines += [f"- Code: {code_line(code)}" for code in row.code if not code.startswith("recipes.")]
    lines += [f"- Command: `sonde recipe {word}`" for word in recipes_of(row)]
    lines += [f"- How-to: {page}" for page in howtos_of(row)[:1]]
    if row.study:
        lines.append("- Study: " + ", ".join(f"`sonde study {word}`" for word in row.study))
    if row.main:
        word, _, key = row.main.partition(": ")
        text = next(claim.text for claim in study_of(word).claims if claim.key == key)
        n = len(claims_of(row, known))
        lines.append(f"- Main claim of {n}: {text} **{main_verdict(row, known).capitalize()}.**")
    lines += [f"- Left out: {part}" for part in row.left_out]
    if row.place:
        place, _, what = row.place.partition(": ")
        lines.append(f"- Place that it waits for: {place} ({what})")
    state = status(row, known)
    missing = f": {row.missing.removeprefix('closed: ')}" if row.missing else ""
    lines.append(f"- State: {state}{missing}")
    return lines


def code_line(code: str) -> str:
    """Return a name, and a line of code that imports it or a command that fits it."""
    place, _, named = code.rstrip(")").partition("(")
    room, _, name = place.rpartition(".")
    given = f", by {', '.join(f'`{p}=`' for p in named.split(','))}" if named else ""
    word = {f"{m.family}.{m.cls.__name__}": m.word for m in methods().values()}.get(place)
    command = f"; `sonde fit {word} MODEL DATA`" if word else ""
    return f"`sonde.{place}`{given}: `from sonde.{room} import {name}`{command}"


def howtos_of(row: Row) -> list[str]:
    """Return links to the how-to pages that name the system's code, most often first."""
    names = [code.partition("(")[0].rpartition(".")[2] for code in row.code]
    told = {
        page: sum(len(re.findall(rf"\b{n}\b", text)) for n in names) for page, text in _howtos()
    }
    best = sorted((p for p, n in told.items() if n), key=lambda p: (-told[p], p))
    return [f"[{page.replace('_', ' ')}](howto/{page}.md)" for page in best]


@cache
def _howtos() -> tuple[tuple[str, str], ...]:
    pages = sorted((ROOT / "docs" / "howto").glob("*.md"))
    return tuple((page.stem, page.read_text("utf-8")) for page in pages)


def cited_by() -> dict[str, list[str]]:
    """Return the exports and studies that cite each key."""
    found: dict[str, list[str]] = {}
    from sonde.run.instruments.listing import listed
    from sonde_studies import STUDIES

    for entry in listed():
        module = importlib.import_module(f"sonde.{entry.family}")
        doc = getattr(module, entry.export).__doc__ or ""
        _, _, references = doc.partition("References\n")
        keys = {entry.paper, *entry.variants.values(), *re.findall(r"\w+\d{4}\w*", references)}
        for key in sorted(keys - {""}):
            found.setdefault(key, []).append(f"`sonde.{entry.family}.{entry.export}`")
    for word in STUDIES:
        if key := study_of(word).paper:
            found.setdefault(key, []).append(f"`sonde study {word}`")
    return found


def _uses(users: dict[str, list[str]], key: str) -> str:
    uses = users.get(key, [])
    return f" Used by {', '.join(uses)}." if uses else ""


def main() -> int:
    """Write the index of ``sonde methods --paper``."""
    INDEX.write_text(as_json(), encoding="utf-8")
    return 0


def as_json() -> str:
    """Return the index as JSON, a line for each system."""
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in index())
    return f"[\n{lines}\n]\n"


if __name__ == "__main__":
    sys.exit(main())
