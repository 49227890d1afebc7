"""Encoders with their heads, run and initialised alike in every method.

The parameters of a tower are {"encoder", "projection"}; other collections of the encoder
lie under the tower's name, those of the head under NAME_projection.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medclip_jax.errors import UserError
from medclip_jax.methods.interface import State, Variables
from medclip_jax.models.heads import Projected
from medclip_jax.models.layers import ATTENTION
from medclip_jax.models.registry import build_image_encoder, build_text_encoder

COMPUTE_DTYPES = ("bfloat16", "float32", "float64", "float16")


def init_tower(
    tower: str,
    key: jax.Array,
    encoder: nn.Module,
    inputs: tuple[Any, ...],
    head_key: jax.Array,
    head: nn.Module,
    more: tuple[Any, ...],
) -> tuple[dict[str, Any], State]:
    """Boxed parameters of a tower, and its other collections."""
    made = dict(encoder.init(key, *inputs, train=False))
    features, _ = apply_module(encoder, nn.meta.unbox(made), *inputs, train=False)
    headed = dict(head.init(head_key, features, *more, train=False))
    params = {"encoder": made.pop("params")}
    if "params" in headed:
        params["projection"] = headed.pop("params")
    state = {name: {tower: value} for name, value in made.items()}
    of_head = {name: {f"{tower}_projection": value} for name, value in headed.items()}
    return params, merged(state, of_head)


def run_tower(
    tower: str,
    variables: Variables,
    encoder: nn.Module,
    inputs: tuple[Any, ...],
    head: nn.Module,
    more: tuple[Any, ...],
    keys_B: jax.Array | None,
    train: bool,
    **more_of_encoder: Any,
) -> tuple[Any, Projected, State]:
    """Features, their projection, and the collections that changed."""
    params, head_name = variables["params"][tower], f"{tower}_projection"
    features, changed = apply_module(
        encoder,
        {"params": params["encoder"], **tower_state(variables, tower)},
        *inputs,
        train=train,
        keys_B=keys_B,
        **more_of_encoder,
    )
    projected, of_head = apply_module(
        head,
        {"params": params.get("projection", {}), **tower_state(variables, head_name)},
        features,
        *more,
        train=train,
    )
    state = {name: {tower: value} for name, value in changed.items()}
    headed = {name: {head_name: value} for name, value in of_head.items()}
    return features, projected, merged(state, headed)


def merged(one: State, other: State) -> State:
    """Collections of both; each has parts of its own."""
    names = sorted({*one, *other})
    return {name: {**one.get(name, {}), **other.get(name, {})} for name in names}


def tower_state(variables: Variables, tower: str) -> State:
    """The collections besides the parameters that belong to one tower."""
    return {
        name: value[tower]
        for name, value in variables.items()
        if name != "params" and tower in value
    }


def apply_module(
    module: nn.Module, variables: Variables, *args: Any, **kwargs: Any
) -> tuple[Any, State]:
    """Applies a module; gives its output and the collections that it changed."""
    changing = [name for name in variables if name != "params"]
    if not kwargs["train"] or not changing:
        return module.apply(variables, *args, **kwargs), {}
    features, state = module.apply(variables, *args, mutable=changing, **kwargs)
    return features, dict(state)


def l2_normalize(vectors: jax.Array) -> jax.Array:
    """Vectors [..., D] of length 1, float32; a zero one stays zero, its gradient finite."""
    vectors = vectors.astype(jnp.float32)
    square = (vectors * vectors).sum(-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def build_towers(config: Any) -> dict[str, Any]:
    """The two encoders of `config.model`.

    Args:
      config: with `model.image`, `model.text`, and what `shared_fields` reads.
    """
    return {
        "image_encoder": image_encoder_of(config),
        "text_encoder": text_encoder_of(config),
    }


def shared_fields(model: Any) -> dict[str, Any]:
    """What every encoder of a config has alike.

    Args:
      model: with `dtype`, `remat`, `scan_layers` and `attention`.

    Raises:
      UserError: attention that this device or dtype does not have.
    """
    attention = model.get("attention", "plain")  # this and the next: not in older runs
    if attention not in ATTENTION:
        raise UserError(
            f"model.attention must be one of {', '.join(ATTENTION)}; found {attention!r}"
        )
    if attention == "cudnn" and (
        jax.default_backend() != "gpu" or model.dtype not in ("bfloat16", "float16")
    ):
        raise UserError(
            "model.attention=cudnn needs an NVIDIA GPU and model.dtype=bfloat16; found "
            f"{jax.default_backend()} and {model.dtype}. Set model.attention=plain"
        )
    for tower in ("image", "text"):
        rate = model.get(tower, {}).get("attention_dropout", 0.0)
        if attention != "plain" and rate:
            raise UserError(
                f"model.attention={attention} draws no dropout of attention weights; "
                f"found model.{tower}.attention_dropout={rate}. Set it to 0, or "
                "model.attention=plain"
            )
    return {
        "dtype": compute_dtype(model.dtype),
        "remat": bool(model.remat),
        "scan_layers": bool(model.get("scan_layers", False)),
        "attention": attention,
    }


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype that `config.model.dtype` names.

    Raises:
      UserError: it names none that encoders compute in.
    """
    if name not in COMPUTE_DTYPES:
        raise UserError(
            f"model.dtype must be one of {', '.join(COMPUTE_DTYPES)}; found {name!r}"
        )
    return jnp.dtype(name)


def image_encoder_of(config: Any) -> nn.Module:
    """The image encoder of `config.model`."""
    image = {k: v for k, v in config.model.image.items() if k != "pretrained"}
    return build_image_encoder({**image, **shared_fields(config.model)})


def text_encoder_of(config: Any) -> nn.Module:
    """The text encoder of `config.model`."""
    model = config.model
    text = {k: v for k, v in model.text.items() if k not in ("pretrained", "tokenizer")}
    return build_text_encoder({**text, **shared_fields(model)})


def side_by_side(one: jax.Array, other: jax.Array) -> jax.Array:
    """Rows in turn, [N, ...] and [N, ...] -> [2N, ...]: each device keeps its own."""
    return jnp.stack([one, other], axis=1).reshape(2 * len(one), *one.shape[1:])


def keys_of_two(keys_N: jax.Array) -> jax.Array:
    """Keys of the rows of `side_by_side`, [N] -> [2N]: each draws for itself."""
    own = [
        jax.vmap(lambda key, n=n: jax.random.fold_in(key, n))(keys_N) for n in range(2)
    ]
    return side_by_side(*own)
