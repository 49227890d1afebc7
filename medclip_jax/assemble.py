"""What a config makes of a mesh: the method, where its state lies, and the train step."""

from dataclasses import dataclass
from typing import Any

import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medclip_jax import run as run_lib
from medclip_jax.inputs import augment as augment_lib
from medclip_jax.methods import registry
from medclip_jax.methods.interface import ExampleKeys, Method
from medclip_jax.runtime import gradient_cache
from medclip_jax.runtime import optimizer as optimizer_lib
from medclip_jax.runtime import state as state_lib
from medclip_jax.runtime import step as step_lib
from medclip_jax.runtime.state import TrainState


@dataclass(frozen=True)
class Assembled:
    """Attributes:
    method: of the config.
    target: shapes and shardings of the train state.
    shardings: those alone.
    optimizer: of the parameters.
    whole: dimensions that a rule would have split and that do not divide.
    step: (state, batch) -> (state, metrics), compiled on its first call.
    """

    method: Method
    target: TrainState
    shardings: TrainState
    optimizer: optax.GradientTransformation
    whole: tuple[str, ...]
    step: Any

    def create(self, config: ConfigDict) -> TrainState:
        """The state at step 0, made on the mesh."""
        return state_lib.create(
            run_lib.init_key(config.seed),
            run_lib.initializer(config, self.method),
            self.optimizer,
            self.shardings,
        )


def assemble(config: ConfigDict, mesh: Mesh) -> Assembled:
    """Puts the parts of a config together; nothing is computed yet.

    Raises:
      UserError: a value of the config that does not fit.
    """
    gradient_cache.check([config.train.batch_size], config.train.micro_batches, mesh)
    method = registry.build(config)
    built: dict[str, Any] = {}

    def optimizer_of(params: Any) -> optax.GradientTransformation:
        built["tx"], built["schedule"], built["trained"] = optimizer_lib.build(
            config.optimizer, config.train.steps, params
        )
        return built["tx"]

    target, shardings, optimizer, whole = state_lib.abstract_state(
        run_lib.initializer(config, method), optimizer_of, mesh
    )
    gradient = step_lib.make_gradient(
        method,
        ExampleKeys,
        lambda films, keys: augment_lib.augment(films, keys, config.data),
        config.seed,
        mesh,
        shardings.variables["params"],
        config.train.micro_batches,
    )
    step = step_lib.make_train_step(
        gradient,
        method.after_update,
        optimizer,
        built["schedule"],
        built["trained"],
        mesh,
        shardings,
    )
    return Assembled(method, target, shardings, optimizer, whole, step)
