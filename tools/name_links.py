"""Link names in the text of the site: ``GPTQ`` and ``SND034`` to their pages, studies to rows."""

import importlib
import re
from collections import Counter

from docutils import nodes
from sphinx.application import Sphinx
from tools.reference import PACKAGES

from sonde.findings.catalogue import rule_classes
from sonde.run.instruments.catalogue import methods
from sonde_studies import STUDIES

COMMAND = "sonde study "
CALLED = re.compile(r"\([^()]*\)$")


def addresses() -> dict[str, tuple[str, str]]:
    """Return the page and the heading of each name, as ``GPTQ`` and as ``compress.GPTQ``.

    A name without its package is left out if two packages export it, or if it is a lower-case word,
    which prose may mean otherwise. A method and the code of a finding have a page of their own.
    """
    found: dict[str, tuple[str, str]] = {}
    owners: dict[str, set[str]] = {}
    for package in PACKAGES:
        short = package.removeprefix("sonde.")
        headings = Counter[str]()
        for name in importlib.import_module(package).__all__:
            heading = name.lower()
            again = f"-{headings[heading]}" if heading in headings else ""
            headings[heading] += 1
            owners.setdefault(name, set()).add(short)
            place = f"reference/{short}", heading + again
            found |= dict.fromkeys((name, f"{short}.{name}", f"sonde.{short}.{name}"), place)
    for method in methods().values():
        name, place = method.cls.__name__, (f"methods/{method.word}", "")
        owners.setdefault(name, set()).add(method.family)
        long = f"{method.family}.{name}"
        found |= dict.fromkeys((name, long, f"sonde.{long}"), place)
    codes = {code: (f"findings/{code.lower()}", "") for code in rule_classes()}
    return codes | {
        name: place
        for name, place in found.items()
        if "." in name or (len(owners[name]) == 1 and not name.islower())
    }


def link_names(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Turn each known name of a page into a link, but where the page is about that name.

    Pages for those who come from other libraries are left out: their names may be the same.
    """
    if page.startswith("coming_from/"):
        return
    if page == "studies":
        _link_notes(doctree)
    for word in list(doctree.findall(nodes.literal)):
        target, heading = _target(word.astext())
        around = [word.parent]
        while around[-1].parent:
            around.append(around[-1].parent)
        is_marked = any(isinstance(node, nodes.reference | nodes.title) for node in around)
        is_here = target == page and any(
            heading in (*node["ids"], "") or isinstance(node, nodes.row) for node in around
        )
        if target and not is_marked and not is_here:
            place = heading and f"#{heading}"
            _link(word, app.builder.get_relative_uri(page, target) + place)


def _link(word: nodes.Element, address: str) -> None:
    word.replace_self(nodes.reference("", "", word.deepcopy(), internal=True, refuri=address))


def _target(text: str) -> tuple[str, str]:
    """Return the page and the heading of a name; of a study, its first row of the table."""
    name = text.removeprefix(COMMAND).partition(" ")[0]
    if name in STUDIES and (text.startswith(COMMAND) or "-" in text):
        return "studies", f"study-{name}"
    return ADDRESSES.get(CALLED.sub("", text), ("", ""))


def _link_notes(doctree: nodes.document) -> None:
    """Give the note on each study an id, and link its name to the first row of the study."""
    for item in doctree.findall(nodes.list_item):
        name = next(iter(item.findall(nodes.Text))).parent
        if isinstance(name, nodes.literal) and name.astext() in STUDIES:
            name.parent["ids"].append(f"note-{name.astext()}")
            _link(name, f"#study-{name.astext()}")


ADDRESSES = addresses()
