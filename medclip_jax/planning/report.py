"""A plan as text and as JSON."""

from typing import Any

from medclip_jax import __version__
from medclip_jax.planning.estimate import Plan, seconds
from medclip_jax.runtime.hlo import SLICES
from medclip_jax.runtime.topology import GIB, Topology

_MOST_LINES = 8


def describe(plan: Plan, config: str, topology: Topology) -> str:
    """The plan as a page of text."""
    by = "of the compiled step" if plan.is_compiled else "counted, not compiled"
    lines = [
        f"{config} on {_named(topology)}: {plan.batch_size:,} pairs a step",
        f"mesh {_mesh(plan.mesh)}; figures are of one device, {by}",
        "",
        *_memory(plan),
    ]
    if plan.peak is not None:
        lines += ["", *_time(plan), "", *_traffic(plan)]
    if plan.compile_s is not None:
        lines += ["", f"compiled in {plan.compile_s:.0f} s"]
    if plan.advice:
        lines += ["", "It does not fit. One of these, or several, would help:"]
        lines += [f"  - {advice}" for advice in plan.advice]
    return "\n".join(lines)


def _memory(plan: Plan) -> list[str]:
    whole = f"{plan.capacity / GIB:.1f} GiB"
    if plan.peak is None:
        head = f"memory       more than {whole}: does not fit"
    else:
        share = 100 * plan.peak / plan.capacity
        verdict = "fits" if plan.fits else "does not fit"
        head = (
            f"memory       {plan.peak / GIB:8.2f} GiB of {whole} ({share:.0f} %): "
            f"{verdict}"
        )
    lines = [
        head,
        f"  parameters {plan.parameters / GIB:8.2f} GiB",
        f"  optimizer  {plan.optimizer / GIB:8.2f} GiB",
    ]
    if plan.peak is not None:
        rest = plan.peak - plan.parameters - plan.optimizer
        lines.append(
            f"  the rest   {rest / GIB:8.2f} GiB  activations, gradients, batch"
        )
    return lines


def _time(plan: Plan) -> list[str]:
    flops = plan.encoder_flops + plan.loss_flops
    share = 100 * plan.loss_flops / flops
    lines = [
        _line("step", plan.step_s) + f" at least: {plan.pairs_per_second:,.0f} pairs a "
        f"second, MFU {100 * plan.mfu:.0f} % at most",
        _line("  compute", plan.compute_s) + f"  {flops / 1e12:.3g} TFLOP at the bf16 "
        f"peak, {share:.1f} % of them the loss's",
        _line("  memory", plan.memory_s)
        + f"  {plan.memory_bytes / 1e9:.3g} GB read and written",
        _line("  network", plan.network_s),
    ]
    if plan.compiler_s is not None:
        chip = plan.topology.chip
        mfu = plan.encoder_flops * chip.devices / chip.flops / plan.compiler_s
        lines.append(
            _line("  compiler", plan.compiler_s) + "  its own estimate, one "
            f"instruction after another: MFU {100 * mfu:.0f} %"
        )
    return lines


def _line(what: str, seconds: float) -> str:
    return f"{what:<13}{1e3 * seconds:8.2f} ms"


def _traffic(plan: Plan) -> list[str]:
    if not plan.collectives:
        return ["nothing is sent between devices"]
    lines = [
        "sent           along        devices   each       times   MB sent       ms",
    ]
    for of in plan.collectives[:_MOST_LINES]:
        took = 1e3 * seconds(of, plan.topology)
        lines.append(
            f"  {of.kind:<19}{of.axes:<12}{of.devices:>5}{_size(of.bytes):>11}"
            f"{of.times:>8}{of.sent / 1e6:>10.1f}{took:>9.2f}"
        )
    if rest := plan.collectives[_MOST_LINES:]:
        sent = sum(of.sent for of in rest) / 1e6
        lines.append(f"  {len(rest)} more, smaller: {sent:.1f} MB")
    between = [("between slices", True)] if plan.topology.slices > 1 else []
    for where, is_between in [("between chips", False), *between]:
        sent = sum(
            of.sent for of in plan.collectives if (of.axes == SLICES) is is_between
        )
        least = sum(
            count for axes, count in plan.bounds.items()
            if (axes == SLICES) is is_between
        )  # fmt: skip
        lines.append(
            f"  {where}: {sent / 1e6:,.1f} MB, of which {least / 1e6:,.1f} MB any "
            "program must send"
        )
    return lines


def as_json(plan: Plan, config: str, topology: Topology) -> dict[str, Any]:
    """Every figure, in bytes, operations and seconds of one device."""
    return {
        "medclip_jax": __version__,
        "config": config,
        "topology": topology.name,
        "slices": topology.slices,
        "chips": topology.chips,
        "mesh": plan.mesh,
        "batch_size": plan.batch_size,
        "compiled": plan.is_compiled,
        "fits": plan.fits,
        "peak_bytes": plan.peak,
        "capacity_bytes": plan.capacity,
        "parameter_bytes": plan.parameters,
        "optimizer_bytes": plan.optimizer,
        "encoder_flops": plan.encoder_flops,
        "loss_flops": plan.loss_flops,
        "memory_bytes": plan.memory_bytes,
        "step_seconds_at_least": plan.step_s,
        "compute_seconds": plan.compute_s,
        "memory_seconds": plan.memory_s,
        "network_seconds": plan.network_s,
        "compiler_seconds": plan.compiler_s,
        "mfu_at_most": plan.mfu,
        "pairs_per_second_at_most": plan.pairs_per_second,
        "collectives": [
            {
                "kind": of.kind,
                "axes": of.axes,
                "devices": of.devices,
                "bytes": of.bytes,
                "times": of.times,
                "sent_bytes": of.sent,
            }
            for of in plan.collectives
        ],
        "sent_bytes_at_least": plan.bounds,
        "compile_seconds": plan.compile_s,
        "advice": list(plan.advice),
    }


def describe_search(plans: list[Plan], config: str, topology: Topology) -> str:
    """The meshes that were tried, the fastest first."""
    if not plans:
        return (
            f"{config} on {_named(topology)}: not even one pair a device fits on any "
            "mesh. Take chips with more memory, a smaller model, or "
            "--config.model.remat=true."
        )
    lines = [
        f"{config} on {_named(topology)}: the largest batch by mesh, the fastest first",
        "",
        "mesh                               batch   GiB used   step ms   pairs/s   from",
    ]
    for plan in plans:
        assert plan.peak is not None
        lines.append(
            f"{_mesh(plan.mesh):<31}{plan.batch_size:>9,}{plan.peak / GIB:>11.1f}"
            f"{1e3 * _expected(plan):>10.1f}{plan.batch_size / _expected(plan):>10,.0f}"
            f"   {'compiled' if plan.compile_s is not None else 'counted'}"
        )
    best = plans[0]
    options = [f"--config.train.batch_size={best.batch_size}"]
    options += [f"--config.mesh.{axis}={size}" for axis, size in best.mesh.items()]
    told = f"best, as `train` takes it: {' '.join(options)}"
    return "\n".join([*lines, "", told, "", describe(best, config, topology)])


def search_as_json(plans: list[Plan], config: str, topology: Topology) -> Any:
    """The plans of a search, the fastest first."""
    return {"plans": [as_json(plan, config, topology) for plan in plans]}


def _expected(plan: Plan) -> float:
    """Seconds of a step: the compiler's estimate where there is one."""
    return max(plan.step_s, plan.compiler_s or 0.0)


def _named(topology: Topology) -> str:
    slices = f" x {topology.slices} slices" if topology.slices > 1 else ""
    chips = f"{topology.chips:,} chip{'s' * (topology.chips != 1)}"
    return f"{topology.name}{slices} ({chips})"


def _mesh(mesh: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items())


def _size(count: int) -> str:
    for unit, scale in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
