"""Generate the pages of methods, findings, packages and papers from the code itself."""

import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from tools.gallery import gallery_page
from tools.reference import escaped, reference_index, reference_pages, sections, studied_by
from tools.rows import rows_of
from tools.see_also import see_also

import papers
from sonde.findings.catalogue import rule_classes
from sonde.run.instruments.catalogue import Method, methods
from sonde.run.instruments.families import FAMILIES
from sonde.run.instruments.listing import listed
from symptoms import symptoms_page
from tools import study_table

ROOT = Path(__file__).resolve().parent.parent


def make_pages(docs: Path) -> list[Path]:
    """Write all generated pages under ``docs``; return their paths."""
    told = bibliography(docs / "papers.bib")
    written = [
        *_write_all(docs / "methods", {m.word: method_page(m, told) for m in methods().values()}),
        *_write_all(docs / "findings", {c.lower(): finding_page(c) for c in rule_classes()}),
    ]
    index = "\n\n".join([methods_index(), "```{toctree}\n:hidden:\n:glob:\n\nmethods/*\n```"])
    written.append(_write(docs / "methods.md", index))
    index = "\n\n".join([findings_index(), "```{toctree}\n:hidden:\n:glob:\n\nfindings/*\n```"])
    written.append(_write(docs / "findings.md", index))
    written += _write_all(docs / "reference", reference_pages())
    index = "\n\n".join([reference_index(), "```{toctree}\n:hidden:\n:glob:\n\nreference/*\n```"])
    written.append(_write(docs / "reference.md", index))
    written.append(
        _write(docs / "papers.md", papers.papers_page(papers.bibliography(docs / "papers.bib")))
    )
    written.append(_write(docs / "studies_table.html", studies_table(docs / "studies.md")))
    written.append(_write(docs / "symptoms.md", symptoms_page()))
    written.append(_write(docs / "gallery.md", gallery_page()))
    return [*written, *copy_notebooks(docs / "tutorials")]


def studies_table(page: Path) -> str:
    """Return the table of studies, whose names link to the notes of a page."""
    families: dict[str, set[str]] = {}
    systems: dict[str, list[str]] = {}
    for row in rows_of():
        rooms = {code.partition(".")[0] for code in row.code if not code.startswith("recipes.")}
        for word in row.study:
            families.setdefault(word, set()).update(rooms)
            systems.setdefault(word, []).append(row.system)
    noted = re.findall(r"^- `([\w-]+)`", page.read_text("utf-8"), re.MULTILINE)
    rooms = {word: sorted(names) for word, names in families.items()}
    return study_table.page(study_table.read(page.with_suffix(".tsv")), rooms, systems, noted)


def copy_notebooks(folder: Path) -> list[Path]:
    """Copy the notebooks that are no page of their own, where Sphinx finds them."""
    folder.mkdir(exist_ok=True)
    found = sorted((ROOT / "examples").glob("*.ipynb"))
    kept = {
        p.name: text
        for p in found
        if "sonde" not in json.loads(text := p.read_text("utf-8"))["metadata"]
    }
    for old in folder.glob("*.ipynb"):
        if old.name not in kept:
            old.unlink()
    return [_write(folder / name, text) for name, text in kept.items()]


def _write_all(folder: Path, pages: dict[str, str]) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.md"):
        if old.stem not in pages:
            old.unlink()
    for name, text in pages.items():
        yield _write(folder / f"{name}.md", text)


def _write(path: Path, text: str) -> Path:
    content = text.rstrip() + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        path.write_text(content, encoding="utf-8")
    return path


def method_page(method: Method, papers: dict[str, str]) -> str:
    """Return the page of one method, from its docstring and class variables."""
    doc = inspect.cleandoc(method.cls.__doc__ or "")
    summary, _, rest = doc.partition("\n")
    parameters = ", ".join(f"{f.name}={f.default!r}" for f in fields(method.cls))  # type: ignore[arg-type]
    lines = [
        f"# `{method.word}`",
        summary.strip(),
        f"```python\nfrom sonde.{method.family} import {method.cls.__name__}\n\n"
        f"{method.cls.__name__}({parameters})\n```",
        f"Family `{method.family}`; reads {_span(method)}.",
        *sections(rest.strip()),
        *studied_by(f"{method.family}.{method.cls.__name__}"),
    ]
    lines += see_also(method)
    if method.cls.paper:
        lines.append("## Paper\n\n" + papers.get(method.cls.paper, f"`{method.cls.paper}`"))
    return "\n\n".join(line for line in lines if line)


def _span(method: Method) -> str:
    words = {"one": "one site", "pair": "a pair of sites", "all": "all sites at once"}
    reads = ", ".join(type(r.statistic).__name__ for r in method.cls().all_reads().values())
    return f"{words[method.cls.span]}: {reads}"


def methods_index() -> str:
    """Return the catalogue as a page."""
    lines = ["# Methods", "What `sonde methods` prints, family by family."]
    for family in FAMILIES:
        lines.append(f"## {family}")
        lines.append("| method | what it answers |\n|---|---|")
        rows = [
            f"| [`{m.word}`](methods/{m.word}.md) | {m.summary} |"
            for m in methods().values()
            if m.family == family
        ]
        lines[-1] += "\n" + "\n".join(rows)
    for family in FAMILIES:
        called = [m for m in listed() if m.family == family and not m.is_fitted]
        if not called:
            continue
        lines.append(f"## {family}, in Python")
        lines.append("| name | kind | what it does |\n|---|---|---|")
        lines[-1] += "\n" + "\n".join(
            f"| `sonde.{family}.{m.name}` | {m.kind} | {m.summary} |" for m in called
        )
    return "\n\n".join(lines)


def finding_page(code: str) -> str:
    """Return the page of one code, from its class."""
    cls = rule_classes()[code]
    limits = "\n".join(f"| `{k}` | {v:g} |" for k, v in cls().thresholds().items())
    parts = [
        f"# {code}: {cls.title}",
        f"**Why it matters.** {escaped(cls.why)}",
        f"**How it is computed.** {escaped(cls.how)}",
        f"**Fix.** {escaped(cls.fix)}",
        f"| threshold | default |\n|---|---|\n{limits}" if limits else "",
        f"**False positives.** {escaped(cls.false_positives)}" if cls.false_positives else "",
        f"**Planted in tests.** {escaped(cls.plant)}" if cls.plant else "",
        f"**Healthy twin.** {escaped(cls.twin)}" if cls.twin else "",
        f"Move a threshold with `--set {code}.name=value`; silence it with `--ignore {code}`.",
    ]
    return "\n\n".join(p for p in parts if p)


def findings_index() -> str:
    """Return the list of codes as a page."""
    rows = "\n".join(
        f"| [{code}](findings/{code.lower()}.md) | {cls.title} | {cls.theme} |"
        for code, cls in rule_classes().items()
    )
    return (
        "# Findings\n\nEvery code that `sonde scan` can raise. `sonde scan --explain CODE` prints "
        "the same in a terminal.\n\n"
        f"| code | title | theme |\n|---|---|---|\n{rows}"
    )


def bibliography(path: Path) -> dict[str, str]:
    """Return each entry of the bibliography as one line of Markdown."""
    return {
        key: f"{papers.cited(fields)}{' *Unverified.*' * ('note' in fields)}"
        for key, fields in papers.bibliography(path).items()
    }


def main() -> int:
    """Write every page."""
    print(f"{len(make_pages(ROOT / 'docs'))} pages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
