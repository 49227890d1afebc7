"""Heads against worked figures."""

import jax.numpy as jnp
import numpy as np

from medclip_jax.losses import infonce_loss
from medclip_jax.models.heads import TokenMLP

HIDDEN = np.array(
    [[0.1, -0.2, 0.3, 0.4], [-0.5, 0.6, 0.7, -0.8], [0.9, 1.0, -1.1, 1.2]]
)
OUT = np.array([[0.2, 0.1, 0], [-0.3, 0.4, 0.5], [0.6, -0.7, 0.8]])
PARAMS = {
    "hidden": {"kernel": HIDDEN.T, "bias": np.array([0.01, -0.02, 0.03])},
    "norm": {"scale": np.array([1.1, 0.9, 1.0]), "bias": np.array([0, 0.1, -0.1])},
    "out": {"kernel": OUT.T, "bias": np.array([0.05, 0, -0.05])},
}


def test_cxr_bert_s_projection():
    """With the exact GELU: the usual approximation differs in the fourth decimal."""
    params = {
        layer: {name: jnp.asarray(value, jnp.float32) for name, value in of.items()}
        for layer, of in PARAMS.items()
    }
    states = jnp.array([0.5, -1.0, 0.25, 2.0])
    for given in (states[None], states[None, None]):
        found = TokenMLP(3).apply({"params": params}, given)
        assert found.shape == (*given.shape[:-1], 3)
        np.testing.assert_allclose(
            found.ravel(), [-0.004164, -0.033623, 1.668625], atol=2e-6
        )


def test_sections_of_a_report_find_each_other():
    """CXR-BERT's section matching is InfoNCE with both directions added up."""

    def unit(rows):
        rows = np.array(rows, np.float32)
        return jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    findings = unit([[1, 2, 0], [0, 1, -1], [2, 0, 1]])
    impressions = unit([[1, 1, 0], [0.5, 1, -1], [1, -1, 1]])
    ways = [
        infonce_loss(findings, impressions, 1 / 0.5, image_to_text=share)
        for share in (1.0, 0.0)
    ]
    np.testing.assert_allclose(ways, [0.534749, 0.473158], atol=1e-5)
    films = unit([[0.2, 1.0, -0.5, 0.3], [1.0, 0.1, 0.4, -0.2], [-0.3, 0.6, 1.2, 0.0]])
    texts = unit([[0.1, 0.9, -0.4, 0.5], [0.8, -0.2, 0.1, 0.0], [0.0, 0.4, 0.7, -0.6]])
    for scale, expected in ((1 / 0.5, 0.627807), (1 / 0.07, 0.001660)):
        found = 2 * infonce_loss(films, texts, scale)
        np.testing.assert_allclose(found, expected, atol=1e-5)
