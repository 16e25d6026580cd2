"""Graphs that ONNX Runtime computes wrongly, written so that it does not.

It lets a com.microsoft::MoE write its result where its first operand lies, if nothing reads that
later on, and its CPU kernel zeroes the result before it has read the operand (ONNX Runtime 1.31).
What is to be compared is what the files say.
"""

from __future__ import annotations

import onnx
from onnx import helper

from onnxprune.bodies import graphs
from onnxprune.model import operator
from onnxprune.rules.tables import OVERWRITES


def is_overwritten(proto: onnx.ModelProto) -> bool:
    """Whether a model has a node whose kernel may write over an operand too early."""
    return any(operator(n) in OVERWRITES for graph in graphs(proto.graph) for n in graph.node)


def keep_operands(proto: onnx.ModelProto) -> None:
    """Read such operands once more behind their nodes, to no effect; in place."""
    for graph in graphs(proto.graph):
        nodes = []
        for node in graph.node:
            nodes.append(node)
            if operator(node) not in OVERWRITES:
                continue
            value, result = node.input[OVERWRITES[operator(node)]], node.output[0]
            made, none, both, late = (f"guard:{result}:{k}" for k in range(4))
            node.output[0] = made
            nodes += [
                helper.make_node("Sub", [made, made], [none]),  # so that the rest runs later
                helper.make_node("Add", [value, none], [both]),
                helper.make_node("Sub", [both, both], [late]),
                helper.make_node("Add", [made, late], [result]),
            ]
        copies = onnx.GraphProto()
        copies.node.extend(nodes)
        del graph.node[:]
        graph.node.extend(copies.node)
