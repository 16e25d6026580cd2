"""An .onnx graph as a torch.nn.Module. Imported when it is wanted: torch is optional."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch

from onnxprune import bodies, files, views
from onnxprune.errors import OnnxPruneError
from onnxprune.model import Array, Model, subgraphs
from onnxprune.torch_bridge.at import Tensor, UntrainableError, array, tensor
from onnxprune.torch_bridge.program import (
    Program,
    Step,
    Stores,
    build,
    every,
    formulas,
    programs,
    statistics,
    stored_tensors,
)
from onnxprune.torch_bridge.unfolding import Norm

Edit = Callable[[str, int, Tensor], Tensor]
_HALVES = (torch.float16, torch.bfloat16)
# Where a protobuf holds or finds a tensor's floats, beside raw_data.
_DATA = ("data_location", "double_data", "external_data", "float_data", "int32_data")


class OnnxModule(torch.nn.Module):  # type: ignore[misc]
    """A graph whose weights are parameters, under their ONNX names.

    Called with the inputs, in order or by name; gives the output, or a tuple of them. Statistics of
    BatchNormalization are buffers; floats that are part of a formula are parameters without a
    gradient (see ``program.formulas``). Half-precision weights are kept in float32, and rounded
    where they are read.
    """

    def __init__(self, model: Model, rows: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__()
        self.model = model
        stores = _stores(model, rows)
        proto = onnx.GraphProto()
        proto.CopyFrom(model.proto.graph)
        del proto.node[:]
        proto.node.extend(_sorted(model))
        self.program: Program = build(proto, stores, stored_tensors(proto))
        self.mode = stores.mode
        self._places: dict[str, tuple[dict[str, Any], str]] = {}
        self._rounded: dict[str, torch.dtype] = {}
        buffers, fixed = statistics(self.program), formulas(self.program, stores.weights)
        used = {name for part in programs(self.program) for name in part.outputs}
        used |= {name for step in every(self.program) for name in step.reads}
        for name, value in stores.weights.items():
            if name in used:
                self._store(name, tensor(value), name in buffers, name not in fixed)
        for index, (name, value) in enumerate(stores.constants.items()):
            if name in used:
                key = f"constant {index}"
                self.register_buffer(key, value, persistent=False)
                self._places[name] = (self._buffers, key)
        self.norms: tuple[Norm, ...] = ()
        self._last = _last_uses(self.program)

    def _store(self, name: str, value: Tensor, buffer: bool, trained: bool) -> None:
        """Keep a weight under its name; dots make submodules, as torch wants it."""
        if value.dtype in _HALVES:
            self._rounded[name], value = value.dtype, value.float()
        *path, leaf = name.split(".")
        owner: torch.nn.Module = self
        for part in path:
            owner = owner._modules.setdefault(part, torch.nn.Module())
        if buffer:
            owner._buffers[leaf] = value
        else:
            owner._parameters[leaf] = torch.nn.Parameter(value, requires_grad=trained)
        self._places[name] = (owner._buffers if buffer else owner._parameters, leaf)

    def train(self, mode: bool = True) -> OnnxModule:
        """Whether batch statistics are used, and values dropped out."""
        self.mode.training = mode
        return super().train(mode)  # type: ignore[no-any-return]

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """The outputs for some inputs.

        Raises:
            OnnxPruneError: an input is missing, not one of the graph's, or given twice.
        """
        found = self.run(self._feeds(inputs, named))
        made = tuple(found[name] for name in self.program.outputs)
        return made[0] if len(made) == 1 else made

    def _feeds(self, inputs: Sequence[Tensor], named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each input of the graph, once."""
        names = self.program.inputs
        wrong = [f"'{name}' was not given" for name in names[len(inputs) :] if name not in named]
        wrong += [f"'{name}' is none of them" for name in named if name not in names]
        wrong += [
            f"'{n}' was given in order and by name" for n in names[: len(inputs)] if n in named
        ]
        wrong += [f"{len(inputs)} were given in order"] if len(inputs) > len(names) else []
        if wrong:
            raise OnnxPruneError(f"the module wants the inputs {', '.join(names)}: {wrong[0]}")
        return {**dict(zip(names, inputs, strict=False)), **named}

    def run(
        self,
        feeds: Mapping[str, Tensor],
        wanted: Sequence[str] | None = None,
        edit: Edit | None = None,
    ) -> dict[str, Tensor]:
        """Values by name.

        Args:
            feeds: tensors by input name.
            wanted: which values; the outputs where absent.
            edit: gets the first result's name of each node, the position of an operand and its
                value, and says what the node reads instead (masks).
        """
        names = self.program.outputs if wanted is None else wanted
        keep = {*names, *self.program.outputs}
        values: dict[str, Any] = dict(feeds)
        for step, gone in zip(self.program.steps, self._last, strict=True):
            self._do(step, values, edit)
            for name in gone:
                if name not in keep:
                    values.pop(name, None)
        for name in names:
            if name not in values and name not in self._places:
                raise OnnxPruneError(f"the module has no value '{name}': it was computed away")
        return {n: values[n] if n in values else self.weight(n) for n in names}

    def weight(self, name: str) -> Tensor:
        """A stored tensor as nodes read it."""
        owner, leaf = self._places[name]
        value = owner[leaf]
        return value.to(self._rounded[name]) if name in self._rounded else value

    def is_trained(self, name: str) -> bool:
        """Whether a name is that of a parameter with a gradient."""
        owner, leaf = self._places.get(name, ({}, ""))
        return bool(getattr(owner.get(leaf), "requires_grad", False))

    def _do(self, step: Step, values: dict[str, Any], edit: Edit | None = None) -> None:
        operands = []
        for position, name in enumerate(step.inputs):
            value = values.get(name) if name else None
            if value is None and name:
                value = self.weight(name)
            if edit is not None and value is not None:
                value = edit(step.key, position, value)
            operands.append(value)
        inner = [{k: self._body(b, values) for k, b in step.bodies.items()}] if step.bodies else []
        assert step.row is not None
        try:
            made = step.row(step.at, *inner, *operands)
        except (OnnxPruneError, torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            shapes = ", ".join(str(tuple(getattr(x, "shape", ()))) for x in operands)
            raise UntrainableError(
                f"{step.at.label}: torch fails on operands of shapes {shapes}: "
                f"{type(error).__name__}: {error}"
            ) from error
        made = made if isinstance(made, tuple) else (made,)
        values.update(zip(step.outputs, made, strict=False))

    def _body(self, body: Program, outer: Mapping[str, Any]) -> Callable[..., list[Tensor]]:
        def call(given: Sequence[Tensor]) -> list[Tensor]:
            values = {**outer, **dict(zip(body.inputs, given, strict=True))}
            for step in body.steps:
                self._do(step, values)
            return [values[n] if n in values else self.weight(n) for n in body.outputs]

        return call

    def weights(self) -> dict[str, Array]:
        """Parameters and statistics as they are now, in the file's types."""
        stored = {name for name, _ in stored_tensors(self.model.proto.graph)}
        found = {name: self.weight(name) for name in self._places if name in stored}
        for norm in self.norms:
            names = norm.weight, norm.bias
            found.update(zip(names, norm.folded(*(found[n] for n in names)), strict=True))
        return {name: array(value) for name, value in found.items()}

    def written(self) -> onnx.ModelProto:
        """The file's graph with the weights of now: same names, same inputs and outputs.

        Tensors whose values did not change stay byte for byte. They also stay outside where all
        together are too large for a protobuf; ``files.save`` and onnx.save, told to use external
        data, write such a model.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self.model.proto)
        files.with_data(proto, self.model.folder)
        now = self.weights()
        for name, own in stored_tensors(proto.graph):
            if name not in now:
                continue
            before = views.read_tensor(own, self.model.folder)
            if before.dtype == now[name].dtype and before.tobytes() == now[name].tobytes():
                continue
            for kind in _DATA:
                own.ClearField(kind)
            own.raw_data = now[name].astype(before.dtype, copy=False).tobytes()
        bodies.restore(proto, self.model.renamed)
        return proto

    def load_written(self, proto: onnx.ModelProto) -> None:
        """Take the weights of a file with the same graph."""
        with torch.no_grad():
            for name, own in stored_tensors(proto.graph):
                if name in self._places:
                    owner, leaf = self._places[name]
                    owner[leaf].copy_(tensor(views.read_tensor(own, self.model.folder)))


def _stores(model: Model, rows: Mapping[str, Callable[..., Any]]) -> Stores:
    opsets = {
        o.domain if o.domain != "ai.onnx" else "": o.version for o in model.proto.opset_import
    }
    if "ai.onnx" not in opsets:
        opsets["ai.onnx"] = opsets.get("", 1)

    def known(name: str) -> Array | None:
        return model.constant(name) if name else None

    stores = Stores(rows, opsets, known, lambda own: views.read_tensor(own, model.folder))
    stores.uses.update(_reads(model.proto.graph))
    return stores


def _reads(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for body in subgraphs(node):
            yield from _reads(body)


def _sorted(model: Model) -> list[onnx.NodeProto]:
    graph = model.proto.graph
    known = {i.name for i in graph.input} | {i.name for i in graph.initializer}
    known |= {i.values.name for i in graph.sparse_initializer}
    return views.sort(graph.node, known)


def _last_uses(program: Program) -> list[tuple[str, ...]]:
    """For each step the values that none after it reads."""
    left: Counter[str] = Counter(name for step in program.steps for name in step.reads)
    found = []
    for step in program.steps:
        left.subtract(step.reads)
        found.append(tuple(n for n in (*step.reads, *step.outputs) if not left[n]))
    return found
