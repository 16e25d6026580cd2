"""Which bodies of control flow a run enters, as ONNX Runtime's profile of it tells.

What a body gives is proved where it runs: a Loop that goes round zero times on the inputs at hand
is the same in both models, whatever its body does.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import onnx
import onnxruntime as ort

from onnxprune import providers, runtime
from onnxprune.bodies import graphs
from onnxprune.model import Body, Node, first_name
from onnxprune.pair import Pair
from onnxprune.preparing import Prepared
from onnxprune.rules.control import decides
from onnxprune.rules.tables import CONSTANTS
from onnxprune.ways import force, loses, side
from onnxprune.widen import widen, widened

NAMED: Final = re.compile(r'"name"\s*:\s*"((?:[^"\\]|\\.)*)_kernel_time"')
PLAIN: Final = replace(runtime.CPU, optimization="disable")


def unentered(runs: Sequence[Prepared]) -> tuple[str, ...]:
    """Notes on the bodies that lose something and that none of these runs enters.

    Raises:
        RunError: the original does not run.
    """
    pair = runs[0].pair
    bodies = dict(_losing(pair, pair.coupling.model.nodes))
    entered: set[str] = set()
    for own in runs:
        for feeds in own.feeds:
            if not bodies.keys() <= entered:
                ran = _ran(own.pair, feeds)
                entered |= {key for key, (_, keys) in bodies.items() if not keys.isdisjoint(ran)}
    return tuple(
        f"{label} does not run on these inputs: what it gives was not compared"
        for key, (label, _) in bodies.items()
        if key not in entered
    )


def _losing(pair: Pair, nodes: Sequence[Node]) -> Iterator[tuple[str, tuple[str, set[str]]]]:
    """Bodies that lose something: what they are called, and the nodes by which a run shows them."""
    pruned = frozenset(factor for factor, mask in pair.keep.items() if not mask.all())
    for node in nodes:
        for body in node.bodies:
            keys = {own.key for own in body.nodes if own.op not in CONSTANTS}
            if keys and loses(pair.coupling, pruned, body):
                yield f"{node.key}:{body.place}", (_label(node, body), keys)
            yield from _losing(pair, body.nodes)


def _label(node: Node, body: Body) -> str:
    what = f"the {side(node, body)} branch" if decides(node) else "the body"
    return f"{what} of {node.label}"


def _ran(pair: Pair, feeds: runtime.Feeds) -> set[str]:
    """The nodes of the original that a run computes, by their keys."""
    model = pair.coupling.model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for graph in graphs(proto.graph):
        for node in graph.node:
            node.name = first_name(node.output)
    if pair.forced:
        force(proto, pair.forced, model.renamed)
    if pair.wide:
        widen(proto, model.folder)
        feeds = {name: widened(value) for name, value in feeds.items()}
    with tempfile.TemporaryDirectory() as place:

        def profile(options: ort.SessionOptions) -> None:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(place) / "run")

        session = providers.open_session(proto, model.folder, PLAIN, profile)
        runtime.run(session, feeds, model.outputs)
        return _named(Path(session.end_profiling()))


def _named(profile: Path) -> set[str]:
    """The nodes that a profile has times of; a loop may fill it with millions of events.

    So it is read line by line, and of each event no more than its name.
    """
    found = set()
    with profile.open(encoding="utf-8") as lines:
        for line in lines:
            found.update(NAMED.findall(line))
    return {json.loads(f'"{name}"') for name in found}
