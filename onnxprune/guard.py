"""Graphs whose runs can't be compared as they are, written so that they can.

ONNX Runtime lets a com.microsoft::MoE write its result where its first operand lies, if nothing
reads that later on, and its CPU kernel zeroes the result before it has read the operand (ONNX
Runtime 1.31). What is to be compared is what the files say.

What draws random numbers draws others in each session. With a seed it draws the same ones in two
sessions that run on the same inputs in the same order.
"""

from __future__ import annotations

import zlib
from typing import Final

import onnx
from onnx import helper

from onnxprune.bodies import draws, graphs
from onnxprune.model import Model, first_name, operator, subgraphs
from onnxprune.rules.tables import DRAWS, DRAWS_IN_TRAINING, OVERWRITES

SEEDS: Final = 2**16  # seeds are floats
# What has no attribute for a seed, or draws for channels that a pruned model has not got.
UNSEEDED: Final = frozenset({op for op in DRAWS if "::" in op} | DRAWS_IN_TRAINING.keys())


def is_unsafe(proto: onnx.ModelProto) -> bool:
    """Whether a node's kernel may write over an operand too early, or draws random numbers."""
    ops = {operator(node) for graph in graphs(proto.graph) for node in graph.node}
    return not ops.isdisjoint(OVERWRITES.keys() | DRAWS)


def make_safe(proto: onnx.ModelProto) -> None:
    """Keep the operands of such nodes, and seed what draws; in place."""
    _keep_operands(proto)
    _seed(proto)


def what_differs(model: Model) -> str:
    """Why a difference of runs may be no fault of the pruning; nothing where all is computed."""
    for node in model.nodes:
        inner = (x for body in subgraphs(node.proto) for own in graphs(body) for x in own.node)
        ops = {operator(x) for x in (node.proto, *inner)}
        if draws(node.proto) and not UNSEEDED.isdisjoint(ops):
            return f"; {node.label} draws random numbers, so that runs may differ by themselves"
    return ""


def _seed(proto: onnx.ModelProto) -> None:
    """Let each node that draws and has no seed have one that goes by the name of its result."""
    for node in (x for graph in graphs(proto.graph) for x in graph.node):
        if operator(node) in DRAWS - UNSEEDED and all(a.name != "seed" for a in node.attribute):
            seed = zlib.crc32(first_name(node.output).encode()) % SEEDS
            node.attribute.append(helper.make_attribute("seed", float(seed)))


def _keep_operands(proto: onnx.ModelProto) -> None:
    """Read operands that are written over once more behind their nodes, to no effect."""
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
