"""Shards -> batches: views, host decode, tokens, device augmentation.

Axis letters used by names in this package: B batch, N images, M texts, H and W rows
and columns of a film, T token positions, S sentences, R reports, P rows of a view.
"""
