"""Axes of outputs named by a user, if equal sizes make them ambiguous."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sonde.core.errors import InputError, SiteError, near
from sonde.core.site import Site
from sonde.tap.model.axes import Axes

WORDS = ("row", "pos", "pos2", "patch", "t", "h", "w", "dim")


@dataclass(frozen=True)
class NamedAxes:
    """A name for each axis, for outputs with as many axes as names.

    Parameters
    ----------
    words : tuple of str
        ``row`` once, ``dim`` once, and what lies between: ``pos`` (tokens), ``patch`` (one axis of
        space), ``h w``, ``t h w``.
    pattern : str, default="*"
        Paths of modules whose outputs are meant.
    """

    words: tuple[str, ...]
    pattern: str = "*"

    def __post_init__(self) -> None:
        for word in self.words:
            if word not in WORDS:
                raise InputError(
                    f"axes: expected words among {', '.join(WORDS)}, got {word!r}."
                    + near(word, WORDS)
                )
        if self.words.count("row") != 1 or self.words.count("dim") != 1:
            raise InputError(
                f"axes: expected row and dim once each, got {str(self)!r}. Example: row patch dim"
            )

    @classmethod
    def parse(cls, text: str) -> "NamedAxes":
        """Return the axes of ``words``, or of ``pattern=words``.

        Examples
        --------
        >>> NamedAxes.parse("blocks.*=row patch dim").words
        ('row', 'patch', 'dim')
        """
        pattern, has_pattern, words = text.rpartition("=")
        return cls(tuple(words.replace(",", " ").split()), pattern if has_pattern else "*")

    def __str__(self) -> str:
        return " ".join(self.words)

    @property
    def dim(self) -> int:
        """Index of the feature axis."""
        return self.words.index("dim")

    def fits(self, site: Site, n_axes: int) -> bool:
        """Return whether the names apply to the output at a site."""
        return len(self.words) == n_axes and fnmatchcase(site.path, self.pattern)

    def check(self, site: Site, found: Axes) -> None:
        """Raise if the named axes contradict how outputs vary with the inputs.

        Raises
        ------
        SiteError
            With what was found.
        """
        if found.words != self.words:
            raise SiteError(
                f"axes: expected {str(found)!r} at {site}, because of how the axes change "
                f"with the inputs, got {str(self)!r}. Write {str(found)!r}, or move dim."
            )


def parse_axes(named: str | Sequence[str]) -> tuple[NamedAxes, ...]:
    """Return the axes that a user names, as one text or several."""
    return tuple(NamedAxes.parse(text) for text in ([named] if isinstance(named, str) else named))
