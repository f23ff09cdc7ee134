"""The navigation beside a generated page: all pages of its folder, under their headings.

The theme's own navigation resolves the table of contents once for each page, which takes minutes
for hundreds of pages; these lists are made once for each folder.
"""

from functools import cache
from typing import Any

from sphinx.application import Sphinx
from tools.reference import PACKAGES

from sonde.findings.catalogue import rule_classes
from sonde.run.instruments.catalogue import methods
from sonde.run.instruments.families import FAMILIES

Group = tuple[str, list[tuple[str, str]]]


@cache
def groups(folder: str) -> list[Group]:
    """Return headings with the file names and titles below each."""
    found: dict[str, list[tuple[str, str]]] = {}
    if folder == "methods":
        order = {family: [] for family in FAMILIES}
        for method in methods().values():
            order.setdefault(method.family, []).append((method.word, method.word))
        found = order
    elif folder == "findings":
        for code, cls in rule_classes().items():
            found.setdefault(cls.theme, []).append((code.lower(), f"{code} {cls.title}"))
    elif folder == "reference":
        names = [(name.removeprefix("sonde."), name) for name in PACKAGES]
        found["packages"] = names
    return [(head, pages) for head, pages in found.items() if pages]


def add_groups(app: Sphinx, page: str, _: str, context: dict[str, Any], __: object) -> None:
    """Give the template of a generated page its list."""
    folder, _, name = page.rpartition("/")
    if folder in ("methods", "findings", "reference"):
        context["folder"], context["name"], context["groups"] = folder, name, groups(folder)
