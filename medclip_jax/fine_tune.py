"""Trains an image tower further with a head for a task: labels, or a decoder of masks.

The one train step: first a new head alone on the frozen tower, then everything; the
learning rate is halved where validation stands still, and the best checkpoint by
validation is judged.

Reference: Zhang et al. (ConVIRT, arXiv 2010.00747), section 4.1 and appendix B, which
states no augmentation for classification: there is none here.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.evaluation.embedding import Embedder
from medclip_jax.evaluation.mask_decoder import Decoder, mixed_loss
from medclip_jax.evaluation.tuning import Labels, Tuned, Tuning
from medclip_jax.inputs import augment
from medclip_jax.methods.interface import ExampleKeys, Variables
from medclip_jax.methods.segmenter import Segmenter
from medclip_jax.methods.supervised import Supervised, tower_of
from medclip_jax.runtime import optimizer as optimizer_lib
from medclip_jax.runtime import state as state_lib
from medclip_jax.runtime import step as step_lib
from medclip_jax.runtime.mesh import place_batch, replicated
from medclip_jax.runtime.state import TrainState

BATCH = 64
DROPOUT = 0.2
HEAD_RATE, RATE, WEIGHT_DECAY = 1e-3, 1e-4, 1e-6
HEAD_STEPS, HEAD_SHARE = 200, 0.2
"""Steps of the head alone; of a short training, at most this share."""
HALVE_AFTER, STOP_AFTER = 3, 10
"""Validations without improvement."""
CHECKS = 20
"""An epoch of few films is shorter than a twentieth of the steps: validation then comes
only so many times in a training."""
LABELS, MASKS = "image_labels_NxC", "masks_BxSxS"
_TOWER = ("image/encoder/.*",)
_FIXED = ("image/decoder/(middle|spread)_F",)
"""Without a gradient; the optimizer's weight decay alone would move them."""


@dataclasses.dataclass(frozen=True)
class _Phase:
    """One compiled training: how it steps, and what it holds."""

    step: Callable
    optimizer: optax.GradientTransformation
    shardings: TrainState


class Tuner:
    """Fine-tunes the image tower of a run's model; compiles once for each head.

    Args:
      run: the run whose tower, films and mesh they are.
      batch_size: films a step; rounded up to what the mesh divides.
      say: told how long it takes; by default it goes to stderr.
    """

    def __init__(
        self,
        run: run_lib.Run,
        batch_size: int = BATCH,
        say: Callable[[str], None] | None = None,
    ):
        mesh = run.mesh.shape
        ways = mesh["data"] * mesh["fsdp"]
        self.batch_size = -(-batch_size // ways) * ways
        self._run = run
        self._say = say or functools.partial(print, file=sys.stderr, flush=True)
        self._made: dict[Labels | Decoder, tuple] = {}

    def __call__(self, of: Tuning) -> Tuned:
        """Trains once.

        Raises:
          UserError: the start's tower is not that of the run.
        """
        began = time.perf_counter()
        method, warm, full, embedder = self._of(of.head)
        variables = self._start(method, of)
        warm_steps = min(HEAD_STEPS, int(HEAD_SHARE * of.steps))
        if of.head_params is not None:
            warm_steps = 0
        batches = self._batches(of)
        # The step counts what is drawn: each seed has its own numbers.
        number = of.seed * 1_000_003
        state = self._state(warm, variables, number)
        for _ in range(warm_steps):
            state, _ = warm.step(state, next(batches))
        state = self._state(full, state.variables, number + warm_steps)
        period = max(-(-len(of.train) // self.batch_size), -(-of.steps // CHECKS))

        validate = list(of.films.read(of.validate))
        first = float("-inf")
        if of.head_params is not None:  # the start is a candidate
            logits = embedder.class_logits(state.variables, validate)
            first = of.score(told(logits, of.head))
        best = first, warm_steps, jax.device_get(state.variables)
        waited, factor, step = 0, 1.0, warm_steps
        while step < of.steps:
            for _ in range(min(period, of.steps - step)):
                state, metrics = full.step(state, next(batches))
                step += 1
            if not np.isfinite(float(metrics["loss"])):
                break  # what was best before it stands
            logits = embedder.class_logits(state.variables, validate)
            score = of.score(told(logits, of.head))
            if score > best[0]:
                best = score, step, jax.device_get(state.variables)
                waited = 0
                continue
            waited += 1
            if waited >= STOP_AFTER:
                break
            if waited % HALVE_AFTER == 0:
                factor /= 2
                state = self._scaled(state, factor)
        placed = jax.device_put(best[2], full.shardings.variables)
        logits = embedder.class_logits(placed, of.films.read(of.test))
        seconds = time.perf_counter() - began
        left = (of.of - of.number) * seconds / 60
        self._say(
            f"fine-tuning {of.number} of {of.of} from {of.start.name}: {step} steps on "
            f"{len(of.train)} films in {seconds:.0f} s, about {left:.0f} min to go"
        )
        return Tuned(told(logits, of.head), best[0], step, best[1])

    def _of(self, head: Labels | Decoder):
        if head not in self._made:
            config = self._run.config
            supervised = Supervised.from_config(config)
            fixed = _FIXED if isinstance(head, Decoder) else ()
            method: Any  # both give `class_logits`, and neither reads text
            if isinstance(head, Decoder):
                method = Segmenter(supervised, head, mixed_loss, label_key=MASKS)
                frozen: Any = dataclasses.replace(
                    method, tower=dataclasses.replace(supervised, frozen=True)
                )
            else:
                method = dataclasses.replace(
                    supervised,
                    uncertain="ignore",
                    not_given="ignore",
                    label_key=LABELS,
                    labels=head.count,
                    exclusive=head.exclusive,
                    dropout=DROPOUT,
                )
                frozen = dataclasses.replace(method, frozen=True)
            normalize = functools.partial(
                augment.normalize, mean=config.data.mean, std=config.data.std
            )
            embedder = Embedder(
                method,
                normalize,
                self._run.tokenizer,
                config.data.text_length,
                self.batch_size,
            )
            self._made[head] = (
                method,
                self._phase(frozen, HEAD_RATE, (*_TOWER, *fixed), normalize),
                self._phase(method, RATE, fixed, normalize),
                embedder,
            )
        return self._made[head]

    def _phase(self, method: Any, rate: float, frozen, normalize) -> _Phase:
        settings = {
            "name": "adam",
            "learning_rate": rate,
            "warmup_fraction": 0.0,
            "schedule": "constant",
            "weight_decay": WEIGHT_DECAY,
            "decay_rules": ((".*", 1.0),),
            "frozen": frozen,
        }
        made: dict[str, Any] = {}

        def build(params):
            base, made["schedule"], made["trained"] = optimizer_lib.build(
                settings, 1, params
            )
            return optax.chain(base, optax.inject_hyperparams(optax.scale)(1.0))

        mesh = self._run.mesh
        _, shardings, optimizer, _ = state_lib.abstract_state(
            lambda key: method.init(key, run_lib.spec(self._run.config)), build, mesh
        )
        gradient = step_lib.make_gradient(
            method,
            ExampleKeys,
            lambda films, keys: normalize(films),
            0,
            mesh,
            shardings.variables["params"],
        )
        step = step_lib.make_train_step(
            gradient, method.after_update, optimizer, made["schedule"], made["trained"],
            mesh, shardings,
        )  # fmt: skip
        return _Phase(step, optimizer, shardings)

    def _start(self, method: Any, of: Tuning) -> Variables:
        """A new head, or the one that is given, on the start's tower."""
        config, mesh = self._run.config, self._run.mesh
        variables = state_lib.create_variables(
            run_lib.init_key(of.seed),
            lambda key: method.init(key, run_lib.spec(config)),
            mesh,
        )
        given = jax.tree.map(np.asarray, tower_of(of.start.variables))
        if of.head_params is not None:
            params = jax.tree.map(np.asarray, dict(of.head_params))
            name = "decoder" if isinstance(of.head, Decoder) else "classifier"
            given["params"]["image"][name] = params
        variables, unfit = state_lib.replace_leaves(variables, given)
        if unfit:
            raise UserError(
                f"fine-tuning from {of.start.name}: expected the image tower of "
                f"{self._run.workdir}, found another:\n  " + "\n  ".join(unfit)
            )
        return variables

    def _state(self, phase: _Phase, variables: Variables, step: int) -> TrainState:
        opt_state = jax.jit(
            phase.optimizer.init, out_shardings=phase.shardings.opt_state
        )(variables["params"])
        count = jax.device_put(jnp.asarray(step, jnp.int32), replicated(self._run.mesh))
        return TrainState(count, variables, opt_state)

    def _scaled(self, state: TrainState, factor: float) -> TrainState:
        base, scale = state.opt_state
        value = jnp.asarray(factor, scale.hyperparams["step_size"].dtype)
        placed = jax.device_put(value, replicated(self._run.mesh))
        scale = scale._replace(hyperparams={**scale.hyperparams, "step_size": placed})
        return TrainState(state.step, state.variables, (base, scale))

    def _batches(self, of: Tuning) -> Iterator[dict[str, Any]]:
        """Batches without end: every film once an epoch, in an order of the seed."""
        rng = np.random.default_rng([of.seed, 71])
        held = np.zeros(0, np.int64)
        while True:
            while len(held) < self.batch_size:
                held = np.concatenate([held, rng.permutation(len(of.train))])
            rows, held = held[: self.batch_size], held[self.batch_size :]
            # Reading is fastest in order, and each film is read once.
            distinct, place = np.unique(of.train[rows], return_inverse=True)
            films = np.concatenate(list(of.films.read(distinct)))[place]
            batch = {
                "films": {"current_BxHxWx1": films},
                MASKS if isinstance(of.head, Decoder) else LABELS: of.targets[rows],
                "image_weight_N": np.ones(len(rows), np.float32),
            }
            yield place_batch(batch, self._run.mesh)


def told(logits: np.ndarray, head: Labels | Decoder) -> np.ndarray:
    """What a head says: probabilities float64 [N, C], or masks bool [N, S, S]."""
    if isinstance(head, Decoder):
        return logits > 0
    logits_NxC = np.asarray(logits, np.float64)
    if not head.exclusive:
        return 1 / (1 + np.exp(-np.clip(logits_NxC, -500, 500)))
    raised = np.exp(logits_NxC - logits_NxC.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)
