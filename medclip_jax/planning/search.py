"""The largest batch that fits a topology, and the mesh on which it is fastest."""

from ml_collections import ConfigDict

from medclip_jax.planning.estimate import Plan, Say, make_plan
from medclip_jax.runtime.topology import Topology

# Memory that is left free: what the runtime and the input take of it.
_USABLE = 0.95
_ROWS = 8  # pairs a device that the first compile is made with
_TRIES = 3  # on the way to the largest batch


def search(config: ConfigDict, topology: Topology, say: Say) -> list[Plan]:
    """Tries meshes, and for each the largest batch.

    Memory grows with the pairs a device holds, nearly in a straight line: two compiles
    give the line, one or two more confirm its end. Meshes split parameters over 1, 2, 4, ... devices of
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
    best, other = plan, at(2 * rows)
    many = 2 * rows
    for _ in range(_TRIES):
        if other.peak is None:  # the compiler gave up, and does not say at how much
            many -= max(1, many // 8)
        else:
            if other.peak <= _USABLE * other.capacity:
                best = max(best, other, key=lambda of: of.batch_size)
            assert plan.peak is not None
            slope = max(1.0, (other.peak - plan.peak) / (many - rows))
            many = rows + int((_USABLE * plan.capacity - plan.peak) / slope)
        many -= many % 8 if many >= 8 else 0
        if many * devices <= best.batch_size or many == rows:
            break
        other = at(many)
    else:
        if other.peak is not None and other.peak <= _USABLE * other.capacity:
            best = max(best, other, key=lambda of: of.batch_size)
    return best


def _seconds(plan: Plan) -> float:
    return max(plan.step_s, plan.compiler_s or 0.0)
