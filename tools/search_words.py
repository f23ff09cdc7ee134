"""What the search of the site knows beside the text: synonyms, both spellings, pages left out."""

import re
import tomllib
from functools import cache
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.search.en import SearchEnglish

WORDS = Path(__file__).resolve().parent.parent / "docs" / "search_words.toml"
CONTRIBUTORS = ("contributing", "decisions", "measurements", "overview", "glossary")
"""Pages about how sonde is built; readers who search for a method do not find them."""
PAIRS = (
    (r"(?<=[a-z]{3}i)s(?=(?:e[drs]?|ers|ing|ations?|able)\b)", "z"),
    (r"(?<=[a-z]{3}i)z(?=(?:e[drs]?|ers|ing|ations?|able)\b)", "s"),
    (r"(?<=analy)s(?=e|ing)", "z"),
    (r"(?<=analy)z(?=e|ing)", "s"),
    (r"\b(behavi|col|neighb|fav|lab|hon)our", r"\1or"),
    (r"\b(behavi|col|neighb|fav|lab|hon)or", r"\1our"),
    (r"(?<=label)l(?=ed|ing)|(?<=model)l(?=ed|ing|er)|(?<=signal)l(?=ed|ing)", ""),
    (r"(?<=label)(?=ed|ing)|(?<=model)(?=ed|ing|er)|(?<=signal)(?=ed|ing)", "l"),
    (r"\bcentre(?=s?\b)", "center"),
    (r"\bcenter(?=s?\b)", "centre"),
)
"""British and American endings, each with the other."""


def spellings(text: str) -> set[str]:
    """Return a text in lower case, with its other spelling if it has one."""
    text = text.lower()
    return {text} | {re.sub(pattern, other, text) for pattern, other in PAIRS}


class BothSpellings(SearchEnglish):
    """English, in which a word is found by its British and its American spelling."""

    def split(self, input: str) -> list[str]:
        """Return the words of a sentence, each in both spellings."""
        return [form for word in super().split(input) for form in sorted(spellings(word))]


class SiteBuilder(StandaloneHTMLBuilder):
    """Builder of the site, whose search knows synonyms and leaves out pages for contributors."""

    name = "html"

    def index_page(self, pagename: str, doctree: nodes.document, title: str) -> None:
        """Enter a page into the search, with the words that lead to it."""
        if pagename.partition("/")[0] in CONTRIBUTORS:
            return
        words = sorted({form for word in _words().get(pagename, ()) for form in spellings(word)})
        if words:
            doctree = doctree.deepcopy()
            doctree += addnodes.index(entries=[("single", w, "", "main", None) for w in words])
        super().index_page(pagename, doctree, title)


@cache
def _words() -> dict[str, list[str]]:
    return tomllib.loads(WORDS.read_text("utf-8"))
