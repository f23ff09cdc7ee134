"""Find where the tokens of several crops lie in the image that the crops were cut from."""

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError


def crop_places(
    boxes: Float[Tensor, "view image 4"], grid: tuple[int, int], prefix: int = 0
) -> Float[Tensor, "view image token 2"]:
    """Return the line and the column of the centre of each token of each crop.

    The unit is the diagonal of a token, measured in the image: that of the view in which tokens are
    largest. Pass the result to ``Contrast`` as ``place``, flattened to rows; two tokens of an image
    are then positives if their distance is less than ``radius`` of such diagonals. With the number
    of the view as ``group`` they are so only if they are of different crops: tokens of a small crop
    lie near each other.

    Assumes      crops that were resized as a whole, with tokens in lines from the top left.

    Parameters
    ----------
    boxes : Float[Tensor, "view image 4"]
        Top, left, bottom and right edge of each crop, in pixels of the image or in any other unit.
        A mirrored crop has its left and right edge exchanged.
    grid : pair of int
        Height and width of a crop in tokens.
    prefix : int, default=0
        Tokens in front of those of the grid, such as a class token. They lie nowhere (NaN), so they
        are no positives.

    Raises
    ------
    InputError
        If a crop has no height or no width.

    Examples
    --------
    The second tokens of two crops lie at one place, though one crop is twice as wide:

    >>> boxes = torch.tensor([[[0.0, 0.0, 4.0, 8.0]], [[0.0, 3.0, 4.0, 7.0]]])
    >>> place = crop_places(boxes, (1, 2))
    >>> place.shape, (place[0, 0, 1] - place[1, 0, 1]).tolist()
    (torch.Size([2, 1, 2, 2]), [0.0, 0.0])

    References
    ----------
    xie2021pixpro
    """
    start, size = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    if min(grid) < 1 or prefix < 0 or not bool((size != 0).all()):
        raise InputError(
            "crop_places: expected crops with a height and a width, a grid of at least one token "
            f"and no negative prefix, got grid={grid}, prefix={prefix} and "
            f"{int((size == 0).any(-1).sum())} empty crops. Pass top, left, bottom, right."
        )
    token = size / size.new_tensor(grid)
    at = torch.cartesian_prod(*(torch.arange(n, device=boxes.device) + 0.5 for n in grid))
    centre = start[..., None, :] + token[..., None, :] * at.reshape(-1, 2)
    place = centre / token.norm(dim=-1).amax(0)[:, None, None]
    nowhere = place.new_full((*place.shape[:2], prefix, 2), torch.nan)
    return torch.cat([nowhere, place], 2)
