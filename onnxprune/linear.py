"""Nodes that are linear in a stored weight, as one product of matrices.

The letters of an operator's rule say all: those that stand in the weight and the other operand
alone are summed over (*inner*), those of the weight and the result are *outer*, those of the
operand and the result are *rows*, and those of all three are *batch* (the groups of a convolution):

    result (batch, rows, outer) = operand (batch, rows, inner) @ weight (batch, inner, outer)

So one least-squares fit serves Conv, ConvTranspose, Gemm, MatMul and Einsum alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxprune.axes import Factors, Opaque
from onnxprune.coupling import Bound, Coupling
from onnxprune.model import Array, Node
from onnxprune.notation import Axis
from onnxprune.oracle import FLOATS
from onnxprune.rules.tables import LINEAR, NEUTRAL, TURNS, UNFOLDED
from onnxprune.windows import sizes_of, sizes_of_transposed, unfolded, unfolded_transposed

BIAS: Final = 2  # the operand that is added
TAP: Final = "tap "  # how letters of a kernel's axes begin
UNFOLD: Final = {"conv": unfolded, "transposed": unfolded_transposed}
SIZES: Final = {"conv": sizes_of, "transposed": sizes_of_transposed}
Letters = tuple[str, ...]
Form = tuple[Letters, ...]  # the letters of each axis, a product row-major


@dataclass(frozen=True)
class Root:
    """The stored parameter behind an operand.

    Attributes:
        name: of the parameter.
        order: the parameter's axes in the order of the operand's; None where it is the same.
        through: the values between them, the operand first and the parameter last.
    """

    name: str
    order: tuple[int, ...] | None
    through: tuple[str, ...]

    def turned(self, value: Array) -> Array:
        """The parameter's values as the operand has them."""
        return value if self.order is None else value.transpose(self.order)

    def sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The operand's shape, of the parameter's."""
        return tuple(shape) if self.order is None else tuple(shape[k] for k in self.order)

    def stored(self, value: Array) -> Array:
        """The operand's values as the parameter has them: what undoes ``turned``."""
        return value if self.order is None else value.transpose(np.argsort(self.order))


def root_of(coupling: Coupling, name: str) -> Root | None:
    """The parameter that a value is, perhaps with its axes in another order; None if it is none."""
    model, order = coupling.model, None
    through = [name]
    while name not in model.params:
        node = model.producers.get(name)
        shape = model.shape(name)
        if node is None or node.op not in TURNS or shape is None:
            return None
        own = tuple(node.attributes.get("perm", range(len(shape))[::-1]))
        order = own if order is None else tuple(own[k] for k in order)
        name = node.inputs[0]
        through.append(name)
    return Root(name, order, tuple(through))


@dataclass(frozen=True)
class Linear:
    """A node that is linear in a stored weight.

    Attributes:
        node: the node.
        data, weight, bias: positions of its operands; no bias is None.
        x, w, y: the letters of the axes of the unfolded operand, the weight, and the result.
        batch, rows, inner, outer: the letters by what they do.
        root: the parameter that the weight is.
        adds: whether it adds something that is no stored vector of outer indices.
        bound: the node with its rule's letters.
    """

    node: Node
    data: int
    weight: int
    bias: int | None
    x: Form
    w: Form
    y: Form
    batch: Letters
    rows: Letters
    inner: Letters
    outer: Letters
    bound: Bound = field(repr=False)
    root: Root
    adds: bool = False

    @property
    def taps(self) -> Letters:
        """The letters of a kernel's axes; they stand last among the inner ones."""
        return tuple(x for x in self.inner if x.startswith(TAP))

    @property
    def view(self) -> object:
        """Nodes with the same view read the same rows, as long as they have no taps."""
        order = (*self.rows, *self.batch, *self.inner)
        kept = {letter: place for place, letter in enumerate(order)}
        shape = tuple(tuple(kept[letter] for letter in axis) for axis in self.x)
        steps = [
            str(self.node.attributes.get(name, "")) for name in ("strides", "pads", "auto_pad")
        ]
        parts = len(self.rows), len(self.batch), *steps, UNFOLDED.get(self.node.op)
        return self.node.inputs[self.data], shape, parts

    def inputs(
        self, data: Array, result: Sequence[int], weight: Sequence[int], own: Sizes
    ) -> Array:
        """The operand as (*rows, *batch, *inner), a view where that is possible.

        Args:
            data: the operand's values.
            result: shape of the result.
            weight: shape of the weight.
            own: size by letter, of all that are not dynamic.
        """
        unfold = UNFOLDED.get(self.node.op)
        if unfold is not None:
            data = UNFOLD[unfold](data, weight[2:], result[2:], self.node.attributes)
        return _arranged(data, self.x, (*self.rows, *self.batch, *self.inner), own)

    def result_shape(self, data: Sequence[int], weight: Sequence[int]) -> tuple[int, ...]:
        """The shape of a convolution's result, its channels apart; of others what they read."""
        unfold = UNFOLDED.get(self.node.op)
        if unfold is None:
            return tuple(data)
        return (*data[:2], *SIZES[unfold](data[2:], weight[2:], self.node.attributes))

    def outputs(self, result: Array, own: Sizes) -> Array:
        """The result as (*rows, *batch, *outer), a view where that is possible."""
        return _arranged(result, self.y, (*self.rows, *self.batch, *self.outer), own)

    def matrix(self, weight: Array, own: Sizes) -> Array:
        """The weight as (batch, inner, outer)."""
        order = (*self.batch, *self.inner, *self.outer)
        found = _arranged(weight, self.w, order, own)
        return found.reshape(self._blocks(found.shape))

    def tensor(self, matrix: Array, weight: Sequence[int], own: Sizes) -> Array:
        """The weight of a matrix: what undoes ``matrix``."""
        order = (*self.batch, *self.inner, *self.outer)
        flat = [letter for axis in self.w for letter in axis]
        sizes = _letter_sizes(weight, self.w, own)
        grid = matrix.reshape([sizes[letter] for letter in order])
        return grid.transpose([order.index(letter) for letter in flat]).reshape(weight)

    def _blocks(self, shape: Sequence[int]) -> tuple[int, int, int]:
        one, two = len(self.batch), len(self.batch) + len(self.inner)
        parts = shape[:one], shape[one:two], shape[two:]
        batch, inner, outer = (int(np.prod(part, dtype=np.int64)) for part in parts)
        return batch, inner, outer


Sizes = Mapping[str, int]


def linear_of(coupling: Coupling, bound: Bound) -> Linear | None:
    """The node as a product of matrices; None where it is none, or not of a stored weight."""
    node, fit, params = bound.node, bound.fit, coupling.model.params
    if node.op not in LINEAR or any(
        node.attributes.get(name, value) != value for name, value in NEUTRAL.items()
    ):
        return None
    if len(fit.operands) < 2 or None in fit.operands[:2] or fit.results[0] is None:
        return None
    roots = [root_of(coupling, node.inputs[k]) for k in range(2)]
    stored = [k for k, root in enumerate(roots) if root is not None]
    if len(stored) != 1:
        return None
    root = roots[stored[0]]
    if root is None or params[root.name].dtype not in FLOATS:
        return None
    return _formed(coupling, bound, 1 - stored[0], root)


def _formed(coupling: Coupling, bound: Bound, data: int, root: Root) -> Linear | None:
    weight = 1 - data
    fit = bound.fit
    x, w, y = (_form(axes) for axes in (fit.operands[data], fit.operands[weight], fit.results[0]))
    if x is None or w is None or y is None:
        return None
    if bound.node.op in UNFOLDED:
        taps = tuple((f"{TAP}{k}",) for k in range(len(w) - 2))
        places = tuple((f"place {k}",) for k in range(len(y) - 2))
        x, w, y = (*x[:2], *places, *taps), (*w[:2], *taps), (*y[:2], *places)
    flat = [tuple(letter for axis in form for letter in axis) for form in (x, w, y)]
    if any(len(set(letters)) != len(letters) for letters in flat):
        return None
    in_x, in_w, in_y = (set(letters) for letters in flat)
    if in_x - in_w - in_y or in_w - in_x - in_y or in_y - in_x - in_w:
        return None
    batch = tuple(a for a in flat[1] if a in in_x and a in in_y)
    inner = tuple(a for a in flat[1] if a in in_x and a not in in_y)
    outer = tuple(a for a in flat[1] if a in in_y and a not in in_x)
    rows = tuple(a for a in flat[2] if a in in_x and a not in in_w)
    bias = BIAS if _has_bias(coupling, bound, (*batch, *outer)) else None
    given = len(bound.node.inputs) > BIAS and bool(bound.node.inputs[BIAS])
    letters = (batch, rows, inner, outer)
    adds = given and bias is None
    return Linear(bound.node, data, weight, bias, x, w, y, *letters, bound, root, adds)


def _form(axes: tuple[Axis, ...] | None) -> Form | None:
    """The letters of each axis; None where an axis is a sum."""
    if axes is None or any(len(axis) != 1 for axis in axes):
        return None
    return tuple(axis[0] for axis in axes)


def _has_bias(coupling: Coupling, bound: Bound, letters: Letters) -> bool:
    """Whether a stored operand adds one number to every outer index."""
    if len(bound.node.inputs) <= BIAS or bound.node.inputs[BIAS] not in coupling.model.params:
        return False
    axes = _form(bound.fit.operands[BIAS])
    return axes is not None and [x for axis in axes for x in axis] == list(letters)


def letter_sizes(linear: Linear, factors: Factors, counts: Mapping[int, int]) -> dict[str, int]:
    """How many indices each letter keeps, where that does not depend on dynamic sizes."""
    found = {}
    for letter, layout in linear.bound.letters.items():
        if not isinstance(factors.normal(layout), Opaque):
            fits = {fit.sizes.get(letter) for fit in linear.bound.fits}
            if len(fits) == 1:
                found[letter] = factors.count(layout, counts)
    return found


def _letter_sizes(shape: Sequence[int], form: Form, own: Sizes) -> dict[str, int]:
    """Every letter's size in an array of this shape; at most one letter of an axis is unknown."""
    sizes = {}
    for size, axis in zip(shape, form, strict=True):
        if len(axis) == 1:
            sizes[axis[0]] = size
            continue
        known = {letter: own[letter] for letter in axis if letter in own}
        rest = size // max(math.prod(known.values()), 1)
        sizes.update({letter: known.get(letter, rest) for letter in axis})
    return sizes


def _arranged(array: Array, form: Form, order: Letters, own: Sizes) -> Array:
    sizes = _letter_sizes(array.shape, form, own)
    flat = [letter for axis in form for letter in axis]
    grid = (
        array if all(len(axis) == 1 for axis in form) else array.reshape([sizes[x] for x in flat])
    )
    return grid.transpose([flat.index(letter) for letter in order])


def picked(array: Array, rows: int, places: npt.NDArray[np.intp]) -> Array:
    """The picked rows (p, ...) of an array (*rows, ...)."""
    if not rows:
        return np.ascontiguousarray(array[None])
    where = np.unravel_index(places, array.shape[:rows])
    return np.ascontiguousarray(array[where])
