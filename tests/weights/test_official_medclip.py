"""The official MedCLIP state dicts: key names, counts, and golden vectors.

The golden vectors came from transformers 4.24 and torchvision modules on the CPU in
float32, with weights made from each key's CRC-32.
"""

import zlib

import jax
import numpy as np
import pytest
from flax.core import meta

from configs import medclip as medclip_config
from medclip_jax.errors import UserError
from medclip_jax.methods import registry
from medclip_jax.methods.interface import Spec
from medclip_jax.weights import medclip
from medclip_jax.weights.layout import flatten

SPEC = Spec(224, 9)
IDS = np.array(
    [
        [101, 8682, 3118, 8669, 102, 0, 0, 0, 0],
        [101, 6441, 1286, 3055, 1197, 1110, 1207, 1290, 102],
    ],
    np.int32,
)


def method_of(variant, pool, **small):
    config = medclip_config.get_config(variant)
    config.model.dtype = "float32"
    config.medclip.text_pool = pool
    config.medclip.pool_padding = True
    for tower, fields in small.items():
        config.model[tower].update(fields)
    return registry.build(config)


SMALL_TEXT = {
    "vocab_size": 40,
    "dim": 16,
    "layers": 3,
    "heads": 2,
    "mlp": 24,
    "max_positions": 16,
}
SMALL = {
    "swin": {
        "image": {"embed_dim": 8, "depths": (2, 1), "heads": (2, 2), "window": 4},
        "text": SMALL_TEXT,
    },
    "resnet": {
        "image": {"stage_sizes": (1, 1), "width": 8},
        "text": SMALL_TEXT,
    },
}


def target_of(method, spec=SPEC):
    return meta.unbox(jax.eval_shape(lambda: method.init(jax.random.key(0), spec)))


def random_like(target, seed=0):
    rng = np.random.RandomState(seed)
    return jax.tree.map(lambda s: np.float32(rng.standard_normal(s.shape)), target)


@pytest.mark.parametrize(
    ("variant", "keys", "floats"),
    [("swin", 434, 136_616_059), ("resnet", 521, 133_260_097 + 53_120)],
)
def test_key_counts_of_the_published_sizes(variant, keys, floats):
    """Numbers of the released files, without making their arrays."""
    target = target_of(method_of(variant, "pooler"))
    empty = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), target)
    state, report = medclip.to_torch(empty, variant)
    assert report.fits
    assert len(state) == keys
    assert floats == sum(v.size for v in state.values() if v.dtype == np.float32)
    integers = {k for k, v in state.items() if v.dtype == np.int64}
    endings = {key.rsplit(".", 1)[1] for key in integers}
    assert endings == {
        "position_ids",
        "relative_position_index" if variant == "swin" else "num_batches_tracked",
    }
    assert state["text_model.projection_head.weight"].shape == (512, 768)
    vision = {"swin": (512, 768), "resnet": (512, 2048)}[variant]
    head = {"swin": "projection_head", "resnet": "model.fc"}[variant]
    assert state[f"vision_model.{head}.weight"].shape == vision
    assert state["logit_scale"].shape == ()


@pytest.mark.parametrize("variant", SMALL)
def test_there_and_back(variant):
    method = method_of(variant, "pooler", **SMALL[variant])
    variables = random_like(target_of(method))
    state, _ = medclip.to_torch(variables, variant)
    back, report = medclip.from_torch(state, target_of(method))
    assert report.fits
    assert {key.rsplit(".", 1)[1] for key in report.ignored} <= {
        "position_ids",
        "relative_position_index",
        "num_batches_tracked",
    }
    before, after = flatten(variables), flatten(back)
    assert set(before) == set(after)
    for path, value in before.items():
        np.testing.assert_array_equal(value, after[path])


def test_what_does_not_fit_is_named():
    method = method_of("swin", "pooler", **SMALL["swin"])
    target = target_of(method)
    state, _ = medclip.to_torch(random_like(target), "swin")
    del state["text_model.model.encoder.layer.2.output.dense.bias"]
    state["vision_model.projection_head.weight"] = np.zeros((3, 5), np.float32)
    state["text_model.projection_head.bias"] = np.zeros(512, np.float32)
    _, report = medclip.from_torch(state, target)
    assert report.missing == ("text_model.model.encoder.layer.2.output.dense.bias",)
    assert report.unexpected == ("text_model.projection_head.bias",)
    assert report.mismatched == (
        ("vision_model.projection_head.weight", (3, 5), (512, 16)),
    )
    with pytest.raises(UserError) as error:
        report.require("weights.bin")
    for line in report.lines():
        assert line in str(error.value)


def test_bias_of_the_text_projection_has_a_place():
    """An early internal checkpoint had one."""
    method = method_of("swin", "pooler", **SMALL["swin"])
    variables = random_like(target_of(method))
    bias = np.arange(512, dtype=np.float32)
    variables["params"]["text"]["projection"]["bias"] = bias
    state, report = medclip.to_torch(variables, "swin")
    assert report.fits
    np.testing.assert_array_equal(state["text_model.projection_head.bias"], bias)
    back, report = medclip.from_torch(state, variables)
    assert report.fits
    np.testing.assert_array_equal(back["params"]["text"]["projection"]["bias"], bias)


def test_leaves_without_a_place_are_named():
    method = method_of("swin", "pooler", **SMALL["swin"])
    variables = random_like(target_of(method))
    variables["params"]["logit_bias"] = np.float32(0)
    variables["params"]["image"]["projection"]["hidden"] = {"kernel": np.zeros((2, 2))}
    _, report = medclip.to_torch(variables, "swin")
    assert sorted(report.unexpected) == [
        "params/image/projection/hidden/kernel",
        "params/logit_bias",
    ]


def test_other_files_and_other_towers_are_refused():
    target = target_of(method_of("swin", "pooler", **SMALL["swin"]))
    with pytest.raises(UserError, match="MedCLIP's official state dict"):
        medclip.from_torch({"conv1.weight": np.zeros(1)}, target)
    other = target_of(method_of("resnet", "pooler", **SMALL["resnet"]))
    state, _ = medclip.to_torch(random_like(other), "resnet")
    with pytest.raises(UserError, match="model.image.name to 'resnet'"):
        medclip.from_torch(state, target)


def golden_weight(key, shape):
    noise = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("running_mean"):
        value = 0.1 * noise
    elif key.endswith("running_var"):
        value = 1 + 0.1 * np.abs(noise)
    elif len(shape) == 1:
        value = 1 + 0.1 * noise if key.endswith("weight") else 0.02 * noise
    else:
        value = noise / np.sqrt(np.prod(shape[1:]))
    return value.astype(np.float32)


def golden_state(variant, target):
    empty = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), target)
    shapes, _ = medclip.to_torch(empty, variant)
    return {
        key: np.float32(2.659260)
        if key == "logit_scale"
        else value
        if value.dtype == np.int64
        else golden_weight(key, value.shape)
        for key, value in shapes.items()
    }


def test_golden_rule():
    got = golden_weight("vision_model.projection_head.weight", (512, 768)).ravel()[:3]
    np.testing.assert_allclose(
        got, np.array([-0.017759, -0.037483, 0.087162]), atol=1e-6
    )


IMAGE = {
    "swin": [
        [-0.005673, -0.008378, -0.027872, -0.067947, -0.026691],
        [-0.005153, -0.011056, -0.029411, -0.063873, -0.020860],
    ],
    "resnet": [
        [-0.085327, -0.031431, 0.074361, 0.058701, -0.005835],
        [-0.084589, -0.033962, 0.074883, 0.059427, -0.004063],
    ],
}
TEXT = {
    "layers_1_2_last": [
        [-0.104063, -0.037985, -0.064311, -0.036720, -0.027461],
        [-0.070552, -0.020470, -0.045373, -0.044542, 0.010109],
    ],
    "pooler": [[-0.050590, -0.011207, 0.023533, 0.027215, -0.024317]],
}
LOGITS = {
    ("swin", "layers_1_2_last"): [[0.518315, 0.712181], [0.460012, 0.616416]],
    ("swin", "pooler"): [[-0.062907, -0.162053], [-0.393389, -0.510085]],
    ("resnet", "layers_1_2_last"): [[-0.654241, -0.377045], [-0.689842, -0.421415]],
    ("resnet", "pooler"): [[-0.292608, -0.160381], [-0.295384, -0.158768]],
}


def close(got, wanted):
    np.testing.assert_allclose(np.asarray(got), wanted, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["swin", "resnet"])
def test_golden_vectors(variant):
    """Published sizes through converter and method, to 1e-4."""
    methods = {pool: method_of(variant, pool) for pool in TEXT}
    target = target_of(methods["pooler"])
    variables, report = medclip.from_torch(golden_state(variant, target), target)
    assert report.fits
    pixels = np.random.RandomState(0).standard_normal((2, 3, 224, 224))
    films = pixels.transpose(0, 2, 3, 1).astype(np.float32)

    def run(function, *args):
        return jax.jit(function)(*args)

    def embed_films(variables, films):
        return methods["pooler"].embed_images(variables, {"current_BxHxWx3": films})

    images = run(embed_films, variables, films)
    close(images.joint_BxD[:, :5], IMAGE[variant])
    if variant == "swin":
        wanted = [0.384808, 1.986764, -1.933902, 0.081910, 0.934161]
        close(images.trunk_BxF[0, :5], wanted)
        norm = np.linalg.norm(images.trunk_BxF[0])
        np.testing.assert_allclose(norm, 26.689001, rtol=1e-5)
        one = np.repeat(films[..., :1], 3, axis=-1)
        gray = run(embed_films, variables, one).joint_BxD[0, :5]
        close(gray, [-0.011035, -0.005018, -0.035934, -0.078218, -0.035131])
    for pool, method in methods.items():
        texts = run(
            lambda variables, ids, method=method: method.embed_texts(
                variables, {"ids_BxT": ids, "mask_BxT": (ids != 0).astype(np.int32)}
            ),
            variables,
            IDS,
        )
        close(texts.joint_BxD[: len(TEXT[pool]), :5], TEXT[pool])
        close(method.score(variables, images, texts), LOGITS[variant, pool])
    if variant == "swin":
        check_hidden_states(methods["layers_1_2_last"], variables)


def check_hidden_states(method, variables):
    features = method.text_encoder.apply(
        {"params": variables["params"]["text"]["encoder"]},
        IDS,
        (IDS != 0).astype(np.int32),
        train=False,
    )
    close(features.hidden[1][0, 0, :3], [-0.842107, 0.660448, -0.620179])
    close(features.hidden[12][0, -1, :3], [0.435352, -1.869602, 0.298177])
    short = method.embed_texts(
        variables, {"ids_BxT": IDS[:1, :5], "mask_BxT": np.ones((1, 5), np.int32)}
    )
    wanted = [-0.097525, -0.053066, -0.074869, -0.049574, -0.039032]
    close(short.joint_BxD[0, :5], wanted)
