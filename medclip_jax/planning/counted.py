"""What follows from the model and the mesh alone, without compiling anything."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from medclip_jax import run as run_lib
from medclip_jax.assemble import Assembled
from medclip_jax.inputs.options import DataOptions
from medclip_jax.methods.interface import ExampleKeys
from medclip_jax.runtime.hlo import SLICES, Collective


def flops_of(made: Assembled, config: ConfigDict) -> tuple[float, float]:
    """Operations of one step over all devices: of the encoders, and of the loss.

    Encoders: 3 x forward. Loss: see `loss_flops` of the method.
    """
    n, spec = config.train.batch_size, run_lib.spec(config)
    encoders = 3.0 * made.method.forward_flops(spec) * n
    return encoders, made.method.loss_flops(spec, n)


def lower_bounds(
    made: Assembled, config: ConfigDict, mesh: Mapping[str, int], slices: int = 1
) -> dict[str, float]:
    """Bytes that a device must send along the axes, by axis."""
    bounds: dict[str, float] = {}
    for of in least_collectives(made, config, mesh, slices):
        bounds[of.axes] = bounds.get(of.axes, 0.0) + of.sent
    return bounds


def least_collectives(
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
        local, whole = local_bytes(of), _bytes(of)
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


def kept_bytes(made: Assembled, config: ConfigDict, rows: int) -> float:
    """Bytes that the backward pass of the encoders keeps for so many pairs.

    What one pair adds, times the pairs; and what is kept once, such as parameters in
    the compute dtype. What a layer that is recomputed holds meanwhile is not in it.
    """
    one, two = (_vjp_bytes(made, config, n) for n in (1, 2))
    params = _bytes(made.target.variables["params"])
    # The parameters are among what is kept once; they are there anyway.
    return (two - one) * rows + max(0, 2 * one - two - params)


def _vjp_bytes(made: Assembled, config: ConfigDict, rows: int) -> int:
    batch = dict(batch_shapes(config, rows))
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


def batch_shapes(config: ConfigDict, images: int) -> dict[str, Any]:
    """Shapes and dtypes of a batch of so many images, as the reader gives it."""
    size, length = config.data.image_size, config.data.text_length
    struct = jax.ShapeDtypeStruct
    options = DataOptions.of(config.data)
    texts = options.texts_of(images)
    tokens = ("ids_BxT", "mask_BxT", "word_ids_BxT")
    names = [f"{of}{name}" for of in options.texts for name in tokens]
    films = {
        f"{name}_BxHxWx1": struct((images, size, size, 1), np.uint8)
        for name in options.films
    }
    if not films:
        images = 0
    if "prior_BxHxWx1" in films:
        films["has_prior_B"] = struct((images,), np.bool_)
    return {
        "films": films,
        "texts": {name: struct((texts, length), np.int32) for name in names},
        "image_labels_Nx14": struct((images, 14), np.int8),
        "text_labels_Mx14": struct((texts, 14), np.int8),
        "image_weight_N": struct((images,), np.float32),
        "text_weight_M": struct((texts,), np.float32),
    }


def _is_split(leaf: jax.ShapeDtypeStruct, axis: str) -> bool:
    return axis in jax.tree.leaves(tuple(leaf.sharding.spec))


def local_bytes(tree: Any) -> int:
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
