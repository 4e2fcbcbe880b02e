"""How large a scan may be, checked from headers before anything is decoded."""

from collections.abc import Sequence
from math import prod

from covidnet.errors import ScanError

MAX_VOXELS = 2**29  # 1 GiB of int16; 1,000 slices of 512 x 512 are half of it


def check_voxels(shape: Sequence[int]) -> None:
    """Refuse an empty volume and one that no chest CT fills.

    Raises:
        ScanError: naming the shape and the limit.
    """
    if not 0 < prod(int(side) for side in shape) <= MAX_VOXELS:
        raise ScanError(f"expected 1 to {MAX_VOXELS} voxels, found {' x '.join(map(str, shape))}; export one chest CT")
