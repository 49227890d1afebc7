"""The optimizer from its config: schedule, clipping, decay rules, frozen parameters.

A rule list is (regex, value) pairs over parameter names such as
`image/encoder/stem/kernel`; the first full match wins and every parameter must match.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from medclip_jax.errors import UserError
from medclip_jax.runtime.sharding import leaf_name

Rules = Sequence[tuple[str, float]]

# Multiplier of the weight decay. Vectors that shift or scale are not decayed.
STANDARD_DECAY: Rules = (
    (r".*/(bias|scale|relative_position_bias_table)", 0.0),
    (r"(.*/)?logit_(scale|bias)", 0.0),
    (r".*", 1.0),
)
# The released trainer exempts a name that holds "bias" or "LayerNorm.weight". In its
# modules only BERT's layers are called LayerNorm, so Swin's norms, BatchNorm scales
# and the temperature are decayed.
# Reference: github.com/RyanWangZf/MedCLIP, medclip/trainer.py, prepare_optimizer.
OFFICIAL_DECAY: Rules = (
    (r".*bias.*", 0.0),
    (r"text/.*norm[^/]*/scale", 0.0),
    (r".*", 1.0),
)
DECAY_RULES: dict[str, Rules] = {
    "standard": STANDARD_DECAY,
    "medclip_official": OFFICIAL_DECAY,
    "all": ((r".*", 1.0),),  # as torch's optimizers by themselves
}
ALGORITHMS = ("adamw", "adam", "sgd", "lars")
SCHEDULES = ("cosine", "linear", "constant", "drops")
LARS_TRUST = 0.001  # google-research/simclr, tf2/lars_optimizer.py (eeta)


def match_rules(rules: Rules, names: Sequence[str]) -> list[float]:
    """The value of the first rule that fully matches each name.

    Raises:
      UserError: names that no rule matches; all of them are listed.
    """
    compiled = [(_compile(pattern), value) for pattern, value in rules]
    values: list[float] = []
    missed = []
    for name in names:
        value = next((v for p, v in compiled if p.fullmatch(name)), None)
        if value is None:
            missed.append(name)
        else:
            values.append(value)
    if missed:
        raise UserError(
            "optimizer.decay_rules: every parameter must match a rule; these match "
            'none (end the list with (".*", 1.0)):\n  ' + "\n  ".join(missed)
        )
    return values


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"optimizer: {pattern!r} is no regex: {error}.") from error


def make_schedule(config: Mapping[str, Any], steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then cosine to 0, constant, or dropping tenfold.

    Args:
      config: `learning_rate`, `warmup_fraction` (of `steps`), `schedule`, and `drops`,
        the shares of the run after which "drops" takes a tenth of the rate.
      steps: length of the run.

    Returns:
      Learning rate of the update that follows `count` earlier ones.
    """
    peak, name = float(config["learning_rate"]), config["schedule"]
    fraction = float(config["warmup_fraction"])
    if name not in SCHEDULES:
        raise UserError(
            f"optimizer.schedule={name!r}: the schedules are {list(SCHEDULES)}."
        )
    if not 0 <= fraction < 1:
        raise UserError(
            f"optimizer.warmup_fraction={fraction}: expected 0 <= fraction < 1."
        )
    warmup = math.ceil(fraction * steps)
    if name == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1))
    elif name == "linear":
        after = optax.linear_schedule(peak, 0.0, max(steps - warmup, 1))
    elif name == "drops":
        # Counted from the start of the run, as a schedule of epochs is.
        at = {max(0, round(share * steps) - warmup): 0.1 for share in config["drops"]}
        after = optax.piecewise_constant_schedule(peak, at)
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, warmup), after], [warmup]
    )


def trainable(params: Any, frozen: Sequence[str]) -> Any:
    """A tree of bools like `params`: False where a regex of `frozen` matches.

    Raises:
      UserError: a regex that matches nothing, or nothing left to train.
    """
    patterns = {pattern: _compile(pattern) for pattern in frozen}
    flat, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = [leaf_name(path) for path, _ in flat]
    for text, pattern in patterns.items():
        if not any(map(pattern.fullmatch, names)):
            raise UserError(
                f"optimizer.frozen: {text!r} matches no parameter. A regex must match "
                f"the whole name; the first names are {names[:5]}."
            )
    mask = [not any(p.fullmatch(name) for p in patterns.values()) for name in names]
    if not any(mask):
        raise UserError(f"optimizer.frozen={tuple(frozen)} leaves nothing to train.")
    return jax.tree.unflatten(treedef, mask)


def global_norm(tree: Any) -> jax.Array:
    """The square root of the sum of all squares: float32 [].

    `optax.global_norm` sums squares, which XLA on a CPU writes to memory first; the
    product of an array with itself needs no room.
    """
    total = jnp.zeros((), jnp.float32)
    for leaf in jax.tree.leaves(tree):
        axes = tuple(range(leaf.ndim))
        total += jax.lax.dot_general(
            leaf, leaf, ((axes, axes), ((), ())), precision=jax.lax.Precision.HIGHEST
        )
    return jnp.sqrt(total)


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """Scales gradients down together where their norm is above `largest`.

    As `optax.clip_by_global_norm`, by one factor, so that no scaled copy is written.
    """

    def update(grads, state, params=None):
        del params
        factor = jnp.minimum(1.0, largest / global_norm(grads))
        return jax.tree.map(lambda leaf: leaf * factor, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _decayed(config: Mapping[str, Any], params: Any) -> optax.GradientTransformation:
    """Adds weight_decay x rule value x parameter to the update."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(params)
    values = match_rules(_rules(config), [leaf_name(path) for path, _ in flat])
    decay = float(config["weight_decay"])
    chain = []
    for value in sorted(set(values) - {0.0}):
        mask = jax.tree.unflatten(treedef, [v == value for v in values])
        chain.append(optax.add_decayed_weights(decay * value, mask=mask))
    return optax.chain(*chain)


def _lars(
    config: Mapping[str, Any], params: Any, decay: Any, schedule: optax.Schedule
) -> list[optax.GradientTransformation]:
    """Momentum over steps that are scaled by each tensor's own norms.

    What is not decayed by the rules (norms, biases) is not scaled either.

    Reference: You et al., arXiv 1708.03888; google-research/simclr, lars_optimizer.py.
    """
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    values = match_rules(_rules(config), names)
    scaled = jax.tree.unflatten(jax.tree.structure(params), [v > 0 for v in values])
    trust = optax.scale_by_trust_ratio(trust_coefficient=LARS_TRUST)
    return [
        decay,
        optax.masked(trust, scaled),
        optax.scale_by_learning_rate(schedule),  # within the momentum
        optax.trace(config.get("b1", 0.9)),
    ]


def _rules(config: Mapping[str, Any]) -> Rules:
    rules = config.get("decay_rules", "standard")
    if not isinstance(rules, str):
        return rules
    if rules not in DECAY_RULES:
        raise UserError(
            f"optimizer.decay_rules={rules!r}: expected (regex, value) pairs or "
            f"one of {list(DECAY_RULES)}."
        )
    return DECAY_RULES[rules]


def build(
    config: Mapping[str, Any], steps: int, params: Any
) -> tuple[optax.GradientTransformation, optax.Schedule, Any]:
    """The optimizer of a config.

    `adamw` decays apart from the moments; `adam` adds the decay to the gradient, as
    torch's Adam does, and `sgd` too, with momentum `b1`; `lars` see `_lars`. The order is
    clip (over trained parameters), moments, decay, learning rate. Frozen parameters get a zero update and no moments.

    Args:
      config: name, learning_rate, warmup_fraction, schedule, weight_decay, clip_norm
        (0: off), b1, b2, eps, frozen, decay_rules ("standard", "medclip_official",
        "all", or pairs).
      steps: length of the run.
      params: parameters, abstract or real.

    Returns:
      The transformation, the schedule, and the tree of bools of `trainable`.

    Raises:
      UserError: an unknown name, or a rule that fits badly.
    """
    name = config["name"]
    if name not in ALGORITHMS:
        raise UserError(f"optimizer.name={name!r}: the names are {list(ALGORITHMS)}.")
    schedule = make_schedule(config, steps)
    mask = trainable(params, config.get("frozen", ()))
    moments = optax.scale_by_adam(
        b1=config.get("b1", 0.9),
        b2=config.get("b2", 0.999),
        eps=config.get("eps", 1e-8),
    )
    decay = _decayed(config, params)
    clip = float(config.get("clip_norm", 0.0))
    chain = [clip_by_global_norm(clip)] if clip > 0 else []
    if name == "lars":
        chain += _lars(config, params, decay, schedule)
    else:
        if name == "sgd":
            moments = optax.trace(config.get("b1", 0.9))
        chain += [moments, decay] if name == "adamw" else [decay, moments]
        chain.append(optax.scale_by_learning_rate(schedule))
    if all(jax.tree.leaves(mask)):
        return optax.chain(*chain), schedule, mask
    labels = jax.tree.map(lambda keep: "trained" if keep else "frozen", mask)
    return (
        optax.partition(
            {"trained": optax.chain(*chain), "frozen": optax.set_to_zero()}, labels
        ),
        schedule,
        mask,
    )
