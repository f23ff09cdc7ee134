"""Encode images, texts or both by the processor of an image-text model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.hashing import bytes_key
from sonde.data.encoder import Collated, Encoder, Piece, Prepared, takes
from sonde.data.images import ImageEncoder, decode, picture_columns, stored, with_channels
from sonde.data.sources import Row
from sonde.data.text import Long

GRID = "image_grid_thw"
"""Argument with the frames, lines and columns of patches of each image, where sizes differ."""
COLOURS = 3


@final
@dataclass(frozen=True, eq=False)
class ImageTextEncoder(Encoder):
    """An image and a text per row, or one of them, encoded by the model's own processor.

    A model with two towers reads texts padded to their context, as it was trained; a language
    model that reads images gets each text through the chat template, the image before it.

    Parameters
    ----------
    processor : transformers processor
    image, text : str or None
        Columns.
    base : Path
        Where relative paths start.
    names : frozenset of str
        Parameters of the model's ``forward``.
    two_towers : bool
        Whether images and texts are read apart, each by a tower of its own.
    special, placeholders : frozenset of int
        Token ids that are no words, and among these the ids that stand for patches of images.
    max_length : int or None
        Most tokens of one text.
    long : {"chunk", "truncate", "error"}
        What happens to a longer text; a text beside an image is never cut into chunks.
    patch : (int, int) or None
        Height and width of a patch, if images are cut into a grid of equal size.
    dtype : torch.dtype or None
        Type of the model's weights, which pixel values are brought to.
    """

    processor: Any
    image: str | None
    text: str | None
    base: Path
    names: frozenset[str]
    two_towers: bool
    special: frozenset[int]
    placeholders: frozenset[int]
    max_length: int | None = None
    long: Long = "chunk"
    patch: tuple[int, int] | None = None
    dtype: torch.dtype | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    kind: str = "image_text"

    def key(self, row: Row) -> bytes:
        """Hash the image as stored and the text."""
        pixels = b"" if self.image is None else self._pictures.key(row)
        return bytes_key(pixels + self._text(row).encode("utf-8", "surrogatepass"))

    def size(self, row: Row) -> int:
        """Return the bytes of the image and of the text."""
        pixels = 0 if self.image is None else self._pictures.size(row)
        return pixels + len(self._text(row).encode("utf-8", "surrogatepass"))

    @property
    def _pictures(self) -> ImageEncoder:
        assert self.image is not None
        return ImageEncoder(self.processor, self.image, self.base, COLOURS, self.names)

    def pieces(self, rows: Sequence[Row]) -> list[list[Piece]]:
        """Return one example for each row, and the number of its text's tokens cut off."""
        if self.text is None or self.max_length is None or not self.two_towers:
            return super().pieces(rows)
        tokenizer = self.processor.tokenizer
        ids_of = tokenizer([self._text(row) for row in rows], verbose=False)["input_ids"]
        return [[Piece(truncated=self._cut(len(ids)))] for ids in ids_of]

    def _cut(self, length: int) -> int:
        """Return how many of ``length`` tokens are cut off; raise if cutting is not allowed."""
        beyond = 0 if self.max_length is None else max(0, length - self.max_length)
        if beyond and self.long != "truncate":
            raise InputError(
                f"the text has {length} tokens, the model reads at most {self.max_length}, and "
                "texts with images are not cut into chunks; pass long='truncate' (--long "
                "truncate)"
            )
        return beyond

    def prepare(self, rows: Sequence[Row], wanted: Sequence[tuple[int, int]]) -> list[Prepared]:
        """Return items unprocessed, with texts of similar length next to each other."""
        return [Prepared(rows[row], 1 + len(self._text(rows[row]))) for row, _ in wanted]

    def collate(self, items: Sequence[Prepared]) -> Collated:
        """Process images and texts; undecodable images are listed in ``bad``."""
        images, texts, bad = [], [], {}
        for i, item in enumerate(items):
            try:
                if self.image is not None:
                    picture = decode(stored(item.value, self.image, self.base))
                    images.append(with_channels(picture, COLOURS))
            except InputError as error:
                bad[i] = str(error)
            else:
                texts.append(self._text(item.value))
        if not texts:
            return Collated(bad=bad)
        processed = self.processed(images, texts)
        mask = processed.get("attention_mask")
        ids = processed.get("input_ids")
        kwargs = {name: x for name, x in processed.items() if takes(name, self.names)}
        return Collated(
            kwargs=kwargs,
            mask=None if mask is None else mask.bool(),
            special=_among(ids, self.special, mask),
            placeholder=_among(ids, self.placeholders, mask),
            grid=self._grid(processed),
            packed=_packed(processed, len(texts)),
            columns=picture_columns(images) if images else {},
            bad=bad,
        )

    def processed(self, images: Sequence[Any], texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the processor's output for a batch, padded on the right.

        Raises
        ------
        InputError
            If the processor fails.
        """
        given: dict[str, Any] = {"images": list(images)} if images else {}
        if self.two_towers and self.text is not None:
            cut = {"padding": "max_length", "max_length": self.max_length, "truncation": True}
            pad = cut if self.max_length is not None else {"padding": True}
            given |= {"text": list(texts), "padding_side": "right", **pad}
        elif not self.two_towers:
            prompts = [self.prompt(text) for text in texts]
            bos = self.processor.tokenizer.bos_token
            starts = bos is not None and all(p.startswith(bos) for p in prompts)
            given |= {"text": prompts, "padding_side": "right", "padding": True}
            given |= {"add_special_tokens": False} if starts else {}
        try:
            tensors = dict(self.processor(**given, return_tensors="pt"))
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"images and texts: {type(self.processor).__name__} fails ({reason})."
            ) from error
        length = tensors["input_ids"].shape[1] if "input_ids" in tensors else 0
        if not self.two_towers:
            self._cut(length)
        return {name: self._cast(x) for name, x in tensors.items()}

    def prompt(self, text: str) -> str:
        """Return a text with its image's placeholder, as a language model reads it."""
        token = self._image_token
        if token is not None and token in text:
            return text
        if self._has_template:
            content = [] if self.image is None else [{"type": "image"}]
            content += [] if self.text is None else [{"type": "text", "text": text}]
            turns = [{"role": "user", "content": content}]
            return self.processor.apply_chat_template(turns, tokenize=False)
        return text if self.image is None or token is None else f"{token}\n{text}"

    @property
    def _image_token(self) -> str | None:
        return getattr(self.processor, "image_token", None)

    @property
    def _has_template(self) -> bool:
        return getattr(self.processor, "chat_template", None) is not None

    def _cast(self, x: Tensor) -> Tensor:
        return x if self.dtype is None or not x.is_floating_point() else x.to(self.dtype)

    def _grid(self, made: Mapping[str, Tensor]) -> tuple[int, int] | None:
        pixels = made.get("pixel_values")
        if self.patch is None or pixels is None or pixels.ndim != 4:
            return None
        return pixels.shape[-2] // self.patch[0], pixels.shape[-1] // self.patch[1]

    def _text(self, row: Row) -> str:
        if self.text is None:
            return ""
        text = row.get(self.text)
        if not isinstance(text, str):
            raise InputError(f"expected a text in column {self.text!r}, got {type(text).__name__}")
        return text

    def identity(self) -> dict[str, Any]:
        """Return columns, truncation and processor as identity."""
        return {
            "kind": self.kind,
            "inputs": [self.image, self.text],
            "max_length": self.max_length,
            "long": self.long,
            **self.origin,
        }

    def notes(self) -> list[str]:
        """Return notes on the tower in use, or on the image's position in its text."""
        if self.two_towers:
            if self.image is not None and self.text is not None:
                return [
                    "Each item is an image with its own text. The model compares every image "
                    "with every text of a batch; these similarities depend on the batch, so "
                    "they are not used as logits of an item."
                ]
            read = "image" if self.text is None else "text"
            return [f"The data hold {read}s alone, so only the {read} encoder is read."]
        if self.image is None:
            return []
        if self._has_template:
            return [
                "Texts are formatted by the chat template of the processor, with the image first."
            ]
        return [f"There is no chat template: {self._image_token} is put before each text."]


def _among(
    ids: Int[Tensor, "_row _pos"] | None, wanted: frozenset[int], mask: Tensor | None
) -> Tensor | None:
    """Return a mask of the wanted real tokens, or None without wanted tokens or ids."""
    if ids is None or not wanted:
        return None
    is_wanted = torch.isin(ids, torch.tensor(sorted(wanted), dtype=ids.dtype))
    return is_wanted if mask is None else is_wanted & mask.bool()


def _packed(made: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    """Return the arguments that pack the patches of all images, with each image's patch count.

    There is one image for each example.
    """
    grid = made.get(GRID)
    if grid is None or len(grid) != n:
        return {}
    counts = grid.prod(1)
    return {
        name: counts
        for name, x in made.items()
        if x.is_floating_point() and len(x) == int(counts.sum()) and len(x) != n
    }
