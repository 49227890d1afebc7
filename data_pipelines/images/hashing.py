"""A hash of what a film looks like, by which copies are found in other data sets.

RSNA's films are NIH's under other names, and the COVID collections reuse both, scaled
down and compressed anew: ids do not tell, pixels do.

Films of the chest all look alike, so a hash of the brightness hardly tells them apart (the
difference hash of 16 x 16 fields comes to within 19 bits for two patients). Taken here
are the signs of cosine coefficients after the coarse course of brightness and of contrast
has been divided out. `annotations.find_copies` compares hashes.
"""

import numpy as np
import simplejpeg
from PIL import Image
from scipy import fft, ndimage

SIDE = 64  # px, of the square into which a film is brought, whatever its form
COARSE = 6.0  # px of it: the standard deviation of what counts as coarse
NOISE = 4.0  # gray levels below which contrast is not raised
SKIPPED = 8  # lowest coefficients: every chest has them
BITS = 256
ZERO = 1e-6  # so that what is 0 but for rounding gives the same bit everywhere


def film_hash(jpeg: bytes) -> bytes:
    """The hash of a stored film.

    Args:
      jpeg: 8-bit gray JPEG.

    Returns:
      32 bytes: the signs of 256 coefficients of the cosine transform, from the 9th
      lowest frequency on. Scaling, a change of form, compression and a window change
      few of them; a crop or a mirrored copy gives another hash.
    """
    small_HxWx1 = simplejpeg.decode_jpeg(
        jpeg, "GRAY", min_height=2 * SIDE, min_width=2 * SIDE, min_factor=1
    )
    image = Image.fromarray(small_HxWx1[..., 0])
    square = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    fine = square - ndimage.gaussian_filter(square, COARSE)
    contrast = np.sqrt(ndimage.gaussian_filter(fine**2, COARSE)) + NOISE
    coefficients = fft.dctn(fine / contrast, norm="ortho").ravel()
    return np.packbits(coefficients[_ORDER] > ZERO).tobytes()


def _lowest_first() -> np.ndarray:
    row, column = np.mgrid[:SIDE, :SIDE]
    order = np.lexsort((row.ravel(), (row**2 + column**2).ravel()))
    return order[SKIPPED : SKIPPED + BITS]


_ORDER = _lowest_first()
