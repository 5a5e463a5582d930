"""Weights of torchvision networks: by torchvision's name or from a local file, told apart from another network's."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quintet.common.errors import UserError

# what torchvision's weights were trained with, unless they say otherwise
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def official(name: str, weights: str | None) -> Any:
    """torchvision's entry of that name for the network `name`, None where there is none."""
    from torchvision import models

    return models.get_model_weights(name).__members__.get(str(weights))


def no_such_network(name: str, key: str) -> UserError:
    """What to say about a network that torchvision does not have: names that begin alike."""
    from torchvision import models

    near = [known for known in models.list_models(module=models) if known.startswith(name[:4])]
    return UserError(f"{key}.name={name}: torchvision has {', '.join(near) or 'none like it'}")


def weights_file(name: str, weights: str, key: str) -> Path:
    """The local file; UserError that lists torchvision's names when there is no such file. key: what a user set."""
    path = Path(weights).expanduser()
    if not path.is_file():
        from torchvision import models

        names = ", ".join(known.name for known in models.get_model_weights(name))
        raise UserError(f"{key}={weights}: no such file; give one, or {names}, or null")
    return path


def weights_key(name: str, weights: str | None, key: str) -> str:
    """What tells these weights from others, wherever the file lies: its hash, the address of torchvision's."""
    if weights is None:
        return "random"
    known = official(name, weights)
    return known.url if known else hashlib.sha256(weights_file(name, weights, key).read_bytes()).hexdigest()


def read_weights(name: str, weights: str | None, key: str) -> Mapping[str, Tensor] | None:
    """The state_dict of a file or of torchvision's weights (downloaded), None for null."""
    if weights is None:
        return None
    if official(name, weights):
        return official(name, weights).get_state_dict(progress=False, check_hash=True)
    path = weights_file(name, weights, key)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its own text speaks of arguments that nobody can set here
        raise UserError(
            f"{key}={weights} cannot be read: it is no file of torch.save that holds tensors alone"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{key}={weights} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(state, Mapping):
        raise UserError(f"{key}={weights} holds no state_dict but a {type(state).__name__}")
    odd = [name for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if odd:
        inner = [name for name, value in state.items() if isinstance(value, Mapping) and name in odd]
        advice = f"save what is under {inner[0]!r} as a file of its own" if inner else "save the state_dict alone"
        raise UserError(f"{key}={weights} is no state_dict: {odd[0]!r} is no tensor; {advice}")
    return state


def load_weights(network: nn.Module, state: Mapping[str, Tensor], told: str) -> None:
    """Strict loading; `told` opens the one line that names the first keys that do not fit, or that hold NaN."""
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        own = network.state_dict()
        missing, extra = [k for k in own if k not in state], [k for k in state if k not in own]
        odd = [k for k in own if k in state and state[k].shape != own[k].shape]
        kinds = {"missing": missing, "unknown": extra, "of another shape": odd}
        parts = "; ".join(f"{kind}: {', '.join(keys[:3])}" for kind, keys in kinds.items() if keys)
        raise UserError(f"{told}: {parts}") from error
    broken = [k for k, v in network.state_dict().items() if v.is_floating_point() and not bool(v.isfinite().all())]
    if broken:
        raise UserError(f"{told}: NaN or infinity in {', '.join(broken[:3])}; was its training stopped in time?")
