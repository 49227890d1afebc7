"""Projections from a trunk into the joint space, in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def linear_head(dim: int, *, bias: bool = False, name: str | None = None) -> nn.Dense:
    """One matrix, by default without bias: MedCLIP and CLIP.

    Args:
      dim: width D of the joint space.
      bias: whether to add one.
      name: of the submodule, inside another module.

    Returns:
      A module, float [B, F] -> float32 [B, D].
    """
    return _dense(dim, ("embed", "joint"), bias=bias, name=name)


class MLPHead(nn.Module):
    """One hidden layer with ReLU, of the trunk's width: ConVIRT section 3.3.

    The paper leaves the hidden width open.

    Attributes:
      dim: width D of the joint space.
    """

    dim: int

    @nn.compact
    def __call__(self, trunk_BxF: jax.Array) -> jax.Array:
        """float [B, F] -> float32 [B, D]."""
        width = trunk_BxF.shape[-1]
        hidden_BxF = _dense(width, ("embed", "mlp"), name="hidden")(trunk_BxF)
        return _dense(self.dim, ("mlp", "joint"), name="out")(nn.relu(hidden_BxF))


def _dense(
    dim: int, axes: tuple[str, str], *, bias: bool = True, name: str | None = None
) -> nn.Dense:
    kernel_init = nn.initializers.lecun_normal()
    return nn.Dense(
        dim,
        use_bias=bias,
        dtype=jnp.float32,
        kernel_init=nn.with_logical_partitioning(kernel_init, axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[1:]),
        name=name,
    )
