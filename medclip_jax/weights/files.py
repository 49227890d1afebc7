"""Reading and writing files of weights. Nothing is ever unpickled but plain tensors."""

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from medclip_jax.errors import UserError
from medclip_jax.weights.layout import StateDict

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
_NAMES = (SAFETENSORS, SAFETENSORS + ".index.json", PICKLE, PICKLE + ".index.json")

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read(path: str | Path) -> StateDict:
    """Reads a state dict.

    Args:
      path: a .safetensors file, a file of torch.save, or a Hugging Face folder that
        holds one of them (whole or in shards with an index).

    Returns:
      Arrays by key; 16-bit floats are not widened.

    Raises:
      UserError: nothing readable there, or a file that needs PyTorch where there is
        none.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in _NAMES if (path / name).is_file()]
        if not found:
            raise UserError(
                f"expected one of {', '.join(_NAMES)} in {path}, found none"
            )
        path = found[0]
    if not path.is_file():
        raise UserError(f"no weights at {path}: expected a file or a folder")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_torch(path)


def _read_shards(index: Path) -> StateDict:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index} is no index of weight shards") from error
    state: StateDict = {}
    for name in names:
        if name != Path(name).name:
            raise UserError(f"{index} names a shard outside its folder: {name}")
        state.update(read(index.parent / name))
    return state


def _read_safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError, deserialize

    try:
        tensors = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file: {error}") from error
    state: StateDict = {}
    for name, tensor in tensors:
        dtype = _DTYPES.get(tensor["dtype"])
        if dtype is None:
            raise UserError(f"{path}: {name} has unknown dtype {tensor['dtype']}")
        array = np.frombuffer(tensor["data"], dtype)
        state[name] = array.reshape(tensor["shape"])
    return state


def _read_torch(path: Path) -> StateDict:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} needs PyTorch to be read: pip install torch, or convert it to "
            "safetensors where PyTorch is installed"
        ) from error
    import pickle

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"{path} is no file of plain tensors (it is only ever read with "
            f"weights_only=True): {str(error).splitlines()[0]}"
        ) from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not a state dict")
    others = [key for key, value in loaded.items() if not torch.is_tensor(value)]
    if others:
        raise UserError(f"{path} holds entries that are no tensors: {others[:10]}")
    return {
        key: (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        for key, value in loaded.items()
    }


def write_safetensors(state: StateDict, path: str | Path) -> None:
    """Writes a safetensors file that PyTorch libraries open."""
    from safetensors.numpy import save_file

    # It writes the buffer of an array, whatever its strides say.
    whole = {key: np.array(value, order="C") for key, value in state.items()}
    save_file(whole, str(path), metadata={"format": "pt"})


def write_torch(state: StateDict, path: str | Path) -> None:
    """Writes a file as torch.save writes a state dict. Needs PyTorch."""
    import torch

    torch.save(
        {key: torch.from_numpy(value.copy()) for key, value in state.items()}, path
    )
