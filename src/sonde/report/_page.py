"""The frame of every page: styles, script, content policy, links to sections, embedded JSON."""

import base64
import hashlib
import json
from importlib.resources import files
from string import Template
from typing import Any

from sonde.report._markup import Markup, el


def page(
    title: str,
    summary: str,
    body: Markup,
    carried: dict[str, Any],
    sections: dict[str, str],
    further: str = "",
) -> str:
    """Return a whole page with styles, script, a strict content policy and embedded JSON."""
    assets = files("sonde.report").joinpath("assets")
    style, script = (assets.joinpath(n).read_text("utf-8") for n in ("report.css", "report.js"))
    script += further
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return Template(assets.joinpath("page.html").read_text("utf-8")).substitute(
        policy=policy,
        title=el("title", title),
        description=el("meta", name="description", content=summary),
        style=style,
        script=script,
        side=contents("side", sections),
        body=body,
        json=_embedded(carried),
    )


def contents(kind: str, sections: dict[str, str]) -> Markup:
    """Return links to the sections: beside the page (``side``), or in a drawer above them."""
    links = [el("li", el("a", title, href=f"#{key}")) for key, title in sections.items()]
    if kind == "side":
        return el("nav", el("ol", *links), cls="side", aria_label="Sections")
    return el(
        "details",
        el("summary", "Sections"),
        el("nav", el("ol", *links), aria_label="Sections"),
        cls="toc",
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _embedded(report: dict[str, Any]) -> str:
    """Return JSON that cannot close its script element."""
    text = json.dumps(report, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
