"""A light decoder from frozen patches to a mask, and the loss it is trained with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from medclip_jax.evaluation.features import Patches

BATCH, EPOCHS, PATIENCE, RATE = 32, 60, 10, 1e-3
CHANNELS = 64
GAMMA, FOCAL_WEIGHT, SMOOTH = 2.0, 10.0, 1.0


class Decoder(nn.Module):
    """Two convolutions on the map of patches, two on an eighth of the mask's side.

    The features are standardised first, by `middle_F` and `spread_F` of the films that
    it is trained on (`new_params`); these two are not trained.

    Attributes:
      grid: height and width of the map.
      side: pixels of the mask.
    """

    grid: tuple[int, int]
    side: int

    @nn.compact
    def __call__(self, patches_BxPxF: jax.Array) -> jax.Array:
        """logits_BxSxS, float32."""
        batch, _, features = patches_BxPxF.shape
        middle_F = self.param("middle_F", nn.initializers.zeros, (features,))
        spread_F = self.param("spread_F", nn.initializers.ones, (features,))
        middle_F, spread_F = jax.lax.stop_gradient((middle_F, spread_F))
        maps = (patches_BxPxF.astype(jnp.float32) - middle_F) / spread_F
        maps = maps.reshape(batch, *self.grid, -1)
        maps = nn.gelu(nn.Conv(CHANNELS, (1, 1))(maps))
        maps = nn.gelu(nn.Conv(CHANNELS, (3, 3))(maps))
        fine = max(*self.grid, self.side // 8)
        maps = jax.image.resize(maps, (batch, fine, fine, CHANNELS), "bilinear")
        maps = nn.gelu(nn.Conv(CHANNELS // 2, (3, 3))(maps))
        logits_BxGxGx1 = nn.Conv(1, (1, 1))(maps)
        shape = (batch, self.side, self.side, 1)
        return jax.image.resize(logits_BxGxGx1, shape, "bilinear")[..., 0]


def soft_dice(logits_BxSxS: jax.Array, masks_BxSxS: jax.Array) -> jax.Array:
    """2 x overlap / sum of both, over the whole batch, smoothed by one."""
    shares = jax.nn.sigmoid(logits_BxSxS)
    overlap = (shares * masks_BxSxS).sum()
    return (2 * overlap + SMOOTH) / (shares.sum() + masks_BxSxS.sum() + SMOOTH)


def focal(logits_BxSxS: jax.Array, masks_BxSxS: jax.Array) -> jax.Array:
    """Cross-entropy of each pixel times (1 - probability of its truth) ** 2, mean."""
    signed = logits_BxSxS * (2 * masks_BxSxS - 1)
    weights = jnp.exp(GAMMA * jax.nn.log_sigmoid(-signed))
    return (weights * -jax.nn.log_sigmoid(signed)).mean()


def mixed_loss(logits_BxSxS: jax.Array, masks_BxSxS: jax.Array) -> jax.Array:
    """10 x focal loss - log of the Dice of the batch.

    Reference: marshuang80/gloria, gloria/loss/segmentation_loss.py.
    """
    return FOCAL_WEIGHT * focal(logits_BxSxS, masks_BxSxS) - jnp.log(
        soft_dice(logits_BxSxS, masks_BxSxS)
    )


def dice(predicted_NxSxS: np.ndarray, masks_NxSxS: np.ndarray) -> np.ndarray:
    """float64 [N]: 2 x overlap / sum of both of each film; 1 where both are empty."""
    overlap = (predicted_NxSxS & masks_NxSxS).sum(axis=(1, 2)).astype(np.float64)
    both = predicted_NxSxS.sum(axis=(1, 2)) + masks_NxSxS.sum(axis=(1, 2))
    return np.where(both > 0, 2 * overlap / np.maximum(both, 1), 1.0)


@dataclass(frozen=True)
class Part:
    """Films of one split: their patches and their masks, bool [N, S, S]."""

    patches: Patches
    masks_NxSxS: np.ndarray


@dataclass(frozen=True)
class Trained:
    """A decoder and its parameters."""

    decoder: Decoder
    params: Mapping[str, Any]

    def predict(self, patches: Patches) -> np.ndarray:
        """bool [N, S, S], where the mask is more likely than not."""
        apply = jax.jit(self.decoder.apply)
        count, made = len(patches.trunk_BxPxF), []
        for start in range(0, count, BATCH):
            # The last part is filled up with its last film: one shape is compiled.
            rows = np.minimum(np.arange(start, start + BATCH), count - 1)
            logits = apply({"params": self.params}, patches.trunk_BxPxF[rows])
            made.append(np.asarray(logits) > 0)
        return np.concatenate(made)[:count]


def new_params(decoder: Decoder, trunk_TxPxF: np.ndarray, seed: int) -> dict[str, Any]:
    """A new decoder's parameters, that standardise these features."""
    params = dict(decoder.init(jax.random.key(seed), trunk_TxPxF[:1])["params"])
    params["middle_F"] = jnp.asarray(trunk_TxPxF.mean((0, 1)), jnp.float32)
    params["spread_F"] = jnp.asarray(trunk_TxPxF.std((0, 1)) + 1e-6, jnp.float32)
    return params


def train(training: Part, validation: Part, seed: int) -> Trained:
    """Trains a decoder on frozen patches; the epoch with the best validation Dice stays.

    Args:
      training, validation: films that the decoder is fitted on, and chosen by.
      seed: of its start and of the order of films.
    """
    trunk = training.patches.trunk_BxPxF
    decoder = Decoder(training.patches.grid, training.masks_NxSxS.shape[1])
    params = new_params(decoder, trunk, seed)
    optimizer = optax.adam(RATE)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, features_BxPxF, masks_BxSxS):
        def loss(params):
            logits_BxSxS = decoder.apply({"params": params}, features_BxPxF)
            return mixed_loss(logits_BxSxS, masks_BxSxS)

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng([seed, 18])
    count, waited = len(trunk), 0
    best = Trained(decoder, params)
    highest = -1.0
    for _ in range(EPOCHS):
        order = np.resize(rng.permutation(count), -(-count // BATCH) * BATCH)
        for rows in order.reshape(-1, BATCH):
            masks = training.masks_NxSxS[rows].astype(np.float32)
            params, state = step(params, state, trunk[rows], masks)
        made = Trained(decoder, params)
        told = made.predict(validation.patches)
        value = float(dice(told, validation.masks_NxSxS).mean())
        waited += 1
        if value > highest:
            highest, best, waited = value, made, 0
        if waited >= PATIENCE:
            break
    return best
