"""Published PyTorch weights <-> trees of variables, both ways, key by key."""
