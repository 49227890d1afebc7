"""What the codes of a label mean to a loss."""

import jax
import jax.numpy as jnp

UNCERTAIN = ("zero", "one", "keep", "ignore")
NOT_GIVEN = ("zero", "ignore")


def label_values(
    codes: jax.Array, uncertain: str = "zero", not_given: str = "zero"
) -> tuple[jax.Array, jax.Array]:
    """Turns label codes into values and a mask of those that count.

    Args:
      codes: int8 [..., K]: 1 positive, 0 negative, -1 uncertain, -2 not given.
      uncertain: "zero" and "one" are U-Zeros and U-Ones of the CheXpert paper
        (arXiv 1901.07031, section 3.1), "ignore" is U-Ignore; "keep" leaves -1 as
        the value, as MedCLIP's official code does for texts (medclip/dataset.py).
      not_given: "zero" counts as negative, as most pretraining code does;
        "ignore" masks.

    Returns:
      values, float32 [..., K], 0 where masked; mask, float32 [..., K].

    Raises:
      ValueError: unknown policy.
    """
    if uncertain not in UNCERTAIN:
        raise ValueError(f"uncertain must be one of {UNCERTAIN}; found {uncertain!r}")
    if not_given not in NOT_GIVEN:
        raise ValueError(f"not_given must be one of {NOT_GIVEN}; found {not_given!r}")
    value = {"zero": 0.0, "one": 1.0, "keep": -1.0, "ignore": 0.0}[uncertain]
    is_uncertain, is_absent = codes == -1, codes == -2
    values = jnp.where(is_uncertain, value, codes.astype(jnp.float32))
    values = jnp.where(is_absent, 0.0, values)
    masked = (is_uncertain & (uncertain == "ignore")) | (
        is_absent & (not_given == "ignore")
    )
    return values, 1.0 - masked.astype(jnp.float32)
