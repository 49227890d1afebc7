"""Every test of a loss holds for both of its forms."""

import pytest

from medclip_jax.losses import ring


@pytest.fixture(params=["dense", "rounds"], autouse=True)
def form(request, monkeypatch):
    """The loss as one matrix of logits, or in rounds of tiles of one or two rows."""
    rounds = request.param == "rounds"
    monkeypatch.setattr(ring, "FROM_LOGITS", 0 if rounds else 1 << 60)
    monkeypatch.setattr(ring, "MOST_ROWS", 2)
    return request.param
