"""Run as two processes: rows of a batch on meshes whose order is not that of the hosts.

Each process makes the rows that it is told to and no others; on every device must then
lie the rows that the sharding says.
"""

import sys

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from medclip_jax import train_options
from medclip_jax.runtime import mesh as mesh_lib

ROWS, TEXTS = 8, 16
MESHES = [
    # Devices 0 and 1 are of process 0, 2 and 3 of process 1.
    ([0, 1, 2, 3], (4, 1, 1), {0: (0, 1), 1: (2, 3)}),
    ([0, 2, 1, 3], (4, 1, 1), {0: (0, 2), 1: (1, 3)}),
    ([3, 0, 1, 2], (2, 2, 1), {0: (1, 2), 1: (0, 3)}),
    ([0, 2, 1, 3], (2, 1, 2), {0: (0, 1), 1: (0, 1)}),
    ([0, 1, 2, 3], (1, 1, 4), {0: (0,), 1: (0,)}),
    ([0, 1, 2, 3], (2, 1, 2), {0: (0,), 1: (1,)}),
    ([0, 2, 3, 1], (1, 2, 2), {0: (0, 1), 1: (0, 1)}),
]


def main(argv: list[str]) -> None:
    args, config = train_options.parse(["--config=medclip.py:demo", *argv])
    train_options.join(args, config)
    devices = np.array(jax.devices())
    for order, shape, expected in MESHES:
        mesh = Mesh(
            devices[order].reshape(shape),
            mesh_lib.AXES,
            axis_types=(AxisType.Auto,) * 3,
        )
        parts, of = mesh_lib.batch_parts(mesh)
        assert of == shape[0] * shape[1]
        assert parts == expected[jax.process_index()], (order, shape, parts)

        def rows(size, parts=parts, of=of):
            whole = np.arange(2 * size).reshape(of, size // of, 2)
            return np.concatenate([whole[part] for part in parts])

        placed = mesh_lib.place_batch({"n": rows(ROWS), "m": rows(TEXTS)}, mesh)
        for name, size in (("n", ROWS), ("m", TEXTS)):
            array = placed[name]
            assert array.shape == (size, 2), (order, shape, array.shape)
            whole = np.arange(2 * size).reshape(size, 2)
            for shard in array.addressable_shards:
                np.testing.assert_array_equal(shard.data, whole[shard.index])


if __name__ == "__main__":
    main(sys.argv[1:])
