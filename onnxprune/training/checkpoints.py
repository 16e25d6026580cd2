"""Checkpoints: all that training needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.errors import OnnxPruneError
from onnxprune.torch_bridge.lazy import torch


@dataclass(frozen=True)
class Checkpoint:
    """A file, and the run that it belongs to.

    Attributes:
        path: the file; None where none is kept.
        run: what has to be the same for training to go on: settings, the model's digest.
    """

    path: Path | None
    run: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Of the run."""
        return hashlib.sha256(
            json.dumps(self.run, sort_keys=True, default=str).encode()
        ).hexdigest()

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state; whoever is killed meanwhile leaves the old one.

        Raises:
            OnnxPruneError: the file can't be written.
        """
        if self.path is None:
            return
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            torch.save({"run": self.digest, "state": dict(state)}, beside)
            beside.replace(self.path)
        except (OSError, RuntimeError) as error:
            beside.unlink(missing_ok=True)
            raise OnnxPruneError(
                f"the checkpoint '{self.path}' can't be written: {error}"
            ) from error

    def load(self) -> dict[str, Any] | None:
        """The state of an earlier run; None where there is none.

        Raises:
            OnnxPruneError: the file is no checkpoint, or of another run.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
            run, state = found["run"], found["state"]
        except Exception as error:
            raise OnnxPruneError(
                f"'{self.path}' is no checkpoint that can be read: remove it, or give another path"
            ) from error
        if run != self.digest:
            raise OnnxPruneError(
                f"the checkpoint '{self.path}' is of a run with another model, data or settings: "
                "remove it, or give another path"
            )
        return dict(state)

    def done(self) -> None:
        """Remove the file: the run has ended."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
