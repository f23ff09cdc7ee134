"""How sentences count."""


def plural(count: int, noun: str, many: str = "") -> str:
    """Return a count with its noun.

    Examples
    --------
    >>> plural(1, "row"), plural(1797, "row"), plural(2, "class", "classes")
    ('1 row', '1,797 rows', '2 classes')
    """
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"
