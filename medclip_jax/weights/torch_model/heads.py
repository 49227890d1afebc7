"""The maps of projection.safetensors: a matrix, or layers with norms."""

from torch import nn


class BatchNorm(nn.BatchNorm1d):
    """Of the last axis, whatever stands before it."""

    def forward(self, x):
        return super().forward(x.flatten(0, -2)).view(x.shape)


def heads(state):
    """All maps of a state dict by name.

    Args:
      state: of projection.safetensors, NAME.weight or NAME.LAYER.weight.
    """
    names = sorted({key.partition(".")[0] for key in state})
    return {name: _head(state, f"{name}.") for name in names}


def _head(state, prefix):
    """One matrix, or several. Between two: batch norm, where there is one, and ReLU; of
    CXR-BERT GELU and layer norm."""
    if prefix + "weight" in state:
        return _linear(state, prefix)
    names, parts = [("hidden", "norm"), ("out", "out_norm")], []
    names += [(f"layer_{number}", f"norm_{number}") for number in range(len(state))]
    for linear, norm in names:
        if f"{prefix}{linear}.weight" not in state:
            continue
        parts.append(_linear(state, f"{prefix}{linear}."))
        if f"{prefix}{norm}.running_mean" in state:
            parts += [_batch_norm(state, f"{prefix}{norm}."), nn.ReLU()]
        elif f"{prefix}{norm}.weight" in state:
            parts += [nn.GELU(), _layer_norm(state, f"{prefix}{norm}.")]
        else:
            parts.append(nn.ReLU())
    return nn.Sequential(*parts[:-1])


def _linear(state, prefix):
    weight, bias = state[prefix + "weight"], state.get(prefix + "bias")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer


def _batch_norm(state, prefix):
    layer = BatchNorm(len(state[prefix + "running_mean"]))
    # A last one may have no scale, or no offset: they stay 1 and 0.
    layer.weight.data = state.get(prefix + "weight", layer.weight.data)
    layer.bias.data = state.get(prefix + "bias", layer.bias.data)
    layer.running_mean.data = state[prefix + "running_mean"]
    layer.running_var.data = state[prefix + "running_var"]
    return layer


def _layer_norm(state, prefix):
    layer = nn.LayerNorm(len(state[prefix + "weight"]), eps=1e-12)
    layer.weight.data, layer.bias.data = (
        state[prefix + "weight"],
        state[prefix + "bias"],
    )
    return layer
