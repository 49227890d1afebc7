"""The largest batch that fits a topology, and the mesh on which it is fastest."""

import math

from ml_collections import ConfigDict

from medclip_jax.planning.estimate import Plan, Say, make_plan
from medclip_jax.runtime.topology import Topology

# Memory that is left free: what the runtime and the input take of it.
_USABLE = 0.95
_ROWS = 8  # pairs a device that the first compile is made with


def search(config: ConfigDict, topology: Topology, say: Say) -> list[Plan]:
    """Tries meshes, and for each the largest batch.

    Memory grows with the pairs a device holds in a straight line: two compiles give the
    line, a third confirms its end. Meshes split parameters over 1, 2, 4, ... devices of
    a slice, until the state is a tenth of the memory; more can only send more.

    Args:
      config: the experiment's; its mesh and batch size are not used.
      topology: what to run on.
      say: takes a line of progress.

    Returns:
      One plan a mesh that fits, the most pairs a second first.
    """
    found = []
    fsdp = 1
    slice_devices = topology.chips * topology.chip.devices // topology.slices
    while fsdp <= slice_devices:
        plan = _largest(config, topology, fsdp, say)
        if plan is not None:
            found.append(plan)
            state = plan.parameters + plan.optimizer
            if 10 * state < plan.capacity:
                break
        fsdp *= 2
    return sorted(found, key=lambda of: -of.batch_size / _seconds(of))


def _largest(
    config: ConfigDict, topology: Topology, fsdp: int, say: Say
) -> Plan | None:
    """The plan of the largest batch on a mesh; None where nothing fits."""
    devices = topology.chips * topology.chip.devices

    def at(rows: int) -> Plan:
        trial = config.copy_and_resolve_references()
        trial.mesh.update({"data": devices // fsdp, "fsdp": fsdp, "tensor": 1})
        trial.train.batch_size = rows * devices
        say(f"fsdp {fsdp}: {rows} pairs a device ...")
        return make_plan(trial, topology, say)

    rows = _ROWS
    plan = at(rows)
    while not plan.fits and rows > 1:
        rows = max(1, rows // 4)
        plan = at(rows)
    if not plan.fits:
        return None
    more = at(2 * rows)
    if more.peak is None or not more.fits:
        return plan
    assert plan.peak is not None
    slope = max(1.0, (more.peak - plan.peak) / rows)
    room = _USABLE * plan.capacity - plan.peak
    wanted = rows + int(room / slope)
    wanted -= wanted % 8 if wanted >= 8 else 0
    while wanted > 2 * rows:
        largest = at(wanted)
        if largest.peak is not None and largest.peak <= _USABLE * largest.capacity:
            return largest
        # The line bent: go back by an eighth.
        wanted -= max(8, math.ceil(wanted / 8) // 8 * 8)
    return more


def _seconds(plan: Plan) -> float:
    return max(plan.step_s, plan.compiler_s or 0.0)
