"""Shipped experiments: one file a method, `get_config(arg)` -> ConfigDict."""
