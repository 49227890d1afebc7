"""The one train step of every method.

Randomness: `fold_in(key(seed), step)` is the step's key; each example folds in its
position in the global batch, so a part of a batch draws what the whole would draw.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from medclip_jax.runtime.mesh import BATCH_AXES, batch_sharding, replicated
from medclip_jax.runtime.state import TrainState

# What a draw is for; folded into a key so that no two uses share one.
_AUGMENT, _IMAGES, _TEXTS, _OBJECTIVE = range(4)

Augment = Callable[[jax.Array, jax.Array], jax.Array]
FILM_SUFFIX = "_BxHxWx1"


def example_keys(key: jax.Array, n: int) -> jax.Array:
    """One typed key an example: [n], folded from the global position."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(n))


def augment_films(
    films: dict[str, jax.Array], key: jax.Array, augment: Augment, mesh: Mesh
) -> dict[str, jax.Array]:
    """Replaces every `NAME_BxHxWx1` uint8 by an augmented `NAME_BxHxWx3` float32.

    The films of one example (current, lateral, prior) draw with different keys.
    """
    rows = PartitionSpec(BATCH_AXES)
    # Each film is warped by its own gather. Told that rows are local, no compiler
    # pass can decide to gather whole batches for it.
    local = jax.shard_map(
        augment, mesh=mesh, in_specs=(rows, rows), out_specs=rows, check_vma=False
    )
    result = {name: value for name, value in films.items() if FILM_SUFFIX not in name}
    for number, name in enumerate(sorted(n for n in films if FILM_SUFFIX in n)):
        keys_B = example_keys(jax.random.fold_in(key, number), films[name].shape[0])
        result[name.replace(FILM_SUFFIX, "_BxHxWx3")] = local(films[name], keys_B)
    return result


def _sizes(batch: dict[str, Any]) -> tuple[int, int]:
    """Images N and texts M of a batch."""
    n = jax.tree.leaves(batch["films"])[0].shape[0] if batch.get("films") else 0
    m = batch["texts"]["ids_BxT"].shape[0] if batch.get("texts") else 0
    return n, m


def make_loss(
    method: Any, make_keys: Callable, augment: Augment, seed: int, mesh: Mesh
) -> Callable:
    """Loss of (params, other collections, batch, step), for `jax.value_and_grad`.

    Args:
      method: see `methods/interface.py`.
      make_keys: (keys of images [N], keys of texts [M]) -> what `encode` takes.
      augment: (films uint8 [B, H, W, 1], keys [B]) -> float32 [B, H, W, 3].
      seed: of the run.
      mesh: the mesh.

    Returns:
      A function giving (loss, (metrics, changed collections)).
    """

    def loss_fn(params: Any, rest: dict[str, Any], batch: dict[str, Any], step):
        step_key = jax.random.fold_in(jax.random.key(seed), step)
        draw = [jax.random.fold_in(step_key, use) for use in range(4)]
        n, m = _sizes(batch)
        batch = {
            **batch,
            "films": augment_films(batch["films"], draw[_AUGMENT], augment, mesh),
        }
        keys = make_keys(example_keys(draw[_IMAGES], n), example_keys(draw[_TEXTS], m))
        variables = {**rest, "params": params}
        features, changed = method.encode(variables, batch, keys, True)
        variables = {**variables, **changed}
        loss, metrics, more = method.objective(
            variables, features, batch, draw[_OBJECTIVE], step
        )
        return loss, (metrics, {**changed, **more})

    return loss_fn


def make_train_step(
    loss_fn: Callable,
    after_update: Callable,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    trained: Any,
    mesh: Mesh,
    shardings: TrainState,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Compiles-on-first-call (state, batch) -> (state, metrics); the state is donated.

    Args:
      loss_fn: of `make_loss`.
      after_update: of the method.
      optimizer: of the parameters.
      schedule: its learning rate, for the metrics.
      trained: tree of bools like the parameters; the others are frozen.
      mesh: the mesh.
      shardings: of the state.

    Returns:
      The step. Metrics are float32 scalars: `loss`, the method's own, `grad_norm`
      (over trained parameters, before clipping), `learning_rate`.
    """

    def train_step(state: TrainState, batch: Any):
        rest = {k: v for k, v in state.variables.items() if k != "params"}
        params = state.variables["params"]
        (loss, (metrics, changed)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            params, rest, batch, state.step
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        variables = {**rest, **changed, "params": optax.apply_updates(params, updates)}
        variables = after_update(variables, state.step)
        kept = jax.tree.map(lambda g, keep: g if keep else None, grads, trained)
        metrics = {
            **metrics,
            "loss": loss,
            "grad_norm": optax.global_norm(kept),
            "learning_rate": schedule(state.step),
        }
        metrics = {name: jnp.asarray(v, jnp.float32) for name, v in metrics.items()}
        return TrainState(state.step + 1, variables, opt_state), metrics

    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
