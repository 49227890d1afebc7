"""Time and memory of the contrastive losses, as one matrix of logits and in rounds.

    python -m benchmarks.loss
    python -m benchmarks.loss --losses semantic --pairs 65536 --forms rounds
    python -m benchmarks.loss --topology v5e:2x4 --pairs 32768
    python -m benchmarks.loss --topology v5p:8x8x8 --pairs 1048576 --forms rounds

Value and gradient by embeddings and scale, of random unit vectors in float32, products
at the highest precision. Each row is a process of its own, so that memory is its alone:
the process's highest resident size, and on a GPU the device's. With --topology nothing
runs: the TPU compiler, which `pip install '.[tpu]'` brings and which needs no TPU, tells
the highest memory of a chip, arguments and results included, and its own estimate of the
seconds.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

LOSSES = ("infonce", "sigmoid", "semantic", "semantic_dot")
FORMS = ("dense", "rounds")
LABELS = 14


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = out.add_argument
    add("--losses", nargs="+", choices=LOSSES, default=["infonce", "semantic"])
    add("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    add("--pairs", nargs="+", type=int, default=[1024, 2048, 4096, 8192, 16384])
    add("--dim", type=int, default=512, help="width of the embeddings (default 512)")
    add("--repeats", type=int, default=3, help="after a first one (default 3)")
    add("--topology", default="", help="compile for this TPU topology instead")
    add("--row", default="", help=argparse.SUPPRESS)
    return out


def measure(loss: str, form: str, pairs: int, args: argparse.Namespace) -> dict:
    """One row, in this process."""
    if args.topology:
        os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp

    from medclip_jax import losses
    from medclip_jax.losses import ring
    from medclip_jax.planning import estimate
    from medclip_jax.runtime import mesh as mesh_lib
    from medclip_jax.runtime import topology as topology_lib
    from medclip_jax.runtime.hlo import Program

    ring.FROM_LOGITS = 0 if form == "rounds" else sys.maxsize

    def value(images, texts, scale, image_labels, text_labels):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            if loss == "infonce":
                return losses.infonce_loss(images, texts, scale)
            if loss == "sigmoid":
                return losses.sigmoid_loss(images, texts, scale, -10.0)
            return losses.semantic_matching_loss(
                images,
                texts,
                image_labels,
                text_labels,
                scale,
                target="dot" if loss == "semantic_dot" else "cosine",
            )

    if args.topology:
        topology = topology_lib.parse(args.topology)
        mesh = topology.mesh({"data": -1})
    else:
        mesh = mesh_lib.make_mesh({"data": -1})
    rows, whole = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    shapes = [
        (pairs, args.dim),
        (pairs, args.dim),
        (),
        (pairs, LABELS),
        (pairs, LABELS),
    ]
    where = [whole if not shape else rows for shape in shapes]
    program = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))
    abstract = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)
        for shape, place in zip(shapes, where, strict=True)
    ]
    started = time.perf_counter()
    compiled = program.lower(*abstract).compile()
    row = {"compile_s": time.perf_counter() - started, "devices": mesh.size}
    if args.topology:
        memory = compiled.memory_analysis()
        cycles = Program(compiled.as_text()).cycles()
        return row | {
            "seconds": cycles / estimate.clock(mesh, topology),
            "peak_mib": memory.peak_memory_in_bytes / 2**20,
        }

    def draw(key, images, texts, labels):
        return (
            *(
                x / jnp.linalg.norm(x, axis=1, keepdims=True)
                for x in (
                    jax.random.normal(jax.random.fold_in(key, n), shape)
                    for n, shape in enumerate((images, texts))
                )
            ),
            jnp.float32(14.0),
            *(
                jax.random.bernoulli(jax.random.fold_in(key, 2 + n), 0.15, labels) * 1.0
                for n in range(2)
            ),
        )

    made = jax.jit(
        lambda key: draw(key, shapes[0], shapes[1], shapes[3]),
        out_shardings=tuple(where),
    )(jax.random.key(0))
    seconds = []
    for _ in range(args.repeats + 1):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*made))
        seconds.append(time.perf_counter() - started)
    device = mesh.devices.ravel()[0]
    stats = device.memory_stats() or {}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return row | {
        "seconds": statistics.median(seconds[1:] or seconds),
        "device": device.device_kind,
        "resident_mib": resident,
        "peak_mib": stats.get("peak_bytes_in_use", resident * 2**20) / 2**20,
    }


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.row:
        loss, form, pairs = args.row.split(",")
        print(json.dumps(measure(loss, form, int(pairs), args)))
        return 0
    print("| loss | pairs | devices | form | seconds | peak MiB | compile s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for loss in args.losses:
        for pairs in args.pairs:
            for form in args.forms:
                row = run_row(f"{loss},{form},{pairs}", args)
                if isinstance(row, str):
                    print(f"| {loss} | {pairs:,} | | {form} | {row} | | |", flush=True)
                    continue
                seconds = f"{row['seconds']:.4f}" if "seconds" in row else ""
                print(
                    f"| {loss} | {pairs:,} | {row['devices']} | {form} | {seconds} | "
                    f"{row['peak_mib']:,.0f} | {row['compile_s']:.1f} |",
                    flush=True,
                )
    return 0


def run_row(row: str, args: argparse.Namespace) -> dict | str:
    """A row measured in a process of its own, or why it ended."""
    command = [sys.executable, "-m", "benchmarks.loss", "--row", row]
    command += ["--dim", str(args.dim), "--repeats", str(args.repeats)]
    command += ["--topology", args.topology]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        memory = [line for line in lines if "RESOURCE_EXHAUSTED" in line]
        killed = f"ended by signal {-done.returncode}" if done.returncode < 0 else ""
        return "does not fit" if memory else killed or lines[-1]
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    raise SystemExit(main())
