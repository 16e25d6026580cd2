"""Run a graph piece by piece over many samples: every node once, every value kept while it is read.

Statistics of an inner value then cost one forward pass in all, however many values are asked for,
and a weight that has just been changed is what the rest of the graph runs with. Values that depend
on constants alone are computed where they are read and never kept; what does not fit into memory
waits on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune import runtime
from onnxprune.errors import OnnxPruneError
from onnxprune.model import Array, captures, first_name, operator
from onnxprune.rules import RENAMES
from onnxprune.rules.tables import TURNS
from onnxprune.shapes import stored
from onnxprune.store import LIMIT_BYTES, Kept, Store
from onnxprune.target import Target
from onnxprune.views import read_tensor, sort


class Stepper:
    """One model on its way through all batches.

    Attributes:
        nodes: the nodes in topological order.
        position: how many of them have run.
        values: what is kept, by name; what does not fit into ``limit_bytes`` lies on disk.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        folder: Path | None,
        feeds: Sequence[runtime.Feeds],
        threads: int = 1,
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        self.proto, self.folder, self.threads = proto, folder, threads
        self.tensors = stored(proto)
        inputs = [value.name for value in proto.graph.input if value.name not in self.tensors]
        given = {*inputs, *self.tensors}
        given |= {tensor.values.name for tensor in proto.graph.sparse_initializer}
        ordered = sort(proto.graph.node, set(given))
        self.constants: dict[str, onnx.NodeProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        fixed = given - set(inputs)
        for node in ordered:
            reads = {name for name in (*node.input, *captures(node)) if name}
            if reads <= fixed and not (node.output and node.output[0] in self.tensors):
                fixed.update(node.output)
                self.constants.update(dict.fromkeys((x for x in node.output if x), node))
            elif not (node.output and node.output[0] in self.tensors):
                self.nodes.append(node)
        self.index = {first_name(node.output): k for k, node in enumerate(self.nodes)}
        self.last: dict[str, int] = {}
        for k, node in enumerate(self.nodes):
            self.last.update(dict.fromkeys((*node.input, *captures(node)), k))
        self.outputs = [value.name for value in proto.graph.output]
        self.last.update(dict.fromkeys(self.outputs, len(self.nodes)))
        self.store = Store(limit_bytes)
        self.inputs = inputs
        self.values: dict[str, Kept] = {}
        self.own: set[str] = set()  # constants that one operand alone reads
        self.restart(feeds)

    def restart(self, feeds: Sequence[runtime.Feeds]) -> None:
        """Begin again on these inputs, with the constants as they are by now."""
        for name in list(self.values):
            self.drop(name)
        for name in self.inputs:
            self.values[name] = self.store.keep(feed[name] for feed in feeds)
        self.count = len(feeds)
        self.position = 0

    def drop(self, name: str) -> None:
        """Forget a value."""
        self.values.pop(name).drop()

    def amend(self, name: str, change: Callable[[Array], Array]) -> None:
        """Let a value that is kept be another one."""
        old = self.values[name]
        new = self.store.keep(change(value) for value in old)
        old.drop()
        self.values[name] = new

    def constant(self, place: int, position: int) -> Array | None:
        """A stored operand of a node, also behind nodes that only rename or turn it, or None."""
        name, turns = self.nodes[place].input[position], []
        while name in self.constants and operator(self.constants[name]) in RENAMES | TURNS:
            node = self.constants[name]
            if operator(node) in TURNS:
                turns.append([list(a.ints) for a in node.attribute if a.name == "perm"])
            name = node.input[0]
        tensor = self.tensors.get(name)
        if tensor is None:
            return None
        found = np.asarray(read_tensor(tensor, self.folder))
        for turn in reversed(turns):
            found = found.transpose(turn[0] if turn else None)
        return found

    def replace(self, place: int, position: int, value: Array) -> None:
        """Let one operand of a node, and no other, read another constant."""
        node = onnx.NodeProto()
        node.CopyFrom(self.nodes[place])
        name = f"{first_name(node.output)}@{position}"
        while name in self.last or (name in self.tensors and name not in self.own):
            name += "'"
        self.own.add(name)
        node.input[position] = name
        self.nodes[place] = node
        self.tensors[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)

    def advance(self, stop: int, also: Iterable[str] = ()) -> None:
        """Run the nodes up to this one; keep what is read later, and what else is asked for.

        Raises:
            RunError: ONNX Runtime fails on these nodes.
        """
        if stop <= self.position:
            return
        nodes, extra = self.nodes[self.position : stop], set(also)
        made = dict.fromkeys(x for node in nodes for x in node.output if x)
        wanted = [x for x in made if self.last.get(x, -1) >= stop or x in extra]
        results = self._run(nodes, list(made), wanted)
        self.values.update(results)
        for name in list(self.values):
            if self.last.get(name, -1) < stop and name not in extra:
                self.drop(name)
        self.position = stop

    def _run(
        self,
        nodes: Sequence[onnx.NodeProto],
        made: Sequence[str],
        wanted: Sequence[str],
    ) -> dict[str, Kept]:
        results = {name: self.store.keep(()) for name in wanted}
        if not wanted:
            return results
        part, reads = self._part(nodes, set(made), wanted)
        session = runtime.session(part, self.folder, Target(threads=self.threads))
        for batch in range(self.count):
            feeds = {x: self.values[x][batch] for x in reads}
            for name, value in zip(wanted, runtime.run(session, feeds, wanted), strict=True):
                if not isinstance(value, np.ndarray):
                    raise OnnxPruneError(
                        f"value '{name}' is a sequence or an optional: calibration can't run the "
                        "model piece by piece; leave --calibration out"
                    )
                results[name].append(value)
        return results

    def _part(
        self, nodes: Sequence[onnx.NodeProto], made: set[str], wanted: Sequence[str]
    ) -> tuple[onnx.ModelProto, list[str]]:
        """A model of some nodes, and the kept values that are its inputs."""
        part = onnx.ModelProto(ir_version=max(self.proto.ir_version, 4))
        part.opset_import.extend(self.proto.opset_import)
        part.functions.extend(self.proto.functions)
        graph = part.graph
        graph.name = "part"
        reads: dict[str, None] = {}
        fixed: dict[str, onnx.NodeProto] = {}
        todo = [x for node in nodes for x in (*node.input, *captures(node)) if x and x not in made]
        while todo:
            name = todo.pop()
            if name in reads:
                continue
            reads[name] = None
            maker = self.constants.get(name)
            if maker is not None:
                fixed[first_name(maker.output)] = maker
                todo.extend(x for x in (*maker.input, *captures(maker)) if x)
        keys = {first_name(node.output): node for node in self.constants.values()}
        graph.node.extend(node for key, node in keys.items() if key in fixed)
        graph.node.extend(nodes)
        inputs = []
        for name in reads:
            if name in self.tensors:
                graph.initializer.append(self.tensors[name])
                graph.initializer[-1].name = name
            elif name not in self.constants and name in self.values:
                own = self.values[name][0]
                kind = helper.np_dtype_to_tensor_dtype(own.dtype)
                graph.input.append(helper.make_tensor_value_info(name, kind, [None] * own.ndim))
                inputs.append(name)
        sparse = [t for t in self.proto.graph.sparse_initializer if t.values.name in reads]
        graph.sparse_initializer.extend(sparse)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        return part, inputs
