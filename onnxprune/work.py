"""What each node of a model does, for any kept counts: multiply-accumulates, and elements moved.

Both are sizes of values, so they stand in rows of the products that all costs are made of (see
``onnxprune.polynomials``). A *chain* is a set of nodes that a runtime executes as one kernel; what
passes between its nodes is not moved.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np

from onnxprune.axes import Values
from onnxprune.coupling import Bound, Coupling
from onnxprune.model import Node
from onnxprune.polynomials import SizeTable, tally

GROUPED: Final = "grouped"
READ: Final = "read"
WRITTEN: Final = "written"
FIXED: Final = "fixed"
Size = tuple[float, int]  # a scale and the row of the product


@dataclass(frozen=True)
class Work:
    """What the nodes do; nodes go by their keys.

    Attributes:
        macs: the multiply-accumulates of each node that contracts, and their kind: its operator,
            or grouped.
        reads, writes: the activations of each node.
        readers: the nodes that read each activation.
        elements: how many elements an activation has.
        results: the graph's outputs.
    """

    macs: Mapping[str, tuple[str, tuple[Size, ...]]] = field(repr=False)
    reads: Mapping[str, tuple[str, ...]] = field(repr=False)
    writes: Mapping[str, tuple[str, ...]] = field(repr=False)
    readers: Mapping[str, frozenset[str]] = field(repr=False)
    elements: Mapping[str, Size] = field(repr=False)
    results: frozenset[str] = field(repr=False)

    def is_fused(self, key: str) -> bool:
        """Whether a runtime can do a node while it writes a contraction's result.

        So it is for one that reads nothing but such a result, and is the only one to read it.
        """
        reads = self.reads[key]
        return (
            key not in self.macs
            and len(reads) == 1
            and self.makers.get(reads[0]) in self.macs
            and self.readers[reads[0]] == {key}
            and reads[0] not in self.results
        )

    @cached_property
    def makers(self) -> Mapping[str, str]:
        """The node that writes each activation."""
        return {name: key for key, names in self.writes.items() for name in names}

    def of(self, chain: Collection[str], rows: int) -> dict[str, Values]:
        """What a chain does, as weights (r,) of the products, by kind.

        The kinds are those of its multiply-accumulates, elements read and written, and what it
        takes in any case. A node that is not there any more does nothing.
        """
        found: dict[str, list[Size]] = {READ: [], WRITTEN: []}
        inside = set(chain)
        made = {name for key in chain for name in self.writes.get(key, ())}
        asked = dict.fromkeys(name for key in chain for name in self.reads.get(key, ()))
        for key in chain:
            if key in self.macs:
                kind, sizes = self.macs[key]
                found.setdefault(kind, []).extend(sizes)
        found[READ] = [self.elements[name] for name in asked if name not in made]
        leaving = (n for n in made if n in self.results or self.readers.get(n, inside) - inside)
        found[WRITTEN] = [self.elements[name] for name in sorted(leaving)]
        return {kind: _summed(sizes, rows) for kind, sizes in found.items() if sizes}


def work(
    coupling: Coupling,
    table: SizeTable,
    running: Sequence[Node],
    activations: Mapping[str, Size],
) -> Work:
    """Collect it.

    Args:
        coupling: the structure of the model.
        table: is given the products of the multiply-accumulates.
        running: the nodes that depend on more than constants.
        activations: the elements of all activations whose shapes are known.
    """
    macs = dict(_macs(coupling.bound, table))
    reads, writes = {}, {}
    readers: dict[str, set[str]] = {}
    for node in running:
        own = dict.fromkeys((*node.inputs, *node.captured))
        reads[node.key] = tuple(name for name in own if name in activations)
        writes[node.key] = tuple(name for name in node.outputs if name in activations)
        for name in reads[node.key]:
            readers.setdefault(name, set()).add(node.key)
    frozen = {name: frozenset(keys) for name, keys in readers.items()}
    results = frozenset(coupling.model.outputs)
    return Work(macs, reads, writes, frozen, activations, results)


def _macs(
    bounds: Collection[Bound], table: SizeTable
) -> Iterator[tuple[str, tuple[str, tuple[Size, ...]]]]:
    """The multiply-accumulates of each node; normalize has folded those of constants."""
    for bound in bounds:
        rows = [table.row(bound.letters[x] for x in term) for term in bound.fit.macs]
        sizes = tuple((float(row[0]), row[1]) for row in rows if row is not None)
        if sizes:
            yield bound.node.key, (_kind(bound.node), sizes)


def _kind(node: Node) -> str:
    return GROUPED if int(node.attributes.get("group", 1)) > 1 else node.op


def _summed(sizes: Collection[Size], rows: int) -> Values:
    scales, where = zip(*sizes, strict=True)
    return tally(np.array(where, np.intp), np.array(scales, np.float64), rows)
