"""Packages whose names are loaded when they are asked for.

Torch takes seconds and hundreds of MB to load. What needs none of it does without: the command's help, settings as
``ponita-ff config`` prints them, and every one of the processes that label frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["loader"]


def loader(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__``.

    Args:
        package: Its ``__name__``.
        homes: The module that each public name is in, below the package.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return load
