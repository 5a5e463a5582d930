"""Select parameters by patterns over names, and convert between named tensors and one flat vector."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from quintet.common.errors import UserError


class Selection:
    """The parameters of `module` whose names match a pattern (`*`, `network.head.*`), as one vector of p numbers.

    Errors: UserError that lists the names when nothing matches.
    """

    def __init__(self, module: nn.Module, params: str | Sequence[str] = "*") -> None:
        patterns = [params] if isinstance(params, str) else list(params)
        everything = dict(module.named_parameters())
        self.names = [name for name in everything if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if not self.names:
            raise UserError(f"params={patterns} matches no parameter: choose from {', '.join(everything)}")
        self.shapes = [everything[name].shape for name in self.names]
        self.sizes = [shape.numel() for shape in self.shapes]

    @property
    def num_params(self) -> int:
        """p."""
        return sum(self.sizes)

    def read(self, module: nn.Module) -> Tensor:
        """The module's present parameters as a vector (p,), detached."""
        values = dict(module.named_parameters())
        return torch.cat([values[name].detach().flatten() for name in self.names])

    def write(self, module: nn.Module, theta_p: Tensor) -> None:
        """Set the module's parameters."""
        values = dict(module.named_parameters())
        with torch.no_grad():
            for name, part in self.named(theta_p).items():
                values[name].copy_(part)

    def named(self, theta_p: Tensor) -> dict[str, Tensor]:
        """Name -> tensor, views of the vector; differentiable."""
        parts = theta_p.split(self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def place(self, name: str) -> slice:
        """The slice of the vector that holds a parameter."""
        at = self.names.index(name)
        start = sum(self.sizes[:at])
        return slice(start, start + self.sizes[at])
