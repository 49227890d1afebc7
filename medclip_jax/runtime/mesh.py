"""The mesh `data x fsdp x tensor`, and where a batch lies on it.

`data` and `fsdp` both split the batch; `fsdp` splits parameters and their optimizer
state as well; `tensor` splits the wide dimensions inside a layer.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medclip_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def resolve_sizes(sizes: Mapping[str, int], n_devices: int) -> dict[str, int]:
    """Fills in the one axis that is -1, and checks the product.

    Args:
      sizes: wanted size by axis name; -1 on at most one axis means "the rest".
      n_devices: devices there are.

    Returns:
      Size by axis name, in the order of `AXES`; their product is `n_devices`.

    Raises:
      UserError: the sizes cannot be met by that many devices.
    """
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise UserError(f"mesh: unknown axis {unknown}; the axes are {list(AXES)}.")
    wanted = {axis: int(sizes.get(axis, 1)) for axis in AXES}
    asked = ", ".join(f"{axis}={size}" for axis, size in wanted.items())
    if bad := [axis for axis, size in wanted.items() if size < 1 and size != -1]:
        raise UserError(
            f"mesh: sizes must be positive, or -1 for the rest; found {asked} "
            f"(wrong: {', '.join(bad)})."
        )
    rest = [axis for axis, size in wanted.items() if size == -1]
    if len(rest) > 1:
        raise UserError(f"mesh: at most one axis may be -1 (the rest); found {asked}.")
    fixed = int(np.prod([size for size in wanted.values() if size != -1]))
    if rest:
        if n_devices % fixed:
            raise UserError(
                f"mesh: {n_devices} devices do not divide by {fixed} (from {asked}): "
                f"{n_devices} / {fixed} = {n_devices / fixed:g}. Choose sizes whose "
                f"product divides {n_devices}."
            )
        wanted[rest[0]] = n_devices // fixed
    elif fixed != n_devices:
        product = " x ".join(str(size) for size in wanted.values())
        raise UserError(
            f"mesh: {asked} needs {product} = {fixed} devices, there are {n_devices}. "
            "Set one axis to -1 to let it take the rest, e.g. --config.mesh.data=-1."
        )
    return wanted


def make_mesh(
    sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh over all devices (or over `devices`).

    Of several TPU slices, `data` alone crosses the network between them: its first
    places are the slices.

    Raises:
      UserError: as `resolve_sizes`, or `data` is no multiple of the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    resolved = resolve_sizes(sizes, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    # Hosts with GPUs count as slices too, and there any axis may go between them.
    if slices > 1 and devices[0].platform == "tpu":
        if resolved["data"] % slices:
            raise UserError(
                f"mesh: data={resolved['data']} does not divide by {slices} slices, "
                "between which only the data axis goes; choose smaller fsdp or tensor "
                "(--config.mesh.fsdp=N)."
            )
        inside = {**resolved, "data": resolved["data"] // slices}
        placed = mesh_utils.create_hybrid_device_mesh(
            tuple(inside.values()), (slices, 1, 1), devices
        )
        return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    # make_mesh gives Explicit axes by default since jax 0.10; our code is in global
    # view and leaves the placement of intermediates to the compiler.
    return jax.make_mesh(
        tuple(resolved.values()),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices,
    )


def check_batch_size(batch_size: int, sizes: Mapping[str, int]) -> None:
    """Checks that every device gets the same number of rows.

    Raises:
      UserError: with the arithmetic, and the nearest sizes that fit.
    """
    ways = sizes["data"] * sizes["fsdp"]
    if batch_size < 1 or batch_size % ways:
        below, above = batch_size // ways * ways, (batch_size // ways + 1) * ways
        near = f"{below} or {above}" if below > 0 else f"{above}"
        raise UserError(
            f"train.batch_size={batch_size} does not divide by the mesh: data "
            f"{sizes['data']} x fsdp {sizes['fsdp']} = {ways} parts, and "
            f"{batch_size} / {ways} = {batch_size / ways:g}. Use a batch of {near}, "
            "or another mesh (--config.mesh.data=N --config.mesh.fsdp=M)."
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over `data` and `fsdp`, the rest of the dimensions whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_parts(mesh: Mesh, process: int | None = None) -> tuple[tuple[int, ...], int]:
    """Which of the equal parts of a batch lie on the devices of a process.

    The order of devices in a mesh follows the network between them, not the hosts: on
    a TPU pod the parts of a host need not be neighbours. Along `tensor` the devices
    hold the same rows, so that two hosts may need the same part.

    Args:
      mesh: the mesh.
      process: index of a process; by default this one.

    Returns:
      The parts, in order, and how many there are in all: data x fsdp.
    """
    return _parts(mesh, jax.process_index() if process is None else process)


@functools.lru_cache(maxsize=64)  # asked for at every step
def _parts(mesh: Mesh, process: int) -> tuple[tuple[int, ...], int]:
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    placed: Mapping[Any, Any] = batch_sharding(mesh).devices_indices_map((ways,))
    parts = {
        index[0].indices(ways)[0]
        for device, index in placed.items()
        if device.process_index == process
    }
    return tuple(sorted(parts)), ways


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts a process's rows of a batch on its devices.

    Args:
      batch: tree of arrays, each with the rows of this process's `batch_parts`
        leading, in their order.
      mesh: where to.

    Returns:
      The same tree of global arrays, rows split over `data` and `fsdp`.
    """
    sharding = batch_sharding(mesh)
    parts, ways = batch_parts(mesh)

    def place(rows: np.ndarray) -> jax.Array:
        whole = (len(rows) // len(parts) * ways, *rows.shape[1:])
        return jax.make_array_from_process_local_data(sharding, rows, whole)

    return jax.tree.map(place, batch)


def describe(mesh: Mesh) -> str:
    """For instance "8 cpu devices of 2 processes: data 4 x fsdp 2 x tensor 1"."""
    devices = mesh.devices.flatten()
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    kind = devices[0].device_kind
    count = len({device.process_index for device in devices})
    of = f" of {count} processes" if count > 1 else ""
    return f"{devices.size} {kind} device{'s' * (devices.size != 1)}{of}: {sizes}"
