"""Measures of texts: length, capitals, script, HTML, broken characters, language."""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final

LETTERS: Final = 40
"""Letters that a text needs for its language to be identified."""
SURE: Final = 0.9
SIGNS: Final = 2_000
"""Characters of a text that are examined."""
_TAGS: Final = (
    "a abbr article aside b blockquote body br button center code div em font footer form h1 h2 h3 "
    "h4 h5 h6 head header hr html i iframe img input label li link main meta nav ol option p pre "
    "script section select small span strong style sub sup table tbody td tfoot th thead title tr "
    "u ul video"
)
_TAG: Final = re.compile(rf"</?(?:{'|'.join(_TAGS.split())})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_ENTITY: Final = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_NEXT: Final = "[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
BYTES: Final = re.compile(f"[\xc2-\xdf]{_NEXT}|[\xe0-\xef]{_NEXT}{{2}}|[\xf0-\xf4]{_NEXT}{{3}}")
"""The bytes of one sign in UTF-8, as letters of Latin-1 or of Windows' code page."""
_MISREAD: Final = re.compile(f"[\xc2\xc3]{_NEXT}|\xe2\u20ac{_NEXT}")
_LANGUAGES: Final = (
    "arabic bengali bulgarian catalan chinese croatian czech danish dutch english estonian "
    "finnish french german greek hebrew hindi hungarian icelandic indonesian irish italian "
    "japanese korean latin latvian lithuanian norwegian persian polish portuguese romanian "
    "russian serbian slovak slovenian spanish swahili swedish tamil thai turkish ukrainian "
    "urdu vietnamese welsh"
)
_WEB: Final = re.compile(r"https?://\S+|\S+@\S+")


def n_marks(text: str) -> int:
    """Return the number of HTML tags and entities in a text.

    Examples
    --------
    >>> n_marks("<p>Fish &amp; chips</p>"), n_marks("a < b & c > d;")
    (3, 0)
    """
    entities = (match[0] for match in _ENTITY.finditer(text))
    return len(_TAG.findall(text)) + sum(html.unescape(entity) != entity for entity in entities)


def n_broken(text: str) -> int:
    r"""Return the number of lost or wrongly decoded characters in a text.

    Examples
    --------
    >>> n_broken("\ufffd \u00c3\u00a9t\u00c3\u00a9"), n_broken("naïve été")
    (3, 0)
    """
    return text.count("\ufffd") + len(_MISREAD.findall(text))


@cache
def script_of_sign(sign: str) -> str:
    """Return the script of a letter, in lower case.

    Examples
    --------
    >>> script_of_sign("é"), script_of_sign("Ж"), script_of_sign("語")
    ('latin', 'cyrillic', 'cjk')
    """
    return unicodedata.name(sign, "unknown").split()[0].lower()


def script_of(text: str) -> str | None:
    """Return the script of most letters of a text, or None if it has no letters."""
    counts = Counter(script_of_sign(c) for c in text[:SIGNS] if c.isalpha())
    return counts.most_common(1)[0][0] if counts else None


def can_tell_languages() -> bool:
    """Return whether the package for language identification is installed."""
    return _identifier() is not None


def are_languages(names: Sequence[str]) -> bool:
    """Return whether most names are languages or language codes.

    Examples
    --------
    >>> are_languages(["German", "french"]), are_languages(["pos", "neg"])
    (True, False)
    """
    codes = {str(code) for code in getattr(_identifier(), "labels", ())}
    every = codes | {*_LANGUAGES.split()}
    is_language = [name.casefold() in every for name in names]
    return sum(is_language) > len(is_language) / 2


def language_of(text: str) -> str | None:
    """Return the code of a text's language; None if it cannot be identified."""
    identifier, plain = _identifier(), _WEB.sub(" ", _TAG.sub(" ", text[:SIGNS]))
    if identifier is None or sum(map(str.isalpha, plain)) < LETTERS:
        return None
    code, share = identifier.classify(plain)
    return str(code) if share >= SURE else None


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _share_of(test: Callable[[str], bool]) -> Callable[[str], float]:
    def of(text: str) -> float:
        return sum(map(test, text)) / max(len(text), 1)

    return of


def capitals(text: str) -> float:
    """Return the fraction of capital letters in a text."""
    letters = [sign for sign in text if sign.isalpha()]
    return sum(map(str.isupper, letters)) / max(len(letters), 1)


FORMS: Final[Mapping[str, Callable[[str], float]]] = {
    "the length of {}": len,
    "the fraction of capital letters in {}": capitals,
    "the fraction of non-ASCII characters in {}": _share_of(lambda sign: not sign.isascii()),
    "the fraction of digits in {}": _share_of(str.isdigit),
    "the fraction of punctuation in {}": _share_of(
        lambda sign: not sign.isalnum() and not sign.isspace()
    ),
    "the number of line breaks in {}": lambda text: text.count("\n"),
    "the number of U+FFFD characters in {}": lambda text: text.count("\ufffd"),
    "the number of HTML tags and entities in {}": n_marks,
}
"""Numbers that are measured of a text."""
KINDS: Final[Mapping[str, Callable[[str], str | None]]] = {
    "the language of {}": language_of,
    "the script of {}": script_of,
}
"""Words that are measured of a text."""
