"""How sentences count."""


def plural(count: int, noun: str, many: str = "") -> str:
    """Return a count with its noun.

    Examples
    --------
    >>> plural(1, "row"), plural(1797, "row"), plural(2, "class", "classes")
    ('1 row', '1,797 rows', '2 classes')
    """
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def gib(n_bytes: int) -> str:
    """Return a size for people.

    Examples
    --------
    >>> gib(3 * 2**29), gib(3 * 2**12)
    ('1.5 GiB', '12 KiB')
    """
    if n_bytes < 2**20:
        return f"{n_bytes / 2**10:.0f} KiB"
    return f"{n_bytes / 2**20:.0f} MiB" if n_bytes < 2**30 else f"{n_bytes / 2**30:.1f} GiB"
