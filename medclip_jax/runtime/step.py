"""The one train step of every method.

Randomness: `fold_in(key(seed), step)` is the step's key; each example folds in its
position in the global batch, so a part of a batch draws what the whole would draw.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medclip_jax.errors import UserError
from medclip_jax.runtime import gradient_cache
from medclip_jax.runtime.mesh import BATCH_AXES, batch_sharding, replicated
from medclip_jax.runtime.optimizer import global_norm
from medclip_jax.runtime.state import TrainState

# What a draw is for; folded into a key so that no two uses share one.
_AUGMENT, _IMAGES, _TEXTS, _OBJECTIVE = range(4)

Augment = Callable[[jax.Array, jax.Array], jax.Array]
FILM_SUFFIX = "_BxHxWx1"


def example_keys(key: jax.Array, n: int) -> jax.Array:
    """One typed key an example: [n], folded from the global position."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(n))


def film_keys(films: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """Keys of each `NAME_BxHxWx1`, [B]: an example's films draw with different keys,
    but a film before draws as the current one: what differs is to be what changed."""
    names = sorted(name for name in films if FILM_SUFFIX in name)
    numbers = {
        name: 0 if name.startswith("prior") else n for n, name in enumerate(names)
    }
    return {
        name: example_keys(jax.random.fold_in(key, number), len(films[name]))
        for name, number in numbers.items()
    }


def augment_films(
    films: Mapping[str, jax.Array],
    keys: Mapping[str, jax.Array],
    augment: Augment,
    mesh: Mesh,
) -> dict[str, jax.Array]:
    """Replaces every `NAME_BxHxWx1` uint8 by an augmented `NAME_BxHxWx3` float32."""
    rows = PartitionSpec(BATCH_AXES)
    # Each film is warped by its own gather. Told that rows are local, no compiler
    # pass can decide to gather whole batches for it.
    local = jax.shard_map(
        augment, mesh=mesh, in_specs=(rows, rows), out_specs=rows, check_vma=False
    )
    result = {name: of for name, of in films.items() if name not in keys}
    for name, keys_B in keys.items():
        result[name.replace(FILM_SUFFIX, "_BxHxWx3")] = local(films[name], keys_B)
    return result


def gathered(params: Any, shardings: Any) -> Any:
    """Parameters whole along `fsdp`, as layers need them; gradients split again.

    Left to itself the compiler splits the sums over a split dimension instead, and
    sends activations, many times as large.
    """

    def whole(leaf: jax.Array, where: NamedSharding) -> jax.Array:
        if "fsdp" not in where.spec:
            return leaf
        spec = PartitionSpec(*(None if axis == "fsdp" else axis for axis in where.spec))
        return _moved(leaf, where, NamedSharding(where.mesh, spec))

    return jax.tree.map(whole, params, shardings)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _moved(leaf: jax.Array, here: NamedSharding, there: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, there)


def _moved_forward(leaf, here, there):
    return _moved(leaf, here, there), None


def _moved_back(here, there, _, gradient):
    # Said here, or the sum over the devices would be made whole on each of them.
    return (jax.lax.with_sharding_constraint(gradient, here),)


_moved.defvjp(_moved_forward, _moved_back)


def _sizes(batch: dict[str, Any]) -> tuple[int, int]:
    """Images N and texts M of a batch."""
    n = jax.tree.leaves(batch["films"])[0].shape[0] if batch.get("films") else 0
    m = batch["texts"]["ids_BxT"].shape[0] if batch.get("texts") else 0
    return n, m


class Drawn(NamedTuple):
    """A batch, or a part of one, with the keys that its examples draw with.

    Attributes:
      batch: as the input gives it.
      film_keys: see `film_keys`.
      keys: what `encode` takes.
    """

    batch: dict[str, Any]
    film_keys: dict[str, jax.Array]
    keys: Any


def make_gradient(
    method: Any,
    make_keys: Callable,
    augment: Augment,
    seed: int,
    mesh: Mesh,
    shardings: Any,
    micro_batches: int = 1,
) -> Callable:
    """The loss and its gradient of (params, other collections, batch, step).

    Args:
      method: see `methods/interface.py`.
      make_keys: (keys of images [N], keys of texts [M]) -> what `encode` takes.
      augment: (films uint8 [B, H, W, 1], keys [B]) -> float32 [B, H, W, 3].
      seed: of the run.
      mesh: the mesh.
      shardings: of the parameters.
      micro_batches: into how many parts the batch is cut for the encoders; the result
        is that of the whole batch, see `gradient_cache`.

    Returns:
      A function giving ((loss, (metrics, changed collections)), gradient).

    Raises:
      UserError: a method that cannot be encoded in parts.
    """
    name = type(method).__name__
    if micro_batches > 1 and getattr(method, "reenters_encoder", False):
        raise UserError(
            f"train.micro_batches={micro_batches}: the objective of {name} runs its "
            "encoders again, so embeddings alone do not give its gradient; expected "
            "train.micro_batches=1 with it"
        )

    def draw(batch: dict[str, Any], step: jax.Array) -> tuple[Drawn, jax.Array]:
        """The batch with its keys, and the key of the objective."""
        step_key = jax.random.fold_in(jax.random.key(seed), step)
        uses = [jax.random.fold_in(step_key, use) for use in range(4)]
        n, m = _sizes(batch)
        keys = make_keys(example_keys(uses[_IMAGES], n), example_keys(uses[_TEXTS], m))
        films = film_keys(batch["films"], uses[_AUGMENT])
        return Drawn(batch, films, keys), uses[_OBJECTIVE]

    def encode(params: Any, rest: dict[str, Any], drawn: Drawn):
        films = augment_films(drawn.batch["films"], drawn.film_keys, augment, mesh)
        batch = {**drawn.batch, "films": films}
        variables = {**rest, "params": gathered(params, shardings)}
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return method.encode(variables, batch, drawn.keys, True)

    def objective(variables, features, batch, key, step):
        # A loss that sends blocks round the devices asks what devices there are, as an
        # encoder does that puts examples in another order.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return method.objective(variables, features, batch, key, step)

    def whole(params: Any, rest: dict[str, Any], batch: dict[str, Any], step):
        drawn, key = draw(batch, step)
        features, changed = encode(params, rest, drawn)
        variables = {**rest, "params": params, **changed}
        loss, metrics, more = objective(variables, features, batch, key, step)
        return loss, (metrics, {**changed, **more})

    def in_parts(params: Any, rest: dict[str, Any], batch: dict[str, Any], step):
        drawn, key = draw(batch, step)

        def of_features(params: Any, features: Any):
            variables = {**rest, "params": params}
            loss, metrics, more = objective(variables, features, batch, key, step)
            return loss, (metrics, more)

        return gradient_cache.value_and_gradient(
            lambda params, part: encode(params, rest, part),
            of_features,
            params,
            drawn,
            _sizes(batch),
            micro_batches,
            mesh,
        )

    return in_parts if micro_batches > 1 else jax.value_and_grad(whole, has_aux=True)


def make_train_step(
    gradient: Callable,
    after_update: Callable,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    trained: Any,
    mesh: Mesh,
    shardings: TrainState,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Compiles-on-first-call (state, batch) -> (state, metrics); the state is donated.

    Args:
      gradient: of `make_gradient`.
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
        (loss, (metrics, changed)), grads = gradient(params, rest, batch, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        variables = {**rest, **changed, "params": optax.apply_updates(params, updates)}
        variables = after_update(variables, state.step)
        kept = jax.tree.map(lambda g, keep: g if keep else None, grads, trained)
        metrics = {
            **metrics,
            "loss": loss,
            "grad_norm": global_norm(kept),
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
