"""The train state, made in place on the mesh.

No process ever holds the whole state: its shapes come from abstract evaluation, its
shardings from the logical names, and the initialiser is compiled with them.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from medclip_jax.runtime import sharding as sharding_lib
from medclip_jax.runtime.mesh import replicated


@flax.struct.dataclass
class TrainState:
    """All that a checkpoint holds on the device.

    Attributes:
      step: int32 scalar, updates done so far; with the seed it is the whole state of
        the input and of the randomness.
      variables: collections of the method, "params" among them, unboxed.
      opt_state: of optax.
    """

    step: Any  # an array, or its shape or sharding in a tree of those
    variables: dict[str, Any]
    opt_state: Any


def _compile_once(function: Callable, shardings: Any) -> Callable:
    """Compiles code that runs a single time: half the time to compile on a CPU."""
    on_cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 1} if on_cpu else None
    return jax.jit(function, out_shardings=shardings, compiler_options=options)


def unboxed_init(
    init: Callable[[jax.Array], dict[str, Any]],
) -> Callable[[jax.Array], dict[str, Any]]:
    """A method's `init` without the boxes that carry the logical names."""
    return lambda key: nn.meta.unbox(init(key))


def abstract_state(
    init: Callable[[jax.Array], dict[str, Any]],
    tx: Callable[[Any], optax.GradientTransformation],
    mesh: Mesh,
) -> tuple[TrainState, TrainState, optax.GradientTransformation, tuple[str, ...]]:
    """Shapes and shardings of the state, without making it.

    Args:
      init: key -> boxed variables.
      tx: abstract parameters -> optimizer.
      mesh: the mesh.

    Returns:
      The state as ShapeDtypeStructs with shardings; the tree of shardings alone; the
      optimizer; the dimensions that a rule could not split (`sharding.Plan`).
    """
    boxed = jax.eval_shape(init, jax.random.key(0))
    plan = sharding_lib.plan(boxed, mesh)
    variables = nn.meta.unbox(boxed)
    optimizer = tx(variables["params"])
    opt_state = jax.eval_shape(optimizer.init, variables["params"])
    shapes = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        variables=variables,
        opt_state=opt_state,
    )
    shardings = TrainState(
        step=replicated(mesh),
        variables=plan.shardings,
        opt_state=sharding_lib.like_params(
            opt_state, variables["params"], plan.shardings["params"], mesh
        ),
    )
    target = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        shapes,
        shardings,
    )
    return target, shardings, optimizer, plan.replicated


def create(
    key: jax.Array,
    init: Callable[[jax.Array], dict[str, Any]],
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
) -> TrainState:
    """Initialises every leaf on the devices where it lives.

    Args:
      key: typed key of the run's seed.
      init: key -> boxed variables.
      optimizer: of the parameters.
      shardings: from `abstract_state`.

    Returns:
      The state at step 0.
    """

    def make(key: jax.Array) -> TrainState:
        variables = unboxed_init(init)(key)
        opt_state = optimizer.init(variables["params"])
        return TrainState(jnp.zeros((), jnp.int32), variables, opt_state)

    return _compile_once(make, shardings)(key)


def create_variables(
    key: jax.Array, init: Callable[[jax.Array], dict[str, Any]], mesh: Mesh
) -> dict[str, Any]:
    """The variables alone, for evaluation and export.

    Returns:
      Unboxed variables, sharded on the mesh.
    """
    plan = sharding_lib.plan(jax.eval_shape(init, jax.random.key(0)), mesh)
    return _compile_once(unboxed_init(init), plan.shardings)(key)


def replace_leaves(
    variables: dict[str, Any], new: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Puts host arrays in place of the leaves of the same name and shape.

    Args:
      variables: variables on the devices.
      new: nested dict of numpy arrays; a part of `variables`' tree.

    Returns:
      The variables, and "name: why" of every leaf of `new` that does not fit (those
      leaves keep their value).
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(variables)
    names = [sharding_lib.leaf_name(path) for path, _ in flat]
    given = {
        sharding_lib.leaf_name(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(new)[0]
    }
    unfit = [f"{name}: no such parameter" for name in given if name not in names]
    leaves = []
    for name, (_, leaf) in zip(names, flat, strict=True):
        value = given.get(name)
        if value is not None and value.shape != leaf.shape:
            unfit.append(f"{name}: found {value.shape}, expected {leaf.shape}")
            value = None
        if value is None:
            leaves.append(leaf)
            continue
        host = value.astype(leaf.dtype)
        leaves.append(
            jax.make_array_from_callback(leaf.shape, leaf.sharding, host.__getitem__)
        )
    return jax.tree.unflatten(treedef, leaves), unfit
