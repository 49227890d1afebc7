"""Properties of the encoders that need no other implementation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from medclip_jax.errors import UserError
from medclip_jax.models import layers, registry
from medclip_jax.models.dropout import dropout
from medclip_jax.models.registry import build_image_encoder, build_text_encoder

IMAGE = {
    "resnet": {"name": "resnet", "stage_sizes": [1, 1], "width": 8},
    "basic": {"name": "resnet", "stage_sizes": [2, 1], "width": 8, "block": "basic"},
    "swin": {
        "name": "swin",
        "embed_dim": 8,
        "depths": [2, 1],
        "heads": [2, 2],
        "window": 4,
        "drop_path": 0.3,
        "dropout": 0.2,
        "attention_dropout": 0.2,
    },
    "vit": {
        "name": "vit",
        "patch": 8,
        "dim": 16,
        "depth": 2,
        "heads": 2,
        "mlp": 24,
        "dropout": 0.2,
        "attention_dropout": 0.2,
    },
}
TEXT = {
    "name": "bert",
    "vocab_size": 30,
    "dim": 16,
    "layers": 2,
    "heads": 2,
    "mlp": 24,
    "max_positions": 12,
}
FILMS = np.random.RandomState(0).randn(4, 32, 32, 3).astype(np.float32)
IDS = np.random.RandomState(1).randint(1, 30, (4, 8)).astype(np.int32)
MASK = (np.arange(8) < np.array([[8], [3], [5], [8]])).astype(np.int32)
KEYS = jax.random.split(jax.random.key(3), 4)


def compiled(function, *args):
    return jax.jit(function)(*args)


def tower(name, **more):
    if name == "bert":
        return build_text_encoder({**TEXT, **more}), (IDS, MASK)
    return build_image_encoder({**IMAGE[name], **more}), (FILMS,)


def initial(encoder, args):
    """Random variables; zeros of an initialiser are shaken."""
    variables = jax.eval_shape(
        lambda: nn.meta.unbox(encoder.init(jax.random.key(0), *args, train=False))
    )
    rng = np.random.RandomState(2)

    def leaf(path, shape):
        value = 0.3 * rng.standard_normal(shape.shape)
        name = jax.tree_util.keystr(path[-1:])
        return np.float32(1 + abs(value) if "scale" in name or "var" in name else value)

    return jax.tree_util.tree_map_with_path(leaf, dict(variables))


def output(features):
    return features.words_BxTxC if hasattr(features, "hidden") else features.trunk_BxF


ALL = [*IMAGE, "bert"]
DROPPING = ["swin", "vit", "bert"]


@pytest.mark.parametrize("name", DROPPING)
def test_a_micro_batch_draws_what_the_whole_would(name):
    encoder, args = tower(name)
    variables = initial(encoder, args)

    def run(args, keys):
        return output(encoder.apply(variables, *args, train=True, keys_B=keys))

    whole = compiled(run, args, KEYS)
    part = compiled(run, tuple(a[2:] for a in args), KEYS[2:])
    np.testing.assert_allclose(whole[2:], part, atol=1e-5)
    # Something was dropped, each example its own way, and another key differs.
    still = compiled(
        lambda args: output(encoder.apply(variables, *args, train=False)), args
    )
    same = compiled(run, tuple(np.repeat(a[:1], 4, 0) for a in args), KEYS)
    assert np.abs(whole - still).max() > 1e-2
    assert np.abs(same[0] - same[1]).max() > 1e-2


@pytest.mark.parametrize("name", DROPPING)
def test_dropping_needs_keys(name):
    encoder, args = tower(name)
    variables = initial(encoder, args)
    with pytest.raises(ValueError, match="one PRNG key an example"):
        encoder.apply(variables, *args, train=True)


@pytest.mark.parametrize("name", ["resnet", *DROPPING])
def test_remat_changes_no_number(name):
    short = {
        "resnet": {"stage_sizes": [1]},
        "swin": {"depths": [1], "heads": [2]},
        "vit": {"depth": 1},
        "bert": {"layers": 1},
    }[name]
    plain, args = tower(name, **short)
    remat, _ = tower(name, **short, remat=True)
    variables = initial(plain, args)

    def loss(encoder):
        def value(params):
            features, state = encoder.apply(
                {**variables, "params": params},
                *args,
                train=True,
                keys_B=KEYS,
                mutable=["batch_stats"],
            )
            return (output(features) ** 2).sum(), state

        return jax.value_and_grad(value, has_aux=True)

    assert "remat" in str(jax.make_jaxpr(loss(remat))(variables["params"]))
    assert "remat" not in str(jax.make_jaxpr(loss(plain))(variables["params"]))
    ours = compiled(loss(plain), variables["params"])
    theirs = compiled(loss(remat), variables["params"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        ours,
        theirs,
    )


@pytest.mark.parametrize("name", DROPPING)
@pytest.mark.parametrize("remat", [False, True])
def test_scanned_layers_change_no_number(name, remat):
    deep = {
        "swin": {"depths": [1, 4], "heads": [2, 4]},
        "vit": {"depth": 3},
        "bert": {"layers": 3},
    }[name]
    plain, args = tower(name, **deep)
    scanned, _ = tower(name, **deep, scan_layers=True, remat=remat)
    variables = initial(plain, args)
    paths = jax.tree.structure(variables)
    assert jax.tree.structure(initial(scanned, args)) == paths

    def loss(encoder):
        def value(params):
            features = encoder.apply({"params": params}, *args, train=True, keys_B=KEYS)
            hidden = getattr(features, "hidden", ())
            return sum((of**2).sum() for of in (output(features), *hidden))

        return jax.value_and_grad(value)

    assert "scan[" in str(jax.make_jaxpr(loss(scanned))(variables["params"]))
    assert "scan[" not in str(jax.make_jaxpr(loss(plain))(variables["params"]))
    ours = compiled(loss(plain), variables["params"])
    theirs = compiled(loss(scanned), variables["params"])
    largest = max(float(np.abs(of).max()) for of in jax.tree.leaves(ours[1]))
    np.testing.assert_allclose(theirs[0], ours[0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest),
        ours[1],
        theirs[1],
    )


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("shape", [None, (3, 5, 5), (2, 1, 5, 5), (2, 1, 1, 5)])
def test_gradient_of_attention_is_that_of_its_definition(rate, shape):
    rng = np.random.RandomState(0)
    arrays = [np.float32(rng.randn(2, 5, 3, 4)) for _ in range(3)]  # B, T, L, K
    arrays.append(None if shape is None else np.float32(rng.randn(*shape)))
    towards = rng.randn(2, 5, 12)
    keys_B = jax.random.split(jax.random.key(0), 2)

    def ours(query, key, value, bias):
        out = layers.attention(query, key, value, rate, keys_B, 7, bias=bias)
        return (out * towards).sum()

    def defined(query, key, value, bias):
        logits = jnp.einsum("btlk,bslk->blts", query, key) / 2
        weights = jax.nn.softmax(logits if bias is None else logits + bias)
        weights = dropout(weights, rate, keys_B, 7)
        out = jnp.einsum("blts,bslk->btlk", weights, value)
        return (out.reshape(2, 5, 12) * towards).sum()

    by = (0, 1, 2) if shape is None else (0, 1, 2, 3)
    got, want = (
        compiled(jax.value_and_grad(of, argnums=by), *arrays) for of in (ours, defined)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want
    )


@pytest.mark.parametrize("name", ["vit", "bert"])
@pytest.mark.parametrize("how", ["xla", "cudnn"])
def test_fused_attention_changes_no_number(name, how):
    if how == "cudnn" and jax.default_backend() != "gpu":
        pytest.skip("cudnn needs an NVIDIA GPU")
    half = {"dtype": "bfloat16"} if how == "cudnn" else {}
    plain, args = tower(name, **half, attention_dropout=0.0)
    fused, _ = tower(name, **half, attention_dropout=0.0, attention=how)
    variables = initial(plain, args)

    def loss(encoder):
        def value(params):
            features = encoder.apply({"params": params}, *args, train=True, keys_B=KEYS)
            return (output(features).astype(jnp.float32) ** 2).sum()

        return jax.value_and_grad(value)

    ours = compiled(loss(plain), variables["params"])
    theirs = compiled(loss(fused), variables["params"])
    exact = 3e-2 if half else 1e-5  # of 8 bits a number
    np.testing.assert_allclose(theirs[0], ours[0], rtol=exact)
    largest = max(float(np.abs(of).max()) for of in jax.tree.leaves(ours[1]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=exact * largest),
        ours[1],
        theirs[1],
    )


def test_fused_attention_refuses_to_drop_weights():
    encoder, args = tower("bert", attention="xla", attention_dropout=0.5)
    plain, _ = tower("bert")
    with pytest.raises(ValueError, match="draws no dropout of its weights"):
        encoder.apply(initial(plain, args), *args, train=True, keys_B=KEYS)


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_computes_near_float32_on_float32_parameters(name):
    encoder, args = tower(name)
    half, _ = tower(name, dtype="bfloat16")
    boxed = jax.eval_shape(lambda: half.init(jax.random.key(0), *args, train=False))
    assert {leaf.dtype for leaf in jax.tree.leaves(boxed)} == {jnp.dtype("float32")}
    variables = initial(encoder, args)
    exact = compiled(lambda v: encoder.apply(v, *args, train=False), variables)
    rough = compiled(lambda v: half.apply(v, *args, train=False), variables)
    if name == "bert":
        assert rough.words_BxTxC.dtype == jnp.bfloat16
        assert rough.pooler_BxC.dtype == jnp.float32
    else:
        assert rough.patches_BxPxC.dtype == jnp.bfloat16
        assert rough.trunk_BxF.dtype == jnp.float32
    a, b = (np.asarray(output(f), np.float32) for f in (exact, rough))
    difference = np.abs(a - b).max() / np.abs(a).max()
    assert 0 < difference < 0.05


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_names_every_axis(name):
    known = {"embed", "mlp", "heads", "kv", "vocab", "position", "conv_in", "conv_out",
             "patch", "table", "joint", "norm", None}  # fmt: skip
    encoder, args = tower(name, **({"pooling": "pooler"} if name == "vit" else {}))
    boxed = jax.eval_shape(lambda: encoder.init(jax.random.key(0), *args, train=False))
    leaves = jax.tree.leaves(
        boxed["params"], is_leaf=lambda x: isinstance(x, meta.AxisMetadata)
    )
    for leaf in leaves:
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == leaf.value.ndim
        assert set(leaf.names) <= known
        named = [axis for axis in leaf.names if axis]
        assert len(named) == len(set(named))


@pytest.mark.parametrize("name", ["resnet", "basic", "swin", "vit", "bert"])
def test_forward_flops_against_the_compiler(name):
    """The hand-written count holds matrix products alone; XLA counts all else too, and
    leaves out what convolutions multiply with padding. Lowered, not compiled."""
    wide = {
        "resnet": {"width": 32},
        "basic": {"width": 32},
        "swin": {"embed_dim": 64, "depths": [2, 2], "heads": [2, 2]},
        "vit": {"dim": 128, "mlp": 512, "pooling": "pooler"},
        "bert": {"dim": 128, "mlp": 512},
    }[name]
    encoder, args = tower(name, **wide)
    if name in ("resnet", "basic"):
        args = (np.zeros((1, 160, 160, 3), np.float32),)
    variables = initial(encoder, args)
    run = jax.jit(lambda v, args: encoder.apply(v, *args, train=False))
    counted = run.lower(variables, args).cost_analysis()["flops"] / len(args[0])
    ours = encoder.forward_flops(args[0].shape[1])
    assert 0.85 < ours / counted < 1.05, (ours, counted)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", ["vit", "bert"])
def test_the_first_token_alone(name, scan):
    """The same token and the same gradient, and what it saves is counted."""
    more = {"layers": 3} if name == "bert" else {"depth": 3}
    encoder, args = tower(name, **more, scan_layers=scan)
    variables = initial(encoder, args)

    def first(params, **asked):
        made = encoder.apply({"params": params}, *args, train=False, **asked)
        return output(made)[:, 0] if name == "bert" else made.trunk_BxF

    def both(params, asked):
        value = lambda p: (first(p, **asked) ** 2).sum()
        return first(params, **asked), jax.grad(value)(params)

    whole, by_whole = jax.jit(lambda p: both(p, {}))(variables["params"])
    alone, by_alone = jax.jit(lambda p: both(p, {"first_only": True}))(
        variables["params"]
    )
    np.testing.assert_allclose(alone, whole, atol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(by_whole))
    for one, other in zip(jax.tree.leaves(by_whole), jax.tree.leaves(by_alone)):
        np.testing.assert_allclose(one, other, atol=1e-5 * largest)
    size = args[0].shape[1]
    assert encoder.forward_flops(size, True) < encoder.forward_flops(size)


def test_the_first_token_alone_is_counted():
    """The difference is what XLA counts less."""
    encoder, args = tower("bert", dim=128, mlp=512, layers=2)
    variables = initial(encoder, args)
    counted, ours = [], []
    for first in (False, True):
        run = jax.jit(
            lambda v, args, f=first: output(
                encoder.apply(v, *args, train=False, first_only=f)
            )
        )
        cost = run.lower(variables, args).cost_analysis()["flops"]
        counted.append(cost / len(args[0]))
        ours.append(encoder.forward_flops(args[0].shape[1], first))
    saved = (ours[0] - ours[1]) / (counted[0] - counted[1])
    assert 0.85 < saved < 1.05, (ours, counted)


@pytest.mark.parametrize(
    ("name", "gigamacs"), [("resnet", 4.09), ("swin", 4.49), ("vit", 17.56)]
)
def test_forward_flops_of_the_published_sizes(name, gigamacs):
    """Multiply-adds at 224 pixels as torchvision and the Swin paper give them."""
    flops = build_image_encoder({"name": name}).forward_flops(224)
    assert abs(flops / 2e9 - gigamacs) < 0.011


def test_padding_changes_no_token_of_bert():
    """By gradient: no output of a token depends on an embedding of padding."""
    encoder, _ = tower("bert")
    variables = initial(encoder, (IDS, MASK))
    longer = np.pad(IDS, ((0, 0), (0, 4)), constant_values=7)
    mask = np.pad(MASK, ((0, 0), (0, 4)))

    def run(ids, mask):
        return encoder.apply(variables, ids, mask, train=False).words_BxTxC

    short, long = compiled(run, IDS, MASK), compiled(run, longer, mask)
    keep = MASK[..., None] > 0
    np.testing.assert_allclose(
        np.where(keep, short, 0), np.where(keep, long[:, :8], 0), atol=1e-5
    )
    assert np.isfinite(compiled(run, IDS, np.zeros_like(MASK))).all()


def test_the_padding_row_takes_no_gradient():
    encoder, _ = tower("bert")
    variables = initial(encoder, (IDS, MASK))
    ids = np.where(MASK > 0, IDS, 0)

    def loss(params):
        return (encoder.apply({"params": params}, ids, MASK, train=False).hidden[0] ** 3
                ).sum()  # fmt: skip

    grad = compiled(jax.grad(loss), variables["params"])["word_embedding"]
    assert not grad[0].any() and grad[int(ids[0, 0])].any()


def test_a_shifted_window_does_not_see_across_the_border():
    """The last rows and the first are brought together by the shift and masked."""
    encoder = build_image_encoder(
        {
            "name": "swin",
            "embed_dim": 8,
            "depths": [2],
            "heads": [2],
            "window": 4,
            "drop_path": 0.0,
        }
    )
    films = FILMS[:1]
    variables = initial(encoder, (films,))
    # Without position bias a leak would be a plain sum over the wrong tokens.

    def corner(films):
        return encoder.apply(variables, films, train=False).patches_BxPxC[0, 0].sum()

    grad = np.abs(compiled(jax.grad(corner), films))[0].sum(-1)
    # Patch (0, 0) of 8 x 8: its window of the shifted block is patches 0..1, each
    # of which saw patches 0..3 in the block before.
    reached = grad.reshape(8, 4, 8, 4).sum((1, 3)) > 0
    expected = np.zeros((8, 8), bool)
    expected[:4, :4] = True
    # -100 is finite: what is left over is below exp(-90).
    np.testing.assert_array_equal(
        grad.reshape(8, 4, 8, 4).sum((1, 3)) > 1e-12, expected
    )
    assert reached[:4, :4].all()


def test_batch_statistics_are_of_the_batch_and_kept():
    encoder, _ = tower("resnet")
    variables = initial(encoder, (FILMS,))
    _, state = compiled(
        lambda v: encoder.apply(v, FILMS, train=True, mutable=["batch_stats"]),
        variables,
    )
    kernel = variables["params"]["conv1"]["kernel"]
    maps = jax.lax.conv_general_dilated(
        FILMS, kernel, (2, 2), ((3, 3), (3, 3)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    old = variables["batch_stats"]["bn1"]
    new = state["batch_stats"]["bn1"]
    wanted = 0.9 * old["mean"] + 0.1 * maps.mean((0, 1, 2))
    np.testing.assert_allclose(new["mean"], wanted, atol=1e-5)
    wanted = 0.9 * old["var"] + 0.1 * maps.var((0, 1, 2))
    np.testing.assert_allclose(new["var"], wanted, atol=1e-4)

    def trunk(films):
        return encoder.apply(variables, films, train=False).trunk_BxF

    alone, among = compiled(trunk, FILMS[:1]), compiled(trunk, FILMS)[:1]
    np.testing.assert_allclose(alone, among, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"name": "swim"},
            "unknown image encoder 'swim'; the names are hybrid, resnet",
        ),
        ({"name": "swin", "windows": 7}, "no field windows; its fields are .*window"),
        ({"name": "swin", "heads": [3]}, "one entry a stage"),
        ({"name": "swin", "embed_dim": 97}, "3 heads do not divide"),
        ({"name": "vit", "pooling": "sum"}, "pooling 'sum' is none of"),
        ({"name": "vit", "dim": 100}, "not divisible by 12"),
        ({"name": "resnet", "block": "wide"}, "'wide' is none of"),
        ({"name": "resnet", "dtype": "float8"}, "dtype 'float8' is none of"),
        ({}, "unknown image encoder None"),
    ],
)
def test_wrong_configs_name_what_is_right(config, message):
    with pytest.raises(UserError, match=message):
        build_image_encoder(config)


def test_sources_are_no_fields():
    encoder = build_image_encoder({**IMAGE["swin"], "pretrained": "somewhere"})
    assert encoder.depths == (2, 1)
    assert "depths" in registry.fields_of(type(encoder))


def test_wrong_films_and_texts_are_refused():
    encoder, _ = tower("swin")
    with pytest.raises(ValueError, match=r"expected films \[B, H, W, 3\]"):
        encoder.init(jax.random.key(0), FILMS[..., :1], train=False)
    encoder, _ = tower("vit")
    with pytest.raises(ValueError, match="do not split into patches of 8"):
        encoder.init(jax.random.key(0), FILMS[:, :30], train=False)
    encoder, _ = tower("bert")
    with pytest.raises(ValueError, match="texts of 16 tokens, but max_positions is 12"):
        encoder.init(jax.random.key(0), np.zeros((1, 16), int), None, train=False)


def test_gelu_is_exact_and_keeps_its_input_alone():
    x = jnp.linspace(-6, 6, 101)
    exact = jax.value_and_grad(lambda x: jax.nn.gelu(x, approximate=False).sum())(x)
    ours = jax.value_and_grad(lambda x: layers.gelu(x).sum())(x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), ours, exact
    )
    half = x.astype(jnp.bfloat16)
    _, back = jax.vjp(layers.gelu, half)
    kept = jax.tree.leaves(back)
    assert [(of.shape, of.dtype) for of in kept] == [(half.shape, half.dtype)]
