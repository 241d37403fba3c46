"""Load from a user's file: a model's builder, or a rule."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any


class SourceError(ValueError):
    """The file does not exist or cannot be run, or it lacks the name."""


def attribute(source: str, example: str) -> Any:
    """Run the file and return what ``path/to/file.py:name`` refers to.

    Args:
        source: file and name.
        example: an example of the name, for the message.

    Raises:
        SourceError: the file or the name does not exist, or running the file raised an error.
    """
    path, name = parts(source, example)
    try:
        module = _module(path)
    except Exception as error:
        raise SourceError(f"{path}: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        raise SourceError(f"{path} has no {name}")
    return getattr(module, name)


def parts(source: str, example: str) -> tuple[Path, str]:
    """The file and the name in ``path/to/file.py:name``; nothing is run.

    Raises:
        SourceError: the file does not exist, or no name is given.
    """
    path, _, name = source.rpartition(":")
    if not path or not name:
        raise SourceError(f"{source}: name a file and what it has, as in path/to/file.py:{example}")
    if not Path(path).is_file():
        raise SourceError(f"{source}: there is no file {path}")
    return Path(path), name


def _module(path: Path) -> Any:
    """Import the file as a module; it can import modules beside it."""
    spec = spec_from_file_location(f"_bench_{path.stem}", path.absolute())
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their annotations here
    sys.path.insert(0, str(path.absolute().parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module
