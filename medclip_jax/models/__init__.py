"""Encoders in flax.linen, one file an architecture, found through `registry`."""
