"""Libraries of custom operators, with which ONNX Runtime runs models that need them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Final

import onnxruntime as ort

from onnxprune.errors import OnnxPruneError

_GIVEN: Final[ContextVar[tuple[Path, ...]]] = ContextVar("ort_extensions", default=())


@contextmanager
def ort_extensions(*libraries: str | Path) -> Iterator[None]:
    """Let every session in the block know the operators of shared libraries.

    Processes that are started (the memory of ``bench``, parallel workers) don't.

    Args:
        libraries: paths of ``.so``, ``.dll`` or ``.dylib`` files.

    Raises:
        OnnxPruneError: one is not there, or ONNX Runtime can't take it.
    """
    paths = tuple(Path(library).resolve() for library in libraries)
    for path in paths:
        if not path.is_file():
            raise OnnxPruneError(f"there is no library '{path}' of custom operators")
        _register(ort.SessionOptions(), path)
    token = _GIVEN.set((*_GIVEN.get(), *paths))
    try:
        yield
    finally:
        _GIVEN.reset(token)


def add_extensions(options: ort.SessionOptions) -> None:
    """Give a session's options the libraries of the block that it is made in."""
    for path in _GIVEN.get():
        _register(options, path)


def _register(options: ort.SessionOptions, path: Path) -> None:
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise OnnxPruneError(
            f"ONNX Runtime {ort.__version__} can't load '{path}' as a library of custom "
            f"operators: {reason}"
        ) from error
