"""What a layer's result goes through until it is added to another branch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.coupling import Coupling
from onnxprune.model import Array, Node
from onnxprune.rules.tables import ADDS, RENAMES


@dataclass(frozen=True)
class Branch:
    """The sum that a layer's result ends in.

    Attributes:
        total: the sum; empty where there is none.
        other: what it is added to there.
        shifts: parameters that are added to it before.
    """

    total: str = ""
    other: str = ""
    shifts: tuple[str, ...] = ()

    def undone(self, value: Array, like: Array) -> Array:
        """What the layer should give, if what comes in at the sum should be this."""
        return np.asarray(value, like.dtype)


def branch_of(coupling: Coupling, node: Node) -> Branch:
    """Follow a node's result to the sum that it is a branch of."""
    model = coupling.model
    readers: dict[str, list[Node]] = {}
    for own in model.nodes:
        for name in (*own.inputs, *own.captured):
            readers.setdefault(name, []).append(own)
    value = node.outputs[0]
    while len(readers.get(value, ())) == 1 and value not in model.outputs:
        reader = readers[value][0]
        if reader.op in RENAMES:
            value = reader.outputs[0]
            continue
        if reader.op not in ADDS or len(reader.inputs) != 2:
            break
        other = reader.inputs[1 - reader.inputs.index(value)]
        if other in model.params or other == value:
            break
        return Branch(reader.outputs[0], other)
    return Branch()
