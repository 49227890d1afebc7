"""Which transfer syntaxes can be decoded, by what, and what to install.

With the `[data]` extra (pydicom, pylibjpeg with openjpeg and rle, pyjpegls, python-gdcm;
Pillow is always there):

| transfer syntax                 | UID 1.2.840.10008.1.2 | decoded by, best first    |
| ------------------------------- | --------------------- | ------------------------- |
| Implicit, Explicit VR LE, BE    | (none), .1, .2        | pydicom                   |
| Deflated Explicit VR LE         | .1.99                 | pydicom                   |
| JPEG Baseline, 8 bits           | .4.50                 | Pillow, gdcm              |
| JPEG Extended, 8 of 8 bits      | .4.51                 | Pillow, gdcm              |
| JPEG Extended, 12 bits          | .4.51                 | none (see below)          |
| JPEG Lossless, Process 14, SV1  | .4.57, .4.70          | gdcm                      |
| JPEG-LS                         | .4.80, .4.81          | pyjpegls, gdcm            |
| JPEG 2000                       | .4.90, .4.91          | openjpeg, gdcm, Pillow    |
| High-Throughput JPEG 2000       | .4.201 to .4.203      | openjpeg                  |
| RLE                             | .5                    | pylibjpeg-rle, pydicom    |

12-bit JPEG Extended needs pylibjpeg-libjpeg, whose licence is the GPL-3.0: it is never a
requirement. All others are MIT, BSD or Apache licensed.

Reference: pydicom, doc/guides/plugin_table.rst; the order is by time for 2500 x 3000.
"""

from typing import Any

import numpy as np

from data_pipelines.images.bad_film import UNREADABLE, BadFilm

PREFERENCE = ("pyjpegls", "pylibjpeg", "pillow", "gdcm", "pydicom")
"""Plugins of pydicom, the quickest first where two can decode the same."""

ROOT = "1.2.840.10008.1.2.4."
GPL = "pip install pylibjpeg pylibjpeg-libjpeg (its licence is the GPL-3.0)"
CONVERT = "rewrite the file without compression (`gdcmconv --raw IN OUT`)"
INSTALL = {
    ROOT + "51": f"12 bits need {GPL}; or {CONVERT}",
    ROOT + "57": f"pip install python-gdcm; or {GPL}",
    ROOT + "70": f"pip install python-gdcm; or {GPL}",
    ROOT + "80": "pip install pyjpegls",
    ROOT + "81": "pip install pyjpegls",
    ROOT + "90": "pip install pylibjpeg pylibjpeg-openjpeg",
    ROOT + "91": "pip install pylibjpeg pylibjpeg-openjpeg",
    ROOT + "201": "pip install pylibjpeg pylibjpeg-openjpeg",
    ROOT + "202": "pip install pylibjpeg pylibjpeg-openjpeg",
    ROOT + "203": "pip install pylibjpeg pylibjpeg-openjpeg",
}
"""What mends a missing decoder; the `[data]` extra has all of them but the GPL one."""


def decode_values(dataset: Any) -> np.ndarray:
    """Decodes the pixel data.

    Args:
      dataset: a pydicom dataset with its transfer syntax and one frame.

    Returns:
      The stored values: integers [Rows, Columns], or [Rows, Columns, samples].

    Raises:
      BadFilm: no decoder for the transfer syntax is installed, or none can read the
        data.
    """
    from pydicom.pixels import get_decoder

    uid = dataset.file_meta.TransferSyntaxUID
    name = f"transfer syntax {uid.name} ({uid})"
    try:
        decoder = get_decoder(uid)
    except NotImplementedError:
        raise BadFilm(
            UNREADABLE, f"expected one of still films, found {name}; {CONVERT}"
        ) from None
    if not decoder.is_available:
        raise BadFilm(
            UNREADABLE,
            f"expected a decoder for {name}, found none installed: "
            f"{INSTALL.get(uid, CONVERT)}",
        )
    # [""]: uncompressed data needs no plugin.
    plugins = sorted(decoder.available_plugins, key=PREFERENCE.index) or [""]
    for plugin in plugins:
        dataset.pixel_array_options(decoding_plugin=plugin)
        try:
            return dataset.pixel_array
        except Exception as error:  # noqa: BLE001 - each decoder has its own types
            fault = type(error).__name__
    tried = " and ".join(filter(None, plugins)) or "pydicom"
    advice = "copy the file again"
    if uid == ROOT + "51":
        advice += f"; {INSTALL[uid]}"
    raise BadFilm(
        UNREADABLE,
        f"expected sound pixel data in {name}, but {tried} cannot decode it ({fault}): "
        f"{advice}",
    )
