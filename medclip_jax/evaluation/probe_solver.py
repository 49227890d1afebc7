"""Logistic regression on fixed features: many problems in one compiled program.

Which films a problem is fitted on is a row of weights, so that fractions, seeds and
strengths share the features, are solved together on the accelerator, and are split over
the devices that there are. A step of L-BFGS takes three products with the features: along
a direction the logits are linear, so that the best step length costs none.

Reference: Nocedal and Wright, Numerical Optimization, 2nd edition, algorithm 7.4.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

STEPS = 200
"""At most so many steps of L-BFGS; all problems end once all are at their minimum."""
TOLERANCE = 5e-7
"""A problem is at its minimum when no entry of its gradient is larger: about what
float32 can tell. Its coefficients are then within TOLERANCE / strength of the minimum's
in every direction, and mostly far nearer."""
MEMORY = 20
_EXACT = lax.Precision.HIGHEST
SEARCHES = 4


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
      exclusive: whether exactly one label holds of each film that counts (softmax),
        or each by itself (sigmoid).
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


class _Moves(NamedTuple):
    """The last steps of each problem and how its gradient changed, newest last."""

    steps_BxMxD: jax.Array
    changes_BxMxD: jax.Array


@functools.partial(jax.jit, static_argnames=("exclusive", "steps", "mesh"))
def _solve(
    features_NxF, targets_NxC, counts_NxC, weights_BxN, strengths_B, *, exclusive: bool,
    steps: int, mesh: Mesh,
):  # fmt: skip
    (films, width), labels = features_NxF.shape, targets_NxC.shape[1]
    problems, size = len(strengths_B), width * labels + labels
    ones_NxF = jnp.concatenate([features_NxF, jnp.ones((films, 1))], axis=1)
    share_NxBxC = weights_BxN.T[:, :, None] * counts_NxC[:, None]
    share_NxBxC /= jnp.maximum(share_NxBxC.sum(axis=0), 1)
    targets_Nx1xC = targets_NxC[:, None]
    # The bias, which lies last, is not penalised.
    penalty_BxD = strengths_B[:, None] * (jnp.arange(size) < width * labels)

    def product(heads_BxD):
        # One product of matrices for all problems: the features are read once.
        heads = heads_BxD.reshape(problems, width + 1, labels).swapaxes(0, 1)
        flat = heads.reshape(width + 1, problems * labels)
        logits = jnp.matmul(ones_NxF, flat, precision=_EXACT)
        return logits.reshape(films, problems, labels)

    def probabilities(logits_NxBxC):
        if exclusive:
            return jax.nn.softmax(logits_NxBxC)
        return jax.nn.sigmoid(logits_NxBxC)

    def gradient(heads_BxD, logits_NxBxC):
        slopes = share_NxBxC * (probabilities(logits_NxBxC) - targets_Nx1xC)
        flat = slopes.reshape(films, problems * labels)
        loss = jnp.matmul(ones_NxF.T, flat, precision=_EXACT)
        loss = loss.reshape(width + 1, problems, labels).swapaxes(0, 1)
        return loss.reshape(problems, size) + penalty_BxD * heads_BxD

    def step_length(heads_BxD, logits, along, directions_BxD):
        """The minimum along a direction, by Newton's method within a bracket."""
        own = (penalty_BxD * heads_BxD * directions_BxD).sum(1)
        square = (penalty_BxD * directions_BxD**2).sum(1)

        def search(_, bracket):
            low, high, t = bracket
            p = probabilities(logits + t[:, None] * along)
            slope = (share_NxBxC * (p - targets_Nx1xC) * along).sum((0, 2))
            slope += own + t * square
            if exclusive:
                mean = (p * along).sum(2, keepdims=True)
                bend = p * (along - mean) ** 2
            else:
                bend = p * (1 - p) * along**2
            bend = (share_NxBxC * bend).sum((0, 2)) + square
            low, high = jnp.where(slope < 0, t, low), jnp.where(slope < 0, high, t)
            newton = t - slope / jnp.maximum(bend, 1e-30)
            between = jnp.where(jnp.isinf(high), 2 * t, (low + high) / 2)
            inside = (newton > low) & (newton < high)
            return low, high, jnp.where(inside, newton, between)

        zero, one = jnp.zeros(problems), jnp.ones(problems)
        return lax.fori_loop(0, SEARCHES, search, (zero, zero + jnp.inf, one))[2]

    def direction(gradient_BxD, moves: _Moves):
        """Algorithm 7.4; a move not yet made is zero and changes nothing."""
        products = (moves.steps_BxMxD * moves.changes_BxMxD).sum(2)
        rho = jnp.where(products > 0, 1 / jnp.where(products > 0, products, 1), 0)

        def down(i, carry):
            q, alphas = carry
            m = MEMORY - 1 - i
            alpha = rho[:, m] * (moves.steps_BxMxD[:, m] * q).sum(1)
            return q - alpha[:, None] * moves.changes_BxMxD[:, m], alphas.at[:, m].set(
                alpha
            )

        q, alphas = lax.fori_loop(
            0, MEMORY, down, (gradient_BxD, jnp.zeros((problems, MEMORY)))
        )
        squares = (moves.changes_BxMxD[:, -1] ** 2).sum(1)
        scale = jnp.where(
            products[:, -1] > 0, products[:, -1] / jnp.where(squares > 0, squares, 1), 1
        )

        def up(m, r):
            beta = rho[:, m] * (moves.changes_BxMxD[:, m] * r).sum(1)
            return r + moves.steps_BxMxD[:, m] * (alphas[:, m] - beta)[:, None]

        return -lax.fori_loop(0, MEMORY, up, scale[:, None] * q)

    def advance(carry):
        heads, logits, slope, moves, number = carry
        towards = direction(slope, moves)
        t = step_length(heads, logits, product(towards), towards)
        done = jnp.abs(slope).max(1) <= TOLERANCE
        step = jnp.where(done, 0, t)[:, None] * towards
        moved = heads + step
        logits = product(moved)
        new = jnp.where(done[:, None], slope, gradient(moved, logits))
        moves = _Moves(
            *(
                jnp.concatenate([held[:, 1:], latest[:, None]], axis=1)
                for held, latest in zip(moves, (step, new - slope))
            )
        )
        return moved, logits, new, moves, number + 1

    def going(carry):
        _, _, slope, _, number = carry
        return (number < steps) & (jnp.abs(slope) > TOLERANCE).any()

    heads = jnp.zeros((problems, size))
    empty = jnp.zeros((problems, MEMORY, size))
    logits = product(heads)
    first = (heads, logits, gradient(heads, logits), _Moves(empty, empty), 0)
    heads, _, slope, *_ = lax.while_loop(going, advance, first)
    heads = heads.reshape(problems, width + 1, labels)
    out = (heads[:, :width], heads[:, width], jnp.abs(slope).max(1))
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda a: lax.with_sharding_constraint(a, whole), out)
