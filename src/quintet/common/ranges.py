"""Annotations of numbers with limits; `quintet.harness.config.values` checks a configuration against them."""

from typing import Annotated

PositiveInt = Annotated[int, "> 0"]
NonNegativeInt = Annotated[int, ">= 0"]
PositiveFloat = Annotated[float, "> 0"]
NonNegativeFloat = Annotated[float, ">= 0"]
