"""Logistic regression on fixed features: many problems in one compiled program.

Which films a problem is fitted on is a row of weights, so that fractions, seeds and
strengths share the features, are solved together by L-BFGS on the accelerator, and are
split over the devices that there are.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

STEPS = 300
"""At most so many steps of L-BFGS; all problems end once all are at their minimum."""
TOLERANCE = 1e-6
"""A problem is at its minimum when no entry of its gradient is larger: about what
float32 can tell. A coefficient is then within sqrt(F) x TOLERANCE / strength of it."""
MEMORY = 10


@dataclass(frozen=True)
class Heads:
    """The heads of B problems.

    Attributes:
      kernels_BxFxC, biases_BxC: float32, for standardised features.
      gradients_B: the largest entry of each problem's gradient at the end.
    """

    kernels_BxFxC: np.ndarray
    biases_BxC: np.ndarray
    gradients_B: np.ndarray

    def logits(self, features_NxF: np.ndarray) -> np.ndarray:
        """logits_BxNxC of standardised features."""
        return (
            np.einsum("nf,bfc->bnc", features_NxF, self.kernels_BxFxC, optimize=True)
            + self.biases_BxC[:, None]
        )


def solve(
    features_NxF: np.ndarray,
    targets_NxC: np.ndarray,
    counts_NxC: np.ndarray,
    weights_BxN: np.ndarray,
    strengths_B: np.ndarray,
    *,
    exclusive: bool,
    steps: int = STEPS,
) -> Heads:
    """Minimises mean loss + strength / 2 x |kernel|^2 of each problem.

    The mean is over the problem's films, of each label apart. With n films this is
    scikit-learn's LogisticRegression at C = 1 / (strength x n): the bias is free.

    Args:
      features_NxF: float, standardised.
      targets_NxC: 0 or 1.
      counts_NxC: 0 where a label is unknown, else 1.
      weights_BxN: 0 or 1, the films of each problem.
      strengths_B: of the penalty, each above 0.
      exclusive: whether exactly one label holds (softmax), or each by itself
        (sigmoid).
      steps: most steps.

    Returns:
      Host arrays.
    """
    mesh = Mesh(np.asarray(jax.devices()), ("problems",))
    count = len(strengths_B)
    padding = -count % mesh.size
    rows = np.r_[np.arange(count), np.zeros(padding, int)]
    whole = NamedSharding(mesh, PartitionSpec())
    parts = NamedSharding(mesh, PartitionSpec("problems"))

    def place(array: np.ndarray, where: NamedSharding) -> jax.Array:
        host = np.asarray(array, np.float32)
        return jax.make_array_from_callback(host.shape, where, lambda at: host[at])

    kernels, biases, gradients = _solve(
        place(features_NxF, whole),
        place(targets_NxC, whole),
        place(counts_NxC, whole),
        place(np.asarray(weights_BxN)[rows], parts),
        place(np.asarray(strengths_B)[rows], parts),
        exclusive=exclusive,
        steps=steps,
        mesh=mesh,
    )
    return Heads(*(np.asarray(a)[:count] for a in (kernels, biases, gradients)))


@functools.partial(jax.jit, static_argnames=("exclusive", "steps", "mesh"))
def _solve(features_NxF, targets_NxC, counts_NxC, weights_BxN, strengths_B, *,
           exclusive: bool, steps: int, mesh: Mesh):  # fmt: skip
    shape = (features_NxF.shape[1], targets_NxC.shape[1])
    optimizer = optax.lbfgs(
        memory_size=MEMORY, linesearch=optax.scale_by_zoom_linesearch(12)
    )

    def loss(head: dict[str, jax.Array], weights_N: jax.Array, strength: jax.Array):
        logits_NxC = head["bias"] + jnp.matmul(
            features_NxF, head["kernel"], precision=lax.Precision.HIGHEST
        )
        if exclusive:
            losses_NxC = -targets_NxC * jax.nn.log_softmax(logits_NxC)
        else:
            losses_NxC = jax.nn.softplus(logits_NxC) - targets_NxC * logits_NxC
        each_NxC = weights_N[:, None] * counts_NxC
        # The labels that hold of a film share its one loss when they exclude another.
        means_C = (losses_NxC * each_NxC).sum(0) / jnp.maximum(each_NxC.sum(0), 1)
        penalty = strength / 2 * jnp.vdot(head["kernel"], head["kernel"])
        return means_C.sum() + penalty

    def start(weights_N, strength):
        head = {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[1])}
        return head, optimizer.init(head)

    def advance(head: Any, state: Any, weights_N, strength):
        def of(h):
            return loss(h, weights_N, strength)

        value, gradient = optax.value_and_grad_from_state(of)(head, state=state)
        largest = jnp.max(
            jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(gradient)])
        )
        updates, new = optimizer.update(
            gradient, state, head, value=value, grad=gradient, value_fn=of
        )
        done = largest <= TOLERANCE
        keep = functools.partial(jnp.where, done)
        return (
            jax.tree.map(keep, head, optax.apply_updates(head, updates)),
            jax.tree.map(keep, state, new),
            largest,
        )

    def body(carry):
        heads, states, _, step = carry
        moved = jax.vmap(advance)(heads, states, weights_BxN, strengths_B)
        return (*moved, step + 1)

    def going(carry):
        *_, largest_B, step = carry
        return (step < steps) & (largest_B > TOLERANCE).any()

    heads, states = jax.vmap(start)(weights_BxN, strengths_B)
    first = jnp.full(len(strengths_B), jnp.inf)
    heads, _, largest_B, _ = lax.while_loop(going, body, (heads, states, first, 0))
    whole = NamedSharding(mesh, PartitionSpec())
    out = (heads["kernel"], heads["bias"], largest_B)
    return jax.tree.map(lambda a: lax.with_sharding_constraint(a, whole), out)
