"""Further tables of the report on a change."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EditTable:
    """A further table of a method's report, for instance the accuracy of probes at later sites.

    Parameters
    ----------
    title : str
        A sentence that says what the numbers are.
    columns : tuple of str
        Different names.
    rows : tuple of tuples
        Texts, numbers or None.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]

    def __post_init__(self) -> None:
        if len({*self.columns}) < len(self.columns):
            raise ValueError(f"EditTable: expected different columns, got {self.columns}.")
