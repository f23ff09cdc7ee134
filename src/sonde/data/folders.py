"""A folder of images or recordings, with the first subfolder as class."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

from sonde.core.errors import InputError
from sonde.core.wording import plural
from sonde.data.sources import Row, Source

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".opus"})
_KINDS = {"image": IMAGE_SUFFIXES, "audio": AUDIO_SUFFIXES}


@final
class MediaFolder(Source):
    """Every image, or every recording, under a folder, sorted by its relative path."""

    by_name = True

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
        files_of = {
            kind: [p.relative_to(path) for p in files if p.suffix.lower() in suffixes]
            for kind, suffixes in _KINDS.items()
        }
        self._kind = "audio" if files_of["audio"] else "image"
        self._files = files_of[self._kind]
        if not self._files:
            raise InputError(
                f"{path} contains neither images ({', '.join(sorted(IMAGE_SUFFIXES))}) nor "
                f"recordings ({', '.join(sorted(AUDIO_SUFFIXES))}). Pass a folder of images or "
                "recordings, a table, or a data set saved with save_to_disk."
            )
        if files_of["image"] and files_of["audio"]:
            raise InputError(
                f"{path} holds {plural(len(files_of['image']), 'image')} and "
                f"{plural(len(files_of['audio']), 'recording')}. Pass a folder with only one of "
                "these kinds."
            )

    def where(self, index: int) -> str:
        """Return the file name for messages."""
        return str(self.path / self._files[index])

    def place(self, index: int) -> str:
        """Return the file's path in the folder."""
        return self._files[index].as_posix()

    def rows(self) -> Iterator[Row]:
        """Yield the path of each file, and its class if it lies in a subfolder."""
        yield from self.take(0, len(self._files))

    def labels(self, column: str) -> Iterator[Any]:
        """Yield the class of each file."""
        return (row[column] for row in self.rows())

    def take(self, start: int, stop: int) -> list[Row]:
        """Return the paths of some files."""
        files = self._files[start:stop]
        return [
            {self._kind: self.path / f, "label": f.parts[0] if len(f.parts) > 1 else None}
            for f in files
        ]


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.relative_to(root).parts)
