"""Sessions on execution providers that run there, or fail.

ONNX Runtime has three silent ways to run on the CPU in place of the provider that was asked for:
the plug-in can't be created (the wrapper falls back), the build has no such provider (a warning),
or the provider takes no node. ``open_session`` refuses all three.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import onnx
import onnxruntime as ort
from onnx import external_data_helper

from onnxprune.bodies import graphs
from onnxprune.catalogue import CPU_NAME, PROVIDERS, Provider, provider
from onnxprune.errors import ProviderError, RunError
from onnxprune.extensions import add_extensions
from onnxprune.target import OPTIMIZATIONS, Target

ort.set_default_logger_severity(4)
UNKNOWN: Final = "is not a registered function/op"  # in ONNX Runtime's words
NO_KERNEL: Final = (
    "; give the library that has it (--ort-extension), or leave the proof out (--no-verify)"
)
MESSAGE_LIMIT: Final = 300
RECORD: Final = "session.record_ep_graph_assignment_info"
LEVELS: Final = dict(
    zip(
        OPTIMIZATIONS,
        ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_LAYOUT", "ENABLE_ALL"),
        strict=True,
    )
)


@dataclass(frozen=True)
class Placement:
    """Which provider runs which nodes of a session.

    Attributes:
        parts: each a provider, by its name in ONNX Runtime, and the names and operators of nodes
            that it runs: one node, or all that a compiling provider made one of. The nodes are
            those of the graph after the basic optimisations, before fusions.
    """

    parts: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = field(repr=False)

    @property
    def nodes(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """The nodes by provider."""
        found: dict[str, tuple[tuple[str, str], ...]] = {}
        for name, own in self.parts:
            found[name] = (*found.get(name, ()), *own)
        return found

    @property
    def shares(self) -> dict[str, float]:
        """Share of the nodes by provider."""
        counts: dict[str, int] = {}
        for name, own in self.parts:
            counts[name] = counts.get(name, 0) + len(own)
        total = sum(counts.values())
        return {name: count / total for name, count in counts.items()}


def available() -> tuple[str, ...]:
    """The short names of those that can be used here."""
    found = []
    for row in PROVIDERS.values():
        try:
            _devices(row)
        except ProviderError:
            continue
        found.append(row.name)
    return tuple(found)


def simulated(target: Target) -> bool:
    """Whether the provider only simulates its device here: its times mean nothing.

    Raises:
        ProviderError: it is not there.
    """
    row = provider(target.ep)
    return row.hardware is not None and not any(_fits(d, row) for d in _devices(row))


def open_session(
    model: onnx.ModelProto | Path,
    folder: Path | None,
    target: Target,
    configure: Callable[[ort.SessionOptions], None] | None = None,
    skip: Sequence[str] = (),
) -> ort.InferenceSession:
    """A session on the provider that is asked for, and on no other.

    Nodes that the provider does not take run on the CPU, as always in ONNX Runtime:
    ``assignment`` tells how many.

    Args:
        model: a model in memory, or the path of a file (.onnx or .ort).
        folder: where the external data of a model in memory lies.
        target: the provider, its options, threads and optimisations.
        configure: changes the options of the session before it is made.
        skip: optimisations to leave out, by ORT's name.

    Raises:
        ProviderError: the provider is unknown, not there, refuses its options, or runs no node.
        RunError: ONNX Runtime refuses the model.
    """
    row = provider(target.ep)
    devices = _devices(row)
    options = session_options(model, target)
    if configure is not None:
        configure(options)
    given = given_options(row, target)
    try:
        if folder is not None and isinstance(model, onnx.ModelProto) and _has_outside(model):
            key = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(key, str(folder))
        source = str(model) if isinstance(model, Path) else _apart(model).SerializeToString()
        if row.plugin is not None:
            options.add_provider_for_devices(devices[:1], given)
            session = ort.InferenceSession(source, options, enable_fallback=0)
        else:
            chosen = [(row.ort_name, given)] if given else [row.ort_name]
            session = ort.InferenceSession(
                source,
                options,
                providers=chosen,
                enable_fallback=0,
                **({"disabled_optimizers": list(skip)} if skip else {}),
            )
    except Exception as error:
        if row.ort_name == CPU_NAME:
            hint = NO_KERNEL if UNKNOWN in str(error) else ""
            raise RunError(f"ONNX Runtime can't load the model: {brief(error)}{hint}") from error
        raise ProviderError(
            f"the execution provider '{row.name}' can't load the model{_with(given)}: "
            f"{brief(error)}"
        ) from error
    if row.ort_name != CPU_NAME:
        _must_run(session, row)
    return session


def _apart(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, its nodes without names where two have the same, which ORT refuses."""
    names = [node.name for graph in graphs(model.graph) for node in graph.node if node.name]
    if len(set(names)) == len(names):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for graph in graphs(copy.graph):
        for node in graph.node:
            node.name = ""
    return copy


def given_options(row: Provider, target: Target) -> dict[str, str]:
    """The provider's options: threads, what its plug-in tells, and the user's."""
    given = {row.threads: str(target.threads)} if row.threads else {}
    kinds = {name.partition("_")[0] for name in target.options}
    for name, function in row.told:
        if row.plugin is not None and name.partition("_")[0] not in kinds:
            given[name] = str(getattr(import_module(row.plugin), function)())
    return {**given, **target.options}


def session_options(model: onnx.ModelProto | Path, target: Target) -> ort.SessionOptions:
    """The options of a session: threads, optimisations, and a record of what runs where."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    level = LEVELS[optimization_of(model, target)]
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    options.add_session_config_entry(RECORD, "1")
    add_extensions(options)
    return options


def optimization_of(model: onnx.ModelProto | Path, target: Target) -> str:
    """How far the graph is rewritten: as far as the target says, but for float16.

    ORT 1.31 and 1.32 end the process when they fully optimise some float16 transformers.
    """
    safe = OPTIMIZATIONS.index("extended")
    if OPTIMIZATIONS.index(target.optimization) <= safe:
        return target.optimization
    if isinstance(model, Path):
        if model.suffix == ".ort":  # was optimised when it was written
            return target.optimization
        model = onnx.load(str(model), load_external_data=False)
    half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
    return OPTIMIZATIONS[safe] if half else target.optimization


def placement(session: ort.InferenceSession) -> Placement:
    """Which provider runs which nodes.

    Raises:
        ProviderError: this ONNX Runtime can't tell.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        raise ProviderError(
            f"ONNX Runtime {ort.__version__} can't tell which provider ran which node: update it "
            "to 1.24 or later"
        )
    return Placement(
        tuple(
            (part.ep_name, tuple((node.name, node.op_type) for node in part.get_nodes()))
            for part in session.get_provider_graph_assignment_info()
        )
    )


def assignment(session: ort.InferenceSession) -> dict[str, float]:
    """The share of nodes by provider, by its name in ONNX Runtime."""
    return placement(session).shares


def brief(error: Exception) -> str:
    """What ONNX Runtime says, on one line of bearable length."""
    return " ".join(str(error).split())[:MESSAGE_LIMIT]


def _must_run(session: ort.InferenceSession, row: Provider) -> None:
    shares = assignment(session)
    if not shares.get(row.ort_name):
        others = ", ".join(sorted(shares)) or "no provider"
        raise ProviderError(
            f"the execution provider '{row.name}' ran no node of the model: all went to {others}; "
            "it may want other operators, types or static shapes"
        )


def _devices(row: Provider) -> Sequence[Any]:
    """The devices of a plug-in, the best first; nothing for what is built in.

    Raises:
        ProviderError: the provider is not installed, or finds no device.
    """
    if row.plugin is None:
        if row.ort_name not in ort.get_available_providers():
            raise _missing(row, f"is not in this onnxruntime {ort.__version__}")
        return ()
    try:
        library = import_module(row.plugin).get_library_path()
    except ImportError as error:
        raise _missing(row, "is not installed") from error
    found = _registered(library)
    if not found:
        # Some plug-ins look for the name that they are registered by in ONNX Runtime's graph.
        try:
            ort.register_execution_provider_library(row.ort_name, library)
        except Exception as error:
            raise ProviderError(
                f"the plug-in of the execution provider '{row.name}' can't be loaded: "
                f"{brief(error)}"
            ) from error
        found = _registered(library)
    if not found:
        raise ProviderError(
            f"the execution provider '{row.name}' finds no device on this machine "
            f"({platform.machine()}): its plug-in was loaded, but offers none"
        )
    return sorted(found, key=lambda device: not _fits(device, row))


def _registered(library: str) -> list[Any]:
    devices = ort.get_ep_devices()
    return [d for d in devices if d.ep_metadata.get("library_path") == str(library)]


def _fits(device: Any, row: Provider) -> bool:
    return row.hardware is None or device.device.type.name == row.hardware


def _missing(row: Provider, why: str) -> ProviderError:
    return ProviderError(f"the execution provider '{row.name}' {why}: {row.install}")


def _with(options: Mapping[str, str]) -> str:
    return f" with {', '.join(f'{k}={v}' for k, v in options.items())}" if options else ""


def _has_outside(proto: onnx.ModelProto) -> bool:
    return any(external_data_helper.uses_external_data(t) for t in proto.graph.initializer)
