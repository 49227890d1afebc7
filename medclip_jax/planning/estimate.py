"""The figures of one plan: memory, operations, traffic, and the times they imply.

The roofline: Williams, Waterman and Patterson 2009, "Roofline: an insightful visual
performance model for multicore architectures", with the network as a third roof.
"""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from medclip_jax.assemble import Assembled, assemble
from medclip_jax.planning.counted import (
    batch_shapes,
    flops_of,
    kept_bytes,
    least_collectives,
    local_bytes,
    lower_bounds,
)
from medclip_jax.runtime import mesh as mesh_lib
from medclip_jax.runtime.hlo import SLICES, Collective, Program
from medclip_jax.runtime.topology import Topology

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is known of a run before it starts. Figures are of one device.

    Attributes:
      topology: what it would run on.
      mesh: axis to size.
      batch_size: pairs a step, over all devices.
      is_compiled: whether memory and traffic are a compiled program's; else counted.
      peak: bytes of memory at most; None where the compiler gave up for want of it.
      capacity: bytes that there are.
      parameters, optimizer: bytes of their parts of the state.
      encoder_flops, loss_flops: operations of one step, counted by hand.
      memory_bytes: to and from the main memory in a step.
      compiler_s: seconds of a step by the TPU compiler's own estimate, nothing beside
        anything; None for a GPU, and where it was told to make no effort: it then
        leaves out what it did not tune.
      collectives: what is sent in a step.
      bounds: axis to bytes that must at least be sent along it.
      compile_s: seconds to compile; None where nothing was.
      advice: how to make it fit; empty where it does.
    """

    topology: Topology
    mesh: dict[str, int]
    batch_size: int
    is_compiled: bool
    peak: int | None
    capacity: int
    parameters: int
    optimizer: int
    encoder_flops: float
    loss_flops: float
    memory_bytes: float
    compiler_s: float | None
    collectives: list[Collective]
    bounds: dict[str, float]
    compile_s: float | None
    advice: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.peak is not None and self.peak <= self.capacity

    @property
    def compute_s(self) -> float:
        chip = self.topology.chip
        return (self.encoder_flops + self.loss_flops) * chip.devices / chip.flops

    @property
    def memory_s(self) -> float:
        chip = self.topology.chip
        return self.memory_bytes * chip.devices / chip.hbm_rate

    @property
    def network_s(self) -> float:
        return sum(seconds(of, self.topology) for of in self.collectives)

    @property
    def step_s(self) -> float:
        """At least: compute, memory and network perfectly beside one another."""
        return max(self.compute_s, self.memory_s, self.network_s)

    @property
    def mfu(self) -> float:
        """At most: the encoders' operations over what the devices could do."""
        chip = self.topology.chip
        return self.encoder_flops * chip.devices / chip.flops / self.step_s

    @property
    def pairs_per_second(self) -> float:
        """At most."""
        return self.batch_size / self.step_s


def make_plan(config: ConfigDict, topology: Topology, say: Say) -> Plan:
    """The plan of a config on a topology.

    Args:
      config: the experiment's.
      topology: TPUs, for which the step is compiled, or GPUs.
      say: takes a line of progress.

    Raises:
      UserError: a config, mesh or batch that does not fit the topology.
    """
    mesh = topology.mesh(config.mesh.to_dict())
    sizes = dict(mesh.shape)
    mesh_lib.check_batch_size(config.train.batch_size, sizes)
    if not topology.is_tpu and config.model.get("attention") == "cudnn":
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.model.attention = "plain"  # keeps more: counted as an upper bound
    made = assemble(config, mesh)  # type: ignore[arg-type]  # lowers nothing for GPUs
    encoders, loss = flops_of(made, config)
    devices = math.prod(sizes.values())
    plan = Plan(
        topology=topology,
        mesh=sizes,
        batch_size=config.train.batch_size,
        is_compiled=topology.is_tpu,
        peak=None,
        capacity=topology.chip.hbm // topology.chip.devices,
        parameters=local_bytes(made.target.variables),
        optimizer=local_bytes(made.target.opt_state),
        encoder_flops=encoders / devices,
        loss_flops=loss / devices,
        memory_bytes=0.0,
        compiler_s=None,
        collectives=[],
        bounds=lower_bounds(made, config, sizes, topology.slices),
        compile_s=None,
    )
    if topology.is_tpu:
        plan = _compile(plan, made, config, mesh, say)
    else:
        plan = _count(plan, made, config)
    return plan if plan.fits else replace(plan, advice=_advice(plan, config))


def _compile(
    plan: Plan, made: Assembled, config: ConfigDict, mesh: Any, say: Say
) -> Plan:
    """With the figures of the compiled step."""
    started = time.perf_counter()
    lowered = made.step.lower(made.target, abstract_batch(config, mesh))
    say(
        f"lowered in {time.perf_counter() - started:.0f} s; compiling for "
        f"{plan.topology.name} (a full-size model takes minutes) ..."
    )
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        say(_first_line(error))
        return replace(plan, compile_s=time.perf_counter() - started)
    program = Program(compiled.as_text())
    tuned = jax.config.jax_exec_time_optimization_effort >= 0  # type: ignore[attr-defined]
    return replace(
        plan,
        peak=compiled.memory_analysis().peak_memory_in_bytes,
        memory_bytes=program.memory_bytes(),
        compiler_s=program.cycles() / clock(mesh, plan.topology) if tuned else None,
        collectives=program.collectives(plan.mesh, plan.topology.slices),
        compile_s=time.perf_counter() - started,
    )


def clock(mesh: Any, topology: Topology) -> float:
    """Cycles a second of the compiler's estimates.

    By it a large product of matrices runs at the published peak.
    """
    side = 8192
    matrix = jax.ShapeDtypeStruct(
        (side, side), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec())
    )
    program = Program(jax.jit(jnp.matmul).lower(matrix, matrix).compile().as_text())
    chip = topology.chip
    return program.cycles() / (2 * side**3 * chip.devices / chip.flops)


def _count(plan: Plan, made: Assembled, config: ConfigDict) -> Plan:
    """With figures by analysis: what the backward pass keeps, what must be sent.

    Activations are what `jax.vjp` of the encoders keeps, unfused: an upper bound of
    what a compiler keeps. Memory traffic is each of them written once and read once,
    and the state.
    """
    ways = plan.mesh["data"] * plan.mesh["fsdp"]
    rows = plan.batch_size // ways // config.train.micro_batches
    kept = kept_bytes(made, config, rows)
    passes = config.train.micro_batches
    gradients = plan.parameters
    return replace(
        plan,
        peak=int(plan.parameters + plan.optimizer + gradients + kept),
        memory_bytes=passes * (2 * kept + 2 * plan.parameters)
        + 3 * plan.parameters
        + 2 * plan.optimizer,
        collectives=least_collectives(made, config, plan.mesh, plan.topology.slices),
    )


def seconds(of: Collective, topology: Topology) -> float:
    """What a collective takes where nothing else runs.

    Inside a slice or node a device sends over all its links at once, but a permutation
    on a torus over one. A round of permutations waits for the pair between slices.
    """
    chip = topology.chip
    outwards = chip.link_rate / 2 / chip.devices
    network = chip.network_rate / chip.devices
    if of.axes == SLICES:
        return of.sent / network
    if of.kind != "collective-permute":
        return of.sent / outwards
    rate = outwards / (2 * chip.torus if chip.torus else 1)
    if topology.slices > 1 and "data" in of.axes.split("+"):
        rate = min(rate, network)
    return of.sent / rate


def abstract_batch(config: ConfigDict, mesh: Any) -> dict[str, Any]:
    """Shapes of a batch as the reader gives it, rows split over the mesh."""
    where = mesh_lib.batch_sharding(mesh)
    return jax.tree.map(
        lambda of: jax.ShapeDtypeStruct(of.shape, of.dtype, sharding=where),
        batch_shapes(config, config.train.batch_size),
    )


def _advice(plan: Plan, config: ConfigDict) -> tuple[str, ...]:
    """What to change so that it fits, the cheapest first."""
    advice = []
    ways = plan.mesh["data"] * plan.mesh["fsdp"]
    rows = plan.batch_size // ways
    state = plan.parameters + plan.optimizer
    fixed = state + plan.parameters  # and the gradient
    if plan.peak is not None and plan.peak > fixed:
        room = (plan.capacity - fixed) / (plan.peak - fixed)
        parts = 2 ** math.ceil(math.log2(max(1.01, 1 / max(room, 1e-6))))
    else:
        parts = 2
    if fixed < plan.capacity and rows >= 2 * parts:
        parts *= config.train.micro_batches
        advice.append(
            f"encode the batch in parts, with the same gradient: "
            f"--config.train.micro_batches={parts}"
        )
    if not config.model.remat:
        advice.append(
            "recompute layers in the backward pass, a third more computing: "
            "--config.model.remat=true"
        )
    if fixed > plan.capacity / 4:
        wider = plan.mesh["fsdp"] * 2
        advice.append(
            f"split parameters and optimizer over more devices: "
            f"--config.mesh.fsdp={wider}"
        )
    if rows > 1:
        advice.append(
            f"a smaller batch: --batch {plan.batch_size // (2 * ways) * ways}"
        )
    return tuple(advice)


def _first_line(error: Exception) -> str:
    """The compiler's own words on what it used, without its tables."""
    found = re.search(r"[Uu]sed [^.]*\.\d+\w? of [^.]*\.\d+\w?[^.]*", str(error))
    return "out of memory" + (f": {found[0]}" if found else "")
