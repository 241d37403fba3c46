"""What a file of the user's own has: a model's builder, or a rule."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any


class SourceError(ValueError):
    """There is no such file, it cannot be run, or it has nothing of this name."""


def attribute(source: str, example: str) -> Any:
    """What ``path/to/file.py:name`` names, as the file has it when it is run.

    Args:
        source: file and name.
        example: what the name may be, for the message.

    Raises:
        SourceError: there is no such file or name, or running the file raised an error.
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
    """The file and the name in ``path/to/file.py:name``; runs nothing.

    Raises:
        SourceError: there is no such file, or no name.
    """
    path, _, name = source.rpartition(":")
    if not path or not name:
        raise SourceError(f"{source}: name a file and what it has, as in path/to/file.py:{example}")
    if not Path(path).is_file():
        raise SourceError(f"{source}: there is no file {path}")
    return Path(path), name


def _module(path: Path) -> Any:
    """The file as a module; beside it are the modules that it imports."""
    spec = spec_from_file_location(f"_bench_{path.stem}", path.absolute())
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    sys.path.insert(0, str(path.absolute().parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module
