"""One kind of rows of a stream: a site, and how it is reduced."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from sonde.core.batch import SiteSchema
from sonde.core.errors import SondeError
from sonde.core.site import Site
from sonde.tap.rows.reduce import Reduction


@dataclass(frozen=True)
class Kind:
    """One kind of rows: its site, reduction and schema."""

    key: str
    site: Site
    reduction: Reduction
    schema: SiteSchema


@contextlib.contextmanager
def at_site(key: str) -> Iterator[None]:
    """Add the site's name to an error raised inside."""
    try:
        yield
    except SondeError as error:
        error.add_note(f"at {key}")
        raise
