"""The figures of one plan: memory, operations, traffic, and the times they imply.

The roofline: Williams, Waterman and Patterson 2009, "Roofline: an insightful visual
performance model for multicore architectures", with the network as a third roof.
"""

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from medclip_jax import run as run_lib
from medclip_jax.assemble import Assembled, assemble
from medclip_jax.inputs.options import DataOptions
from medclip_jax.methods.interface import ExampleKeys
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
        anything; None for a GPU.
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
    made = assemble(config, mesh)
    encoders, loss = flops_of(made, config)
    devices = math.prod(sizes.values())
    plan = Plan(
        topology=topology,
        mesh=sizes,
        batch_size=config.train.batch_size,
        is_compiled=topology.is_tpu,
        peak=None,
        capacity=topology.chip.hbm // topology.chip.devices,
        parameters=_local_bytes(made.target.variables),
        optimizer=_local_bytes(made.target.opt_state),
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
    text = compiled.as_text()
    program = Program(text)
    return replace(
        plan,
        peak=compiled.memory_analysis().peak_memory_in_bytes,
        memory_bytes=program.memory_bytes(),
        compiler_s=program.cycles() / clock(mesh, plan.topology),
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
    kept = _kept_bytes(made, config, rows)
    passes = config.train.micro_batches
    gradients = plan.parameters
    return replace(
        plan,
        peak=int(plan.parameters + plan.optimizer + gradients + kept),
        memory_bytes=passes * (2 * kept + 2 * plan.parameters)
        + 3 * plan.parameters
        + 2 * plan.optimizer,
        collectives=_least_collectives(made, config, plan.mesh, plan.topology.slices),
    )


def _kept_bytes(made: Assembled, config: ConfigDict, rows: int) -> float:
    """Bytes that the backward pass of the encoders keeps for so many pairs.

    What one pair adds, times the pairs; and what is kept once, such as parameters in
    the compute dtype. What a layer that is recomputed holds meanwhile is not in it.
    """
    one, two = (_vjp_bytes(made, config, n) for n in (1, 2))
    params = _bytes(made.target.variables["params"])
    # The parameters are among what is kept once; they are there anyway.
    return (two - one) * rows + max(0, 2 * one - two - params)


def _vjp_bytes(made: Assembled, config: ConfigDict, rows: int) -> int:
    batch = dict(_shapes(config, rows))
    size = config.data.image_size
    batch["films"] = {
        "current_BxHxWx3": jax.ShapeDtypeStruct((rows, size, size, 3), jnp.float32)
    }
    images, texts = (
        jax.eval_shape(lambda n=n: jax.random.split(jax.random.key(0), n))
        for n in (rows, DataOptions.of(config.data).texts_of(rows))
    )
    plain = jax.tree.map(
        lambda of: jax.ShapeDtypeStruct(of.shape, of.dtype), made.target.variables
    )
    rest = {name: of for name, of in plain.items() if name != "params"}

    def backward(params: Any, rest: Any, batch: Any, keys: ExampleKeys) -> Any:
        def encode(params: Any) -> Any:
            variables = {"params": params, **rest}
            return made.method.encode(variables, batch, keys, True)

        return jax.vjp(encode, params)[1]

    keys = ExampleKeys(images, texts)
    return _bytes(jax.eval_shape(backward, plain["params"], rest, batch, keys))


def flops_of(made: Assembled, config: ConfigDict) -> tuple[float, float]:
    """Operations of one step over all devices: of the encoders, and of the loss.

    Encoders: 3 x forward. Loss: each logit is made in the forward and again in the
    backward pass, and its derivative meets both sides: 4 products of [N, D] and [D, M],
    each of six bfloat16 passes, as float32 at the highest precision takes.
    """
    n = config.train.batch_size
    encoders = 3.0 * made.method.forward_flops(run_lib.spec(config)) * n
    if not hasattr(made.method, "embed_texts"):
        return encoders, 0.0
    return encoders, 6 * 4 * 2.0 * n * n * config.model.embed_dim


def lower_bounds(
    made: Assembled, config: ConfigDict, mesh: Mapping[str, int], slices: int = 1
) -> dict[str, float]:
    """Bytes that a device must send along the axes, by axis."""
    bounds: dict[str, float] = {}
    for of in _least_collectives(made, config, mesh, slices):
        bounds[of.axes] = bounds.get(of.axes, 0.0) + of.sent
    return bounds


def _least_collectives(
    made: Assembled, config: ConfigDict, mesh: Mapping[str, int], slices: int
) -> list[Collective]:
    """What any program must send.

    Gradients in float32, once, inside a slice first and of each device's share between
    slices (of the words' table no more than the tokens of a batch); parameters that are split, in the compute dtype, once;
    the embeddings of one side to all devices, and in the backward pass once more with
    their gradient, as a loss with memory linear in the batch needs.
    """
    data, fsdp = mesh["data"], mesh["fsdp"]
    width = jnp.dtype(config.model.dtype).itemsize
    least = []
    params = made.target.variables["params"]
    table = getattr(made.method, "text_encoder", None)
    tokens = config.train.batch_size // (data * fsdp) * config.data.text_length
    gradients = split = 0
    for of in jax.tree.leaves(params):
        local, whole = _local_bytes(of), _bytes(of)
        if table is not None and of.shape == (table.vocab_size, table.dim):
            local, whole = (min(n, tokens * table.dim * 4) for n in (local, whole))
        gradients += local
        split += whole if _is_split(of, "fsdp") else 0
    inside = data // slices
    if inside > 1:
        least.append(Collective("all-reduce", "data", inside, gradients, 1))
    if slices > 1:
        share = gradients // inside
        least.append(Collective("all-reduce", SLICES, slices, share, 1))
    if fsdp > 1:
        least.append(Collective("all-gather", "fsdp", fsdp, int(split * width / 4), 1))
        least.append(Collective("reduce-scatter", "fsdp", fsdp, int(split / fsdp), 1))
    axes = "+".join(axis for axis in ("data", "fsdp") if mesh[axis] > 1)
    if axes and hasattr(made.method, "embed_texts"):
        ways = data * fsdp
        block = config.train.batch_size // ways * config.model.embed_dim * 4
        least.append(
            Collective("collective-permute", axes, ways, block, 3 * (ways - 1))
        )
    return least


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
        _shapes(config, config.train.batch_size),
    )


def _shapes(config: ConfigDict, images: int) -> dict[str, Any]:
    size, length = config.data.image_size, config.data.text_length
    texts = DataOptions.of(config.data).texts_of(images)
    struct = jax.ShapeDtypeStruct
    names = ("ids_BxT", "mask_BxT", "word_ids_BxT")
    return {
        "films": {"current_BxHxWx1": struct((images, size, size, 1), np.uint8)},
        "texts": {name: struct((texts, length), np.int32) for name in names},
        "image_labels_Nx14": struct((images, 14), np.int8),
        "text_labels_Mx14": struct((texts, 14), np.int8),
        "image_weight_N": struct((images,), np.float32),
        "text_weight_M": struct((texts,), np.float32),
    }


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


def _is_split(leaf: jax.ShapeDtypeStruct, axis: str) -> bool:
    return axis in jax.tree.leaves(tuple(leaf.sharding.spec))


def _local_bytes(tree: Any) -> int:
    """Bytes of the part of a tree that one device holds."""
    return sum(
        math.prod(of.sharding.shard_shape(of.shape)) * of.dtype.itemsize
        for of in jax.tree.leaves(tree)
    )


def _bytes(tree: Any) -> int:
    return sum(
        math.prod(of.shape) * getattr(of.dtype, "itemsize", 8)
        for of in jax.tree.leaves(tree)
    )


def _first_line(error: Exception) -> str:
    """The compiler's own words on what it used, without its tables."""
    found = re.search(r"[Uu]sed [^.]*\.\d+\w? of [^.]*\.\d+\w?[^.]*", str(error))
    return "out of memory" + (f": {found[0]}" if found else "")
