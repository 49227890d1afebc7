"""Hiding words, and BERT's head against transformers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.losses import masked_tokens
from medclip_jax.models import mlm

B, T, VOCAB, MASK = 400, 12, 50, 4
# [CLS], five words of two pieces, [SEP].
WORD_IDS = jnp.tile(jnp.array([-1, *np.repeat(np.arange(5), 2), -1], jnp.int32), (B, 1))
IDS = jnp.asarray(np.random.default_rng(0).integers(5, VOCAB, (B, T)), jnp.int32)
KEYS = jax.random.split(jax.random.key(0), B)


def hide(rate=0.15, whole=True, keys=KEYS):
    made = mlm.mask_words(
        IDS[: len(keys)], WORD_IDS[: len(keys)], keys, rate, MASK, VOCAB, whole
    )
    return tuple(map(np.asarray, made))


@pytest.mark.parametrize("rate", [0.15, 0.45])
def test_how_much_is_hidden_and_how(rate):
    ids, chosen = hide(rate)
    within = np.asarray(WORD_IDS) >= 0
    assert not chosen[~within].any() and (ids == IDS)[~chosen].all()
    assert chosen[within].mean() == pytest.approx(rate, abs=0.03)
    masked = (ids == MASK)[chosen].mean()
    assert masked == pytest.approx(0.8, abs=0.04)
    changed = (ids != np.asarray(IDS))[chosen].mean()
    assert changed - masked == pytest.approx(0.1, abs=0.03)


def test_whole_words_or_pieces():
    _, chosen = hide()
    words = chosen[:, 1:-1].reshape(B, 5, 2)
    assert (words[..., 0] == words[..., 1]).all()
    _, chosen = hide(whole=False)
    words = chosen[:, 1:-1].reshape(B, 5, 2)
    assert (words[..., 0] != words[..., 1]).any()


def test_a_text_draws_by_its_own_key():
    ids, chosen = hide()
    some = mlm.mask_words(IDS[3:5], WORD_IDS[3:5], KEYS[3:5], 0.15, MASK, VOCAB)
    np.testing.assert_array_equal(some[0], ids[3:5])
    np.testing.assert_array_equal(some[1], chosen[3:5])
    other, _ = hide(keys=jax.random.split(jax.random.key(1), B))
    assert (other != ids).any()


def test_the_head_equals_transformers(monkeypatch):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, layer_norm_eps=1e-12,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.BertForMaskedLM(config).cls.predictions
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, 0.3, 0.5)
    state = {
        name: value.detach().numpy() for name, value in theirs.state_dict().items()
    }
    params = {
        "hidden": {
            "kernel": state["transform.dense.weight"].T,
            "bias": state["transform.dense.bias"],
        },
        "norm": {
            "scale": state["transform.LayerNorm.weight"],
            "bias": state["transform.LayerNorm.bias"],
        },
        "bias": state["bias"],
    }
    rng = np.random.default_rng(1)
    states = rng.normal(size=(3, 7, 16)).astype(np.float32)
    ids = rng.integers(0, VOCAB, (3, 7)).astype(np.int32)
    chosen = rng.random((3, 7)) < 0.5
    logits = theirs(torch.from_numpy(states))
    expected = torch.nn.functional.cross_entropy(
        logits.reshape(-1, VOCAB),
        torch.from_numpy(ids).long().ravel(),
        reduction="none",
    )
    expected = np.where(chosen, expected.detach().numpy().reshape(3, 7), 0)
    head = mlm.MaskedTokens(VOCAB)
    for most in (1, 3 * VOCAB * 4, 1 << 24):  # a token at a time, some, all
        monkeypatch.setattr(masked_tokens, "LOGITS", most)
        said, bias = head.apply({"params": params}, states)
        losses, right = masked_tokens.masked_token_losses(
            said, state["decoder.weight"], bias, ids, chosen
        )
        np.testing.assert_allclose(losses, expected, atol=1e-4)
        best = logits.argmax(-1).numpy() == ids
        np.testing.assert_array_equal(right, best & chosen)


def test_the_table_learns_from_both_ends():
    """It is tied: the head's gradient reaches it as the input's does."""
    head = mlm.MaskedTokens(VOCAB)
    states = jnp.ones((2, 3, 16))
    ids, chosen = jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3), bool)
    table = jax.random.normal(jax.random.key(0), (VOCAB, 16))
    params = nn.meta.unbox(head.init(jax.random.key(1), states))
    said, bias = head.apply(params, states)

    def loss(table):
        return masked_tokens.masked_token_losses(said, table, bias, ids, chosen)[
            0
        ].sum()

    by_table = jax.grad(loss)
    assert np.abs(by_table(table)).min(axis=1).max() > 0
