"""Weights of a backbone out of a file: named tensors, and nothing that could be executed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from actdet.errors import DataError


def read_state(path: Path, network: str, published: str) -> dict[str, Tensor]:
    """Read the named tensors in a .safetensors, .pth or .pt file; nothing in it is executed.

    Args:
        path: The file.
        network: What error messages call the network.
        published: What --backbone-weights takes for the network's published weights.

    Raises:
        DataError: If it is no such file.
    """
    if not path.is_file():
        raise DataError(
            path,
            f"no such file: --backbone-weights takes {published}, none, or a .safetensors, .pth or .pt file",
        )
    try:
        with warnings.catch_warnings():
            # torch.load warns about pickles that it then refuses.
            warnings.simplefilter("ignore")
            if path.suffix == ".safetensors":
                state = load_file(path)
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # On arbitrary bytes torch.load raises errors of more kinds than can be listed.
        raise DataError(path, f"not a file of weights ({type(error).__name__})") from error

    is_state = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    )
    if not is_state:
        raise DataError(path, f"not a state dict: it should hold the named tensors of {network}")
    return state


def fill_weights(
    backbone: nn.Module, found: Mapping[str, Tensor], names: Mapping[str, str], source: str, network: str
) -> None:
    """Fill the tensors of `backbone`; it is left as it was if one of them does not fit.

    Args:
        backbone: The backbone.
        found: Tensors by their names in `backbone`; those of other names are left out.
        names: For each tensor of `backbone` that is to be filled, what error messages call it.
        source: What error messages call the file or the place that the tensors are from.
        network: What they call the network.

    Raises:
        DataError: If a tensor is missing, has another shape or kind of numbers, or numbers that are not finite.
    """
    own = backbone.state_dict()
    for key, name in names.items():
        if key not in found:
            raise DataError(source, f"not weights of {network}: {name} is missing")
        _check(found[key], own[key], name, source, network)
    backbone.load_state_dict({key: found[key] if key in names else value for key, value in own.items()})


def _check(found: Tensor, wanted: Tensor, name: str, source: str, network: str) -> None:
    """Raise DataError unless `found` can take the place of `wanted`, which messages call `name`."""
    if found.shape != wanted.shape:
        shapes = f"{tuple(found.shape)}, should be {tuple(wanted.shape)}"
        raise DataError(source, f"not weights of {network}: {name} is {shapes}")
    if found.layout != torch.strided or found.is_floating_point() != wanted.is_floating_point():
        kinds = f"{found.dtype} and {found.layout}, should be {wanted.dtype} and {wanted.layout}"
        raise DataError(source, f"not weights of {network}: {name} is {kinds.replace('torch.', '')}")

    # A finite float64 may be too large for the type in which the weight is used.
    if not found.to(wanted.dtype).isfinite().all():
        raise DataError(source, f"{name} is not finite: the file is damaged, or its training failed")
