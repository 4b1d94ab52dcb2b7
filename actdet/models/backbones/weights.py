"""Weights of a backbone out of a file: named tensors, and nothing that could be executed."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from actdet.errors import ActdetError, DataError


def fetch_state(weights: WeightsEnum, name: str) -> dict[str, Tensor]:
    """Download published weights of torchvision's, or read them from its cache.

    Args:
        weights: Which.
        name: What error messages call them.

    Raises:
        ActdetError: If they cannot be downloaded.
    """
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (URLError, OSError, RuntimeError) as error:
        raise ActdetError(
            f"the {name} weights cannot be fetched from {weights.url} ({error}): "
            f"give a downloaded file with --backbone-weights FILE, or train from scratch with --backbone-weights none"
        ) from error


def read_state(path: Path, network: str, published: str | None = None) -> dict[str, Tensor]:
    """Read the named tensors in a .safetensors, .pth or .pt file; nothing in it is executed.

    A training state is accepted as well, a dict that holds the named tensors as its "state_dict".

    Args:
        path: The file.
        network: What error messages call the network.
        published: What --backbone-weights takes for the network's published weights; None if they are only in files.

    Raises:
        DataError: If it is no such file.
    """
    if not path.is_file():
        takes = "none" if published is None else f"{published}, none,"
        raise DataError(
            path,
            f"no such file: --backbone-weights takes {takes} or a .safetensors, .pth or .pt file",
        )
    try:
        with warnings.catch_warnings():
            # torch.load warns about pickles that it then refuses.
            warnings.simplefilter("ignore")
            if path.suffix == ".safetensors":
                content: Any = load_file(path)
            else:
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # On arbitrary bytes torch.load raises errors of more kinds than can be listed.
        raise DataError(path, f"not a file of weights ({type(error).__name__})") from error

    state = content.get("state_dict", content) if isinstance(content, dict) else content
    is_state = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    )
    if not is_state:
        raise DataError(path, f"not a state dict: it should hold the named tensors of {network}")
    return state


def holds(state: Mapping[str, Tensor], name: str) -> bool:
    """Whether a file has a tensor of this name, perhaps behind a prefix, such as "module."."""
    return any(f".{key}".endswith(f".{name}") for key in state)


def find_tensors(state: Mapping[str, Tensor], names: Mapping[str, str], backbone: nn.Module) -> dict[str, Tensor]:
    """Find the tensors of `backbone` in a file where all of their names may stand behind the same prefix.

    DataParallel puts "module." there, and a detector what it calls its backbone. A detector may have two backbones some
    of whose names are the same, so of several prefixes that with most tensors of the right shape is taken.

    Args:
        state: The tensors of the file.
        names: For tensors of `backbone`, their names in the file without the prefix.
        backbone: The backbone.

    Returns:
        Those that were found, by their names in `backbone`, of whatever shape.
    """
    own = backbone.state_dict()
    shapes = {name: own[key].shape for key, name in names.items()}
    most_parts = max(name.count(".") for name in shapes) + 1

    # How many tensors stand behind each prefix and fit.
    fitting: Counter[str] = Counter()
    for key, value in state.items():
        parts = key.rsplit(".", most_parts)
        for first in range(len(parts)):
            name = ".".join(parts[first:])
            if name in shapes:
                fitting[key.removesuffix(name)] += value.shape == shapes[name]

    prefix = max(fitting, key=lambda prefix: fitting[prefix], default="")
    return {key: state[prefix + name] for key, name in names.items() if prefix + name in state}


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
    filled = dict(own)
    for key, name in names.items():
        if key in found:
            _check(found[key], own[key], name, source, network)
            filled[key] = found[key]
        # Before PyTorch 0.4.1 BatchNorm did not count its batches, and only one without a momentum needs the number.
        elif not key.endswith("num_batches_tracked"):
            raise DataError(source, f"not weights of {network}: {name} is missing")
    backbone.load_state_dict(filled)


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
