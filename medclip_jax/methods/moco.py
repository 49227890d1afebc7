"""MoCo v2: a crop of a film finds another crop of it among the keys of earlier batches.

He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation
Learning", arXiv 1911.05722; Chen, Fan, Girshick, He, "Improved Baselines with Momentum
Contrastive Learning" (v2), arXiv 2003.04297. Official code: facebookresearch/moco,
moco/builder.py, whose order a step keeps: queries; the key encoder follows the query
encoder; keys; the loss against the old queue; the new keys into the queue.

The key encoder is the collection "momentum", the queue the collection "queue": both are
sharded and saved as parameters are. Batch statistics are those of groups, in the official
code one a GPU: keys go through their encoder in another order than queries, so that no
query sits in a group with its key (section 3.3, shuffling BN). What is kept of the
statistics is the first group's, as the official code's broadcast of buffers does.
"""

import functools
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medclip_jax.errors import UserError
from medclip_jax.losses import Queue, enqueued, queue_loss
from medclip_jax.losses.ring import split_over_devices
from medclip_jax.methods.image_only import ImageOnly, two_views
from medclip_jax.methods.interface import (
    Batch,
    ExampleKeys,
    Features,
    ImageEmbedding,
    Metrics,
    Spec,
    State,
    Variables,
)
from medclip_jax.methods.towers import image_encoder_of, l2_normalize
from medclip_jax.models.heads import ProjectionMLP

# What the key encoder's draws are for, within an example's key.
_SHUFFLE, _KEYS = 101, 102


@dataclass(frozen=True)
class MoCo(ImageOnly):
    """Attributes:
    queue: how many keys are kept, a multiple of the batch.
    momentum: m, what the key encoder keeps of itself in a step.
    temperature: tau, never learned.
    groups: parts of a batch with statistics of their own.
    shuffle: whether keys go in another order than queries.
    """

    queue: int = 65536
    momentum: float = 0.999
    temperature: float = 0.2
    groups: int = 1
    shuffle: bool = True

    @classmethod
    def from_config(cls, config: Any) -> "MoCo":
        switches, model, batch = config.moco, config.model, config.train.batch_size
        for name, whole, part, why in (
            ("queue", switches.queue, batch, "batches replace its oldest keys"),
            ("groups", batch, switches.groups, "a batch is cut into equal groups"),
        ):
            if part < 1 or whole % part:
                raise UserError(
                    f"moco.{name}={switches[name]} does not go with "
                    f"train.batch_size={batch}: {why}, so one must divide the other"
                )
        return cls(
            image_encoder_of(config),
            ProjectionMLP(switches.hidden, model.embed_dim),
            queue=switches.queue,
            momentum=switches.momentum,
            temperature=switches.temperature,
            groups=switches.groups,
            shuffle=switches.shuffle,
        )

    def init(self, key: jax.Array, spec: Spec) -> Variables:
        variables = super().init(key, spec)
        first_KxD = jax.random.normal(
            jax.random.fold_in(key, 1), (self.queue, self.image_head.dim)
        )
        # Whole on each device: a query meets every key.
        keys_KxD: Any = nn.LogicallyPartitioned(l2_normalize(first_KxD), (None, None))
        queue = Queue(keys_KxD, jnp.ones(self.queue), jnp.zeros((), jnp.int32))
        # Its own arrays: the state is donated, and one buffer cannot be given twice.
        momentum = jax.tree.map(jnp.copy, variables)
        return {**variables, "momentum": momentum, "queue": queue._asdict()}

    def encode(
        self, variables: Variables, batch: Batch, keys: ExampleKeys | None, train: bool
    ) -> tuple[Features, State]:
        films, keys_N = batch["films"], keys.images_N if keys else None
        queries, state = self._in_groups(
            variables, films["current_BxHxWx3"], keys_N, train
        )
        followed = self.followed(variables["momentum"]["params"], variables["params"])
        order_N = jnp.arange(len(films["second_BxHxWx3"]))
        if self.shuffle and keys_N is not None:
            # Each example draws a number; their ranks are a random order.
            drawn_N = jax.vmap(jax.random.bits)(_folded(keys_N, _SHUFFLE))
            order_N = jnp.argsort(drawn_N)
        found, of_keys = self._in_groups(
            {**variables["momentum"], "params": followed},
            split_over_devices(jnp.take(films["second_BxHxWx3"], order_N, axis=0)),
            None if keys_N is None else _folded(keys_N, _KEYS)[order_N],
            train,
        )
        back_N = jnp.argsort(order_N)
        found = jax.tree.map(lambda a: jax.lax.stop_gradient(a[back_N]), found)
        momentum = {**variables["momentum"], **of_keys, "params": followed}
        return Features(queries, second=found), {**state, "momentum": momentum}

    def followed(self, keys: Any, queries: Any) -> Any:
        """The key encoder's parameters, moved towards the query encoder's."""
        queries = jax.lax.stop_gradient(queries)
        return jax.tree.map(
            lambda key, query: self.momentum * key + (1 - self.momentum) * query,
            keys,
            queries,
        )

    def objective(
        self,
        variables: Variables,
        features: Features,
        batch: Batch,
        key: jax.Array | None,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics, State]:
        queries_NxD, keys_NxD = two_views(features)
        queue, weight_N = Queue(**variables["queue"]), batch["image_weight_N"]
        loss = queue_loss(queries_NxD, keys_NxD, queue, 1 / self.temperature, weight_N)
        queue = enqueued(queue, keys_NxD, weight_N)
        return loss, {}, {"queue": queue._asdict()}

    def forward_flops(self, spec: Spec) -> int:
        """Multiply-adds x 2 for one film: the query's crop, and the key's, whose third
        of a step is all that it takes."""
        once = self.image_encoder.forward_flops(spec.image_size)
        return once + once // 3

    def loss_flops(self, spec: Spec, batch: int) -> float:
        """Queries with the queue, and the gradient by queries, in float32."""
        return 6 * 2 * 2.0 * batch * self.queue * self.image_head.dim

    def _in_groups(
        self,
        variables: Variables,
        films_NxHxWx3: jax.Array,
        keys_N: jax.Array | None,
        train: bool,
    ) -> tuple[ImageEmbedding, State]:
        if self.groups == 1 or not train:
            return self.embed(variables, films_NxHxWx3, keys_N, train)
        # Cut without a word on where: XLA splits groups between devices, or one group
        # over several, which no sharding of the groups' axis can say.
        parts = jax.tree.map(
            lambda a: a.reshape(self.groups, -1, *a.shape[1:]), (films_NxHxWx3, keys_N)
        )
        embed = functools.partial(self.embed, variables, train=train)
        images, state = jax.vmap(embed)(*parts)
        images = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), images)
        return images, jax.tree.map(lambda a: a[0], state)


def _folded(keys_N: jax.Array, use: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, use))(keys_N)
