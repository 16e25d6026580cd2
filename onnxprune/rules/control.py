"""How the values of control flow are connected: If, Loop and Scan with their bodies.

A link says that a value holds what its sources hold, axis for axis: what an If gives is what its
branches give, what a Loop carries is what goes in, what its body gives back, and what comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import onnx

from onnxprune.model import Node, operator, subgraphs


@dataclass(frozen=True)
class Link:
    """A value that is one of its sources.

    Attributes:
        value: the value.
        sources: what it may hold.
        lost: the axis of the source that runs over the steps (of a Scan), which the value has not.
        gained: the axis of the value that runs over the steps, which its sources have not.
    """

    value: str
    sources: tuple[str, ...]
    lost: int | None = None
    gained: int | None = None


Wiring = tuple[list[Link], list[Link]]  # what enters the bodies, and what leaves them


def _if(node: Node) -> Wiring:
    given = zip(*(body.outputs for body in node.bodies), strict=True)
    pairs = zip(node.outputs, given, strict=True)
    return [], [Link(value, sources) for value, sources in pairs if value]


def _loop(node: Node) -> Wiring:
    body, states = node.bodies[0], node.inputs[2:]
    return _stepped(states, body.inputs[2:], body.outputs[1:], node.outputs, lambda _: 0)


def _scan(node: Node) -> Wiring:
    body = node.bodies[0]
    states = len(node.inputs) - int(node.attributes["num_scan_inputs"])
    axes = node.attributes.get("scan_output_axes")
    entering, leaving = _stepped(
        node.inputs[:states],
        body.inputs[:states],
        body.outputs,
        node.outputs,
        lambda k: int(axes[k]) if axes else 0,
    )
    along = node.attributes.get("scan_input_axes")
    for k, (inner, outer) in enumerate(
        zip(body.inputs[states:], node.inputs[states:], strict=True)
    ):
        entering.append(Link(inner, (outer,), lost=int(along[k]) if along else 0))
    return entering, leaving


def _stepped(
    initial: tuple[str, ...],
    carried: tuple[str, ...],
    given: tuple[str, ...],
    results: tuple[str, ...],
    axis: Callable[[int], int],
) -> Wiring:
    """Values that are carried from step to step, and those that all steps give one after another.

    Args:
        initial: what the carried values are at first.
        carried: the body's inputs for them.
        given: what a step gives: carried values, then the others.
        results: the node's results.
        axis: where the steps of the k-th of the others run in the result.
    """
    states = len(initial)
    entering = [Link(inner, (outer,)) for inner, outer in zip(carried, initial, strict=True)]
    leaving = [Link(i, (o,)) for i, o in zip(carried, given[:states], strict=True)]
    for k, (value, last) in enumerate(zip(results, given, strict=False)):
        if value and k < states:
            leaving.append(Link(value, (initial[k], last)))
        elif value:
            leaving.append(Link(value, (last,), gained=axis(k - states)))
    return entering, leaving


LINKS: Final[dict[str, Callable[[Node], Wiring]]] = {"If": _if, "Loop": _loop, "Scan": _scan}
BRANCHES: Final = ("else_branch", "then_branch")  # of an If, by its condition
BATCHED: Final = {"Scan": 9}  # below this opset a Scan has an axis of samples and lengths
# Whether a body's inputs stand for the node's, and how many outputs it has beside the node's.
_CALLS: Final = {"If": (False, 0), "Loop": (True, 1), "Scan": (True, 0)}
_FIRST_STATE: Final = {"If": 0, "Loop": 2, "Scan": 0}


def opens(raw: onnx.NodeProto, opset: int) -> bool:
    """Whether a node's bodies can be looked into: their values are connected as its operator says.

    Args:
        raw: the node.
        opset: the version of ai.onnx.
    """
    op = operator(raw)
    if op not in LINKS or opset < BATCHED.get(op, 0) or not all(raw.input[_FIRST_STATE[op] :]):
        return False
    takes, beside = _CALLS[op]
    inputs, outputs = len(raw.input) if takes else 0, len(raw.output) + beside
    return all(len(b.input) == inputs and len(b.output) == outputs for b in subgraphs(raw))


def links(node: Node) -> Wiring:
    """What enters a node's bodies, and what leaves them."""
    return LINKS[node.op](node)


def branch(node: Node, condition: bool) -> int:
    """Which of an If's bodies it runs, by their place among its attributes."""
    names = [a.name for a in node.proto.attribute if a.HasField("g")]
    return names.index(BRANCHES[condition])


def decides(node: Node) -> bool:
    """Whether the node runs one of two bodies."""
    return node.op in LINKS and len(node.bodies) == len(BRANCHES)
