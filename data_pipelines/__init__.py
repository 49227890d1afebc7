"""Raw radiology data -> ArrayRecord shards and a study table. Never imports jax."""
