"""What a row of the bridge sees of its node, beside the operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx

from onnxprune.errors import OnnxPruneError
from onnxprune.torch_bridge.lazy import torch

Tensor = Any  # torch.Tensor; torch is optional
WIDENED: Final = ("uint16", "uint32", "uint64")  # torch has these, but does not compute with them
Made = Any  # a tensor, or a tuple of them: one for each result


class UntrainableError(OnnxPruneError):
    """The bridge to torch can't carry a node."""


@dataclass
class Mode:
    """What all nodes of a module share: whether it is trained now."""

    training: bool = False


@dataclass(frozen=True, slots=True)
class At:
    """A node as its row sees it.

    Attributes:
        label: what messages call the node.
        attributes: the attributes' values; texts are str, tensors numpy arrays.
        opset: the version of its domain.
        results: how many results it has.
        frozen: whether its stored statistics serve other nodes too, and must not move.
        mode: whether the module is trained now.
    """

    label: str
    attributes: Mapping[str, Any]
    opset: int
    results: int
    frozen: bool = False
    mode: Mode = field(default_factory=Mode)

    def __call__(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        return self.attributes.get(name, default)

    def refuse(self, what: str) -> UntrainableError:
        """The error that says what the row can't do."""
        return UntrainableError(f"{self.label}: {what}, which the bridge to torch does not carry")


def attribute_values(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node, bodies left out."""
    found = {}
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            continue
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif isinstance(value, onnx.TensorProto):
            value = onnx.numpy_helper.to_array(value)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            value = [x.decode("utf-8", "replace") if isinstance(x, bytes) else x for x in value]
        found[attribute.name] = value
    return found


def ints(x: Tensor | None) -> list[int] | None:
    """The numbers of a tensor of sizes; None where it is absent."""
    return None if x is None else [int(v) for v in x.reshape(-1).tolist()]


def optional(given: Sequence[Tensor | None], count: int) -> list[Any]:
    """Operands that may be absent: always so many, None for those that are."""
    return [*given, *([None] * (count - len(given)))]


def number(x: Tensor | None, default: Any = None) -> Any:
    """The number that a tensor of one element holds."""
    return default if x is None else x.reshape(-1)[0].item()


def tensor(array: Any) -> Tensor:
    """A tensor of numpy values, in their type; torch gets a copy of its own."""
    array = np.asarray(array)
    if array.dtype.name in WIDENED:
        array = array.astype(np.int64)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    if array.dtype.kind not in "bifu" or array.dtype.itemsize * 8 != _bits(array.dtype.name):
        raise UntrainableError(f"torch has no tensors of type {array.dtype}")
    return torch.from_numpy(np.array(array, order="C"))


def _bits(name: str) -> int:
    """The width that a type's name says; 8 for bool. Packed types say less than they take."""
    digits = "".join(c for c in name if c.isdigit())
    return int(digits) if digits else 8


def array(x: Tensor) -> Any:
    """The values of a tensor, in numpy's types."""
    x = x.detach().cpu()
    return x.float().numpy().astype(ml_dtypes.bfloat16) if x.dtype is torch.bfloat16 else x.numpy()


def dtype_of(code: int) -> Any:
    """The torch type of an onnx.TensorProto data type.

    Raises:
        UntrainableError: torch has no such type.
    """
    name = onnx.TensorProto.DataType.Name(code).lower()
    names = {"float": "float32", "double": "float64"}
    names |= dict.fromkeys(WIDENED, "int64")
    found = getattr(torch, names.get(name, name), None)
    if not isinstance(found, torch.dtype):
        raise UntrainableError(f"torch has no type {name}")
    return found
