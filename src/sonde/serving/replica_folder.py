"""The folder of one replica, below the folder that all replicas of a server share."""

from contextlib import ExitStack
from pathlib import Path
from typing import final

from sonde.core.errors import StoreError
from sonde.files.lock import RunLock

MOST_REPLICAS = 1000


@final
class ReplicaFolder:
    """The first folder ``0``, ``1``, ... that no other live process holds.

    Parameters
    ----------
    shared : path
        The folder of all replicas; made if it is not there.

    Attributes
    ----------
    shared, path : Path
        The folder of all replicas, and that of this replica.

    Raises
    ------
    StoreError
        If the folder cannot be written, or has a thousand replicas.
    """

    def __init__(self, shared: str | Path) -> None:
        self.shared, self._held = Path(shared), ExitStack()
        self.path = self._own()

    def _own(self) -> Path:
        for number in range(MOST_REPLICAS):
            if take_lock(self._held, self.shared / f"{number}"):
                return self.shared / f"{number}"
        raise StoreError(
            f"serve: {self.shared} has {MOST_REPLICAS} replicas already. Name another folder."
        )

    def close(self) -> None:
        """Release the folder for another process."""
        self._held.close()


def take_lock(held: ExitStack, folder: Path, steal: bool = False) -> bool:
    """Lock a folder until ``held`` is closed; return False if another live process holds it."""
    try:
        held.enter_context(RunLock(folder, steal))
    except StoreError as error:
        if "is in use" not in str(error):
            raise
        return False
    return True
