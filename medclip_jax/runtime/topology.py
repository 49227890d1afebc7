"""Accelerators that are not there: what a chip can do, and devices to compile for.

Reference: docs.cloud.google.com/tpu/docs, the page of each generation; NVIDIA's data
sheets. Rates are the published peaks.
"""

import math
import os
import re
from dataclasses import dataclass

import jax
from jax.experimental import topologies
from jax.sharding import AbstractMesh, AxisType, Mesh

from medclip_jax.errors import UserError
from medclip_jax.runtime import mesh as mesh_lib
from medclip_jax.runtime.throughput import PEAKS

GIB = 1 << 30
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


@dataclass(frozen=True)
class Chip:
    """One generation.

    Attributes:
      kind: as jax names its devices.
      hbm: bytes of memory.
      hbm_rate: bytes a second.
      link_rate: bytes a second to the other chips of a slice or node, in and out
        together.
      network_rate: bytes a second that a chip sends to another slice or node.
      torus: how many dimensions a TPU slice has; 0 for a GPU node.
      compiler_name: of its topologies in the TPU compiler.
      devices: that jax sees in a chip.
    """

    kind: str
    hbm: int
    hbm_rate: float
    link_rate: float
    network_rate: float
    torus: int = 0
    compiler_name: str = ""
    devices: int = 1

    @property
    def flops(self) -> float:
        """bf16, a second."""
        return dict(PEAKS)[self.kind] * self.devices


CHIPS: dict[str, Chip] = {
    "v4": Chip("TPU v4", 32 * GIB, 1228e9, 300e9, 3.1e9, 3, "v4"),
    "v5e": Chip("TPU v5e", 16 * GIB, 819e9, 400e9, 3.1e9, 2, "v5e"),
    "v5p": Chip("TPU v5p", 95 * GIB, 2765e9, 1200e9, 6.25e9, 3, "v5"),
    "v6e": Chip("TPU v6", 32 * GIB, 1638e9, 800e9, 6.25e9, 2, "v6e"),
    "7x": Chip("TPU7x", 192 * GIB, 7380e9, 1200e9, 12.5e9, 3, "tpu7x", 2),
    "a100": Chip("NVIDIA A100", 80 * 10**9, 2039e9, 600e9, 25e9),
    "h100": Chip("NVIDIA H100", 80 * 10**9, 3350e9, 900e9, 50e9),
    "h200": Chip("NVIDIA H200", 141 * 10**9, 4800e9, 900e9, 50e9),
}
_TOGETHER = ("v4", "v5p")  # jax takes the two cores of a chip as one device


@dataclass(frozen=True)
class Topology:
    """Attributes:
    name: as given, "v5p:8x8x8", "h100:8".
    chip: its generation.
    shape: chips of a slice along each dimension; of a node.
    slices: how many slices or nodes.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def is_tpu(self) -> bool:
        return self.chip.torus > 0

    def mesh(self, sizes: dict[str, int]) -> Mesh | AbstractMesh:
        """The mesh of a config: of devices to compile for, or of nothing for GPUs.

        Args:
          sizes: as `mesh.resolve_sizes` takes them.

        Raises:
          UserError: sizes that do not fit, no TPU compiler, or a shape that it does
            not know.
        """
        if self.is_tpu:
            return mesh_lib.make_mesh(sizes, self._devices())
        made = mesh_lib.resolve_sizes(sizes, self.chips)
        axes = mesh_lib.AXES
        return AbstractMesh(tuple(made.values()), axes, (AxisType.Auto,) * len(axes))

    def _devices(self) -> list[jax.Device]:
        # Read when the compiler is loaded: it must not look for a TPU of this machine.
        for name, value in _NO_TPU.items():
            os.environ.setdefault(name, value)

        generation = self.name.split(":")[0]
        options: dict = {"num_slices": self.slices} if self.slices > 1 else {}
        if generation in _TOGETHER:
            options["chip_config_name"] = "megacore"
        shape = "x".join(map(str, self.shape))
        try:
            made = topologies.get_topology_desc(
                platform="tpu",
                topology_name=f"{self.chip.compiler_name}:{shape}",
                **options,
            )
        except (RuntimeError, ValueError, NotImplementedError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(
                f"topology {self.name}: expected one that the TPU compiler knows, and "
                f"the compiler itself (pip install 'jax[tpu]'); found: {first}"
            ) from None
        return list(made.devices)


def parse(name: str, slices: int = 1) -> Topology:
    """A topology by its name.

    Args:
      name: generation and shape of a slice or node: "v5e:4x4", "v5p:8x8x8", "h100:8".
      slices: how many of them.

    Raises:
      UserError: an unknown generation or a shape that is none.
    """
    made = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not made or made[1] not in CHIPS:
        raise UserError(
            f"--topology {name}: expected GENERATION:SHAPE with a generation of "
            f"{', '.join(CHIPS)}, such as v5e:4x4, v5p:8x8x8 or h100:8"
        )
    chip, shape = CHIPS[made[1]], tuple(int(n) for n in made[2].split("x"))
    dims = chip.torus or 1
    if len(shape) != dims or 0 in shape:
        what = f"a torus of {dims} dimensions" if chip.torus else "GPUs of one node"
        want = "x".join("4" * dims) if chip.torus else "8"
        raise UserError(
            f"--topology {name}: {made[1]} takes {what}; expected a shape such as "
            f"{made[1]}:{want}, found {made[2]}"
        )
    if slices < 1:
        raise UserError(f"--slices: expected 1 or more, found {slices}")
    return Topology(name, chip, shape, slices)
