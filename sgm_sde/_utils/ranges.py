"""Checks of the range of images: errors where values show another range than the one that was given.

The values of 8-bit images lie on a grid that shows their range: integers up to 255; k / 255 in [0, 1]; (2k - 255) / 255
in [-1, 1], where every value times 255 is odd. Samples of a network lie on none of these grids.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHANNELS = (1, 3, 4)  # of an image
ENOUGH = 64  # numbers that show which grid they lie on
RANGES = ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0))  # what images have, and are mistaken in
LOOKED_AT = 2**16  # numbers, at most
ROUNDING = 2e-3  # of a number times 255, from single precision, and of half precision too small to matter
LEVELS = 32  # of which that many must be there: fewer, such as black and white, lie on many grids
DARK = 32  # levels of 256 above which an 8-bit image goes somewhere


def grid_of(x: Tensor) -> tuple[float, float] | None:
    """The range (lo, hi) of the 8-bit grid that floating-point numbers lie on; None for none, and for too few numbers.

    Examples:
        >>> levels = torch.arange(256.0)
        >>> grid_of(levels), grid_of(levels / 255), grid_of(levels / 127.5 - 1), grid_of(levels.sin())
        ((0.0, 255.0), (0.0, 1.0), (-1.0, 1.0), None)
    """
    values = x.detach().flatten()[:LOOKED_AT].double()
    if len(values) < ENOUGH or not bool(torch.isfinite(values).all()) or len(torch.unique(values)) < LEVELS:
        return None

    low = float(values.min())
    high = float(values.max())
    integers = bool((values == values.round()).all())
    if integers and low >= 0 and DARK <= high <= 255:
        return 0.0, 255.0
    if low < -1 - ROUNDING or high > 1 + ROUNDING:
        return None
    return _scaled_grid_of(255 * values, low)


def _scaled_grid_of(numbers: Tensor, low: float) -> tuple[float, float] | None:
    """The same for values within [-1, 1], from `low` on, given times 255."""
    rounded = numbers.round()
    if bool(((numbers - rounded).abs() > ROUNDING).any()):
        return None

    odd = (rounded % 2 == 1) | (rounded == 0)  # 0, where values were cut off
    if bool(odd.all()):
        return (-1.0, 1.0) if low < 0 else None  # odd levels of [0, 1] lie on both
    return (0.0, 1.0) if low >= 0 else None


def refuse_other_range(option: str, x: Tensor, data_range: tuple[float, float]) -> None:
    """Raise ValueError for images x (B, *) that lie on the 8-bit grid of another of the `RANGES` than `data_range`.

    Examples:
        >>> refuse_other_range("samples", torch.arange(256.0) / 255, (-1, 1))
        Traceback (most recent call last):
        ...
        ValueError: samples are 8-bit images in [0, 1], by their values, and data_range is (-1, 1): ...(0, 1)
    """
    found = grid_of(x)
    if found is None or found == data_range or data_range not in RANGES:
        return
    low, high = found
    shown = f"({low:g}, {high:g})"
    raise ValueError(
        f"{option} are 8-bit images in [{low:g}, {high:g}], by their values, and data_range is {data_range}: give "
        f"data_range={shown}"
    )


def refuse_unscaled(option: str, x: Tensor) -> None:
    """Raise ValueError for images x (B, C, H, W) with the levels 0 to 255 that have not been scaled.

    Examples:
        >>> refuse_unscaled("x0", torch.arange(256.0).view(4, 1, 8, 8))
        Traceback (most recent call last):
        ...
        ValueError: x0 has integers from 0 to 255 alone, as 8-bit images that are not scaled: v / 127.5 - 1
    """
    if x.ndim == 4 and x.shape[1] in CHANNELS and grid_of(x) == (0.0, 255.0):
        raise ValueError(
            f"{option} has integers from {int(x.min())} to {int(x.max())} alone, as 8-bit images that are not "
            f"scaled: v / 127.5 - 1"
        )


def refuse_cast(option: str, images: Tensor, n_levels: int) -> None:
    """Raise ValueError for integers (B, *) of the levels 0 and 1 only, of many: images cast from [0, 1] unscaled.

    A dark image may have the levels 0 and 1 only, so it takes four images, each with both levels.

    Examples:
        >>> refuse_cast("images", torch.tensor([0, 1]).repeat(4, 8), 256)
        Traceback (most recent call last):
        ...
        ValueError: images are 0 and 1 alone, of 256 levels: cast from [0, 1] without scaling, or n_levels=2
    """
    if n_levels < 8 or len(images) < 4 or images.numel() < ENOUGH or int(images.max()) != 1:
        return
    levels = images.flatten(1)
    several = levels.amax(1) > levels.amin(1)
    if bool(several.all()):
        raise ValueError(
            f"{option} are 0 and 1 alone, of {n_levels} levels: cast from [0, 1] without scaling, or n_levels=2"
        )
