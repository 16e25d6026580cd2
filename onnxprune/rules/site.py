"""What a computed rule sees of a node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onnxprune.model import Model, Node, Sample
from onnxprune.notation import Shape


class Unprunable(Exception):
    """A computed rule can't say what happens: all axes are frozen, with this reason."""


@dataclass(frozen=True, slots=True)
class Site:
    """A node in one sample of the model: shapes are concrete where they are known at all."""

    node: Node
    model: Model
    sample: Sample

    def has(self, operand: int) -> bool:
        """Whether the operand is given."""
        return operand < len(self.node.inputs) and bool(self.node.inputs[operand])

    def shape(self, operand: int) -> Shape:
        """The shape of an operand of known rank."""
        found = self.sample.shapes.get(self.node.inputs[operand])
        if found is None:
            raise Unprunable(f"operand {operand} has an unknown rank")
        return found

    def result(self, index: int = 0) -> Shape:
        """The shape of a result of known rank."""
        found = self.sample.shapes.get(self.node.outputs[index])
        if found is None:
            raise Unprunable(f"result {index} has an unknown rank")
        return found

    def rank(self, operand: int = 0) -> int:
        """The rank of an operand."""
        return len(self.shape(operand))

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute's value."""
        return self.node.attributes.get(name, default)

    def axis(self, default: int, rank: int | None = None) -> int:
        """The attribute ``axis``, counted from the front."""
        rank = self.rank() if rank is None else rank
        axis = int(self.attribute("axis", default))
        if not -rank <= axis < rank:
            raise Unprunable(f"its axis {axis} lies outside rank {rank}")
        return axis % rank

    def ints(self, name: str, operand: int) -> list[int | None] | None:
        """Integers that stand in an attribute or in a constant operand; None where absent.

        An element that depends on dynamic sizes is None.

        Raises:
            Unprunable: the operand is computed from data, or a caller may give it.
        """
        if name in self.node.attributes:
            found = self.node.attributes[name]
            return [int(n) for n in found] if isinstance(found, list | tuple) else [int(found)]
        if not self.has(operand):
            return None
        rows = []
        for sample in self.model.samples:
            value = sample.constants.get(self.node.inputs[operand])
            if value is None:
                self.refuse_open(operand)
                raise Unprunable(f"operand {operand} ({name}) is computed at run time")
            rows.append([int(n) for n in value.reshape(-1)])
        if len({len(row) for row in rows}) != 1:
            raise Unprunable(f"operand {operand} ({name}) has a dynamic size")
        columns = zip(*rows, strict=True)
        return [column[0] if len(set(column)) == 1 else None for column in columns]

    def refuse_open(self, operand: int) -> None:
        """Let nothing go where a caller may give what states it.

        Raises:
            Unprunable: the operand is a default of a graph input.
        """
        name = self.node.inputs[operand] if self.has(operand) else ""
        param = self.model.params.get(name)
        if param is not None and param.origin in self.model.defaults:
            raise Unprunable(f"'{param.origin}' is a default, and a caller may give other values")

    def fixed(self, name: str, operand: int) -> list[int] | None:
        """Like ``ints``, where every element has to be fixed."""
        found = self.ints(name, operand)
        if found is None:
            return None
        if None in found:
            raise Unprunable(f"operand {operand} ({name}) depends on dynamic sizes")
        return [n for n in found if n is not None]


Computed = Callable[[Site], str]


def letters(rank: int, prefix: str = "a") -> list[str]:
    """One letter an axis: a0 a1 a2."""
    return [f"{prefix}{k}" for k in range(rank)]


def line(operands: list[str], results: list[str], *clauses: str) -> str:
    """A row of the notation from its parts."""
    rule = f"{', '.join(operands)} -> {', '.join(results)}"
    return " | ".join([rule, *clauses])
