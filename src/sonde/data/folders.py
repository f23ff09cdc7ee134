"""A folder of images; the first subfolder is the class."""

from collections.abc import Iterator
from pathlib import Path
from typing import final

from sonde.core.errors import InputError
from sonde.data.sources import Row, Source

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)


@final
class ImageFolder(Source):
    """Every image under a folder, sorted by its relative path."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self._files = sorted(
            p.relative_to(path)
            for p in path.rglob("*")
            if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file() and not _hidden(p, path)
        )
        if not self._files:
            raise InputError(
                f"{path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}). "
                "Pass a folder of images, a table, or a data set saved with save_to_disk."
            )

    def where(self, index: int) -> str:
        """Name the file."""
        return str(self.path / self._files[index])

    def place(self, index: int) -> str:
        """Name the file by its path in the folder."""
        return self._files[index].as_posix()

    def rows(self) -> Iterator[Row]:
        """Yield the path of each file, and its class if it lies in a subfolder."""
        yield from self.take(0, len(self._files))

    def take(self, start: int, stop: int) -> list[Row]:
        """Return the paths of some files."""
        files = self._files[start:stop]
        return [
            {"image": self.path / f, "label": f.parts[0] if len(f.parts) > 1 else None}
            for f in files
        ]


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.relative_to(root).parts)
