"""MGCA against PyTorch on the same random weights: embeddings, losses and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.methods import registry
from medclip_jax.methods.dual_encoder import local
from medclip_jax.methods.towers import l2_normalize
from medclip_jax.weights import mgca
from medclip_jax.weights.layout import flatten

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import mgca_in_torch as official
from test_official_mgca import PIECES, TEXTS, config_of, target_of
from test_torch_parity import shake

PARTS = ("loss_global", "loss_words", "loss_patches", "loss_prototypes")


def batch():
    """Each text with four films: of three pairs alone, statistics are ill-conditioned."""
    ids = np.zeros((4 * len(TEXTS), 9), np.int32)
    words = np.full(ids.shape, -1, np.int32)
    for row, text in enumerate(4 * TEXTS):
        pieces = text.split()
        ids[row, : len(pieces)] = [PIECES.index(piece) for piece in pieces]
        starts = np.cumsum([not piece.startswith("##") for piece in pieces])
        words[row, 1 : len(pieces) - 1] = starts[1:-1] - 2
    films = np.random.default_rng(0).normal(size=(len(ids), 32, 32, 3))
    return {
        "films": {"current_BxHxWx3": films.astype(np.float32)},
        "texts": {
            "ids_BxT": ids,
            "mask_BxT": (ids > 0).astype(np.int32),
            "word_ids_BxT": words,
        },
        "image_weight_N": np.ones(len(ids), np.float32),
        "text_weight_M": np.ones(len(ids), np.float32),
    }


def in_torch(image, learned):
    if image == "vit":
        tower, widths = official.ViT(32, 8, 24, 2, 3, 40), (24, 24)
    else:
        sizes = {"stage_sizes": (1, 1, 1, 1), "width": 4}
        tower, widths = official.MiddleMap(48, **sizes), (128, 64)
    text = {
        "vocab_size": len(PIECES),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    model = shake(official.Official(tower, widths, text, PIECES, learned))
    with torch.no_grad():
        types = model.text_encoder_q.model.embeddings.token_type_embeddings
        types.weight.zero_()
        prototypes = model.prototype_layer.weight
        prototypes.copy_(torch.nn.functional.normalize(prototypes))
    return model


@pytest.mark.parametrize(
    ("image", "learned"), [("vit", False), ("vit", True), ("resnet", False)]
)
def test_the_official_model(image, learned):
    """Embeddings at inference; the losses of a step of training and their gradients."""
    given = batch()
    films = torch.tensor(given["films"]["current_BxHxWx3"].transpose(0, 3, 1, 2))
    ids = torch.tensor(given["texts"]["ids_BxT"]).long()
    theirs = in_torch(image, learned)
    attention = "learned" if learned else "cosines"
    method = registry.build(config_of(image, f"attention={attention}"))
    target = target_of(method)
    variables, report = mgca.from_torch(theirs.official_state(), target)
    report.require("the official model")

    with torch.no_grad():
        expected = theirs.eval().embed(films, ids)
    features, _ = jax.jit(method.encode, static_argnums=3)(
        variables, given, None, False
    )
    patches, words, mask = local(features.images, features.texts)
    np.testing.assert_array_equal(mask, expected["real"])
    looks = features.images.local_weight_BxP, expected["patch_looks"]
    for name, ours in (
        ("image", features.images.joint_BxD),
        ("text", features.texts.joint_BxD),
        ("patches", l2_normalize(patches)),
        ("words", l2_normalize(words)),
        ("word_looks", features.texts.local_weight_BxW),
        *([("patch_looks", looks[0])] if image == "vit" else []),
    ):
        np.testing.assert_allclose(ours, expected[name], atol=1e-5, err_msg=name)

    losses = theirs.train().losses(films, ids)
    sum(losses).backward()

    @jax.jit
    def step(params):
        def loss(params):
            now = {**variables, "params": params}
            features, state = method.encode(now, given, None, True)
            loss, parts, _ = method.objective(now, features, given, None, jnp.int32(0))
            return loss, (parts, state)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (total, (parts, state)), gradient = step(variables["params"])
    for name, value in zip(PARTS, losses, strict=True):
        np.testing.assert_allclose(parts[name], value.item(), rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(total, sum(losses).item(), rtol=1e-4)
    moved = theirs.official_state()
    key = "text_encoder_q.local_embed.head.1.running_mean"
    norm = state["batch_stats"]["text_projection"]["local"]["norm"]
    np.testing.assert_allclose(norm["mean"], moved[key], atol=1e-5)
    assert_same_gradients(gradient, theirs, target)


@pytest.mark.parametrize(
    ("image", "learned"), [("vit", False), ("vit", True), ("resnet", True)]
)
def test_the_official_model_loads_what_is_exported(image, learned):
    """Strictly where attention is learned; what comes back is the same to the bit."""
    theirs = in_torch(image, learned)
    attention = "learned" if learned else "cosines"
    target = target_of(registry.build(config_of(image, f"attention={attention}")))
    variables, _ = mgca.from_torch(theirs.official_state(), target)
    state, report = mgca.to_torch(variables, image)
    back, _ = mgca.from_torch(state, target)
    before, after = flatten(variables), flatten(back)
    assert before.keys() == after.keys()
    for path, value in before.items():
        np.testing.assert_array_equal(value, after[path], err_msg=str(path))

    blank = in_torch(image, learned)
    with torch.no_grad():
        for value in blank.parameters():
            value.fill_(0.5)
    types = "text_encoder_q.model.embeddings.token_type_embeddings.weight"
    tensors = {key: torch.from_numpy(value.copy()) for key, value in state.items()}
    tensors[types] = torch.zeros_like(blank.state_dict()[types])  # of the test's BERT
    keys = blank.load_state_dict(tensors, strict=learned)
    assert not keys.unexpected_keys
    assert all(key.startswith(report.missing) for key in keys.missing_keys)
    assert len(keys.missing_keys) == (0 if learned else 8)
    for key, value in theirs.official_state().items():
        if "_atten_layer" not in key or learned:
            np.testing.assert_allclose(
                blank.state_dict()[key], value, rtol=1e-6, err_msg=key
            )


def assert_same_gradients(ours, theirs, target):
    """`from_torch` maps gradients as it maps weights; prototypes apart."""
    state = {
        name: np.zeros(of.shape, np.float32) if of.grad is None else of.grad.numpy()
        for name, of in theirs.named_parameters()
        if "token_type_embeddings" not in name
    }
    mapped, _ = mgca.from_torch(state, target)
    mapped["params"]["prototypes"] = state["prototype_layer.weight"]
    expected, ours = flatten({"params": mapped["params"]}), flatten({"params": ours})
    assert expected.keys() == ours.keys()
    largest = max(np.abs(value).max() for value in expected.values())
    for path, value in expected.items():
        if path[-1] != "type_embedding":  # the official tower has none
            np.testing.assert_allclose(
                ours[path] / largest, value / largest, atol=1e-4, err_msg=str(path)
            )
