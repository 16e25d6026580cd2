"""Arrays that are kept for later, in memory as far as they fit, else in temporary files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from onnxprune.model import Array

PICKLED: Final = "OV"  # kinds of text and of bfloat16, which .npy files have not got
LIMIT_BYTES: Final = 768 << 20  # of one store, in memory


class Store:
    """Where arrays are kept; its files go when it goes."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.files = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def keep(self, arrays: Iterable[Array]) -> Kept:
        """Keep one array a batch."""
        kept = Kept(self)
        for array in arrays:
            kept.append(array)
        return kept

    def path(self) -> Path:
        """A file that is not taken."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="onnxprune-")
        self.files += 1
        return Path(self._folder.name) / f"{self.files}.npy"


class Kept:
    """One array a batch."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._items: list[Array | Path] = []

    def append(self, array: Array) -> None:
        """Keep another one."""
        fits = self._store.used_bytes + array.nbytes <= self._store.limit_bytes
        if fits or array.dtype.kind in PICKLED:
            self._store.used_bytes += array.nbytes
            self._items.append(array)
            return
        path = self._store.path()
        np.save(path, array, allow_pickle=False)
        self._items.append(path)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, batch: int) -> Array:
        found = self._items[batch]
        if not isinstance(found, Path):
            return found
        return np.asarray(np.load(found, allow_pickle=False))

    def __iter__(self) -> Iterator[Array]:
        return (self[batch] for batch in range(len(self)))

    def drop(self) -> None:
        """Forget them; nothing can be read any more."""
        for item in self._items:
            if isinstance(item, Path):
                item.unlink(missing_ok=True)
            else:
                self._store.used_bytes -= item.nbytes
        self._items = []
