"""One run: where a model comes from and goes to, and what it is run on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxprune import data, files
from onnxprune.amounts import size
from onnxprune.choosing import Progress, Rules
from onnxprune.environment import free_bytes
from onnxprune.errors import OnnxPruneError
from onnxprune.judging import Data
from onnxprune.model import Model
from onnxprune.results import Report, Try
from onnxprune.runtime import Feeds
from onnxprune.trials import Sensitivity

Inputs = str | Path | Mapping[str, Any] | None


@dataclass(frozen=True)
class Run:
    """Where a model comes from and goes to, and how it is proved.

    Attributes:
        source: the model, as the caller gave it.
        rules: the user's rows by operator.
        verify: whether to prove the result.
        inputs: real inputs for that.
        output: where to write the result.
        plan_output: where to write the plan, with it.
        report_output: where to write the report, also that of a verification that failed.
        progress: is told the name of each pass as it starts.
        data: for criteria, recovery, and what the result is judged by.
        sensitivity: shares a budget out by what each group can spare.
        notes: what the report says besides.
        tries: what was made before, in a search.
        seconds: time by pass.
        report_text: what the report's file holds.
        open_io: inputs and outputs of the graph whose channels may go.
        known: what runs of one search have in common; None where there is one run alone.
    """

    source: Any
    rules: Rules
    verify: bool = True
    inputs: Inputs = None
    output: str | Path | None = None
    plan_output: str | Path | None = None
    report_output: str | Path | None = None
    progress: Progress | None = None
    data: Data = field(default_factory=Data)
    sensitivity: Sensitivity | None = None
    notes: tuple[str, ...] = ()
    tries: tuple[Try, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    report_text: Callable[[Report], str] = Report.to_json
    known: dict[str, Any] | None = None
    open_io: tuple[str, ...] = ()

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives: made once in all runs of a search."""
        if self.known is None:
            return make()
        if name not in self.known:
            self.known[name] = make()
        return self.known[name]

    @contextmanager
    def step(self, name: str) -> Iterator[Progress | None]:
        """Tell the caller of a pass, and time it; what is yielded is told what it is at."""
        tell = self.progress
        if tell is not None:
            tell(name)
        start = time.perf_counter()
        yield None if tell is None else lambda detail: tell(f"{name}: {detail}")
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def target(self) -> Path | None:
        """Where to write to.

        Raises:
            OnnxPruneError: it is the input, or its folder is not there.
        """
        if self.output is None:
            return None
        target = Path(self.output)
        given = isinstance(self.source, str | os.PathLike)
        if given and target.resolve() == Path(self.source).resolve():
            raise OnnxPruneError(f"the output '{target}' is the input: give another path")
        if not target.parent.is_dir():
            raise OnnxPruneError(
                f"'{target}' can't be written: there is no folder '{target.parent}'"
            )
        return target

    def check(self, model: Model) -> None:
        """Refuse, before any work is done, to write over the model's data, and what does not fit.

        ONNX Runtime holds the original, and later what is left of it, as a whole.

        Raises:
            OnnxPruneError: which file would be lost; or how much memory the proof wants.
        """
        self._spare(model)
        wanted, free = files.data_bytes(model.proto), free_bytes()
        if self.verify and free is not None and wanted > free:
            raise OnnxPruneError(
                f"verifying '{model.name}' takes {size(wanted)} of memory, and {size(free)} are "
                "free: run it where there is more, or without the proof (--no-verify, "
                "verify=False), which the report then says"
            )

    def _spare(self, model: Model) -> None:
        """Nothing is written over the original's data, nor the data of the result over its plan."""
        held = files.data_files(model.proto, model.folder)
        kept = dict.fromkeys(held, "which holds data of the original")
        if held and self.output is not None:
            data = Path(f"{self.output}.data").resolve()
            files.spare_data(data, held)
            kept[data] = "which is to hold the data of the result"
        targets = {"model": self.output, "plan": self.plan_output, "report": self.report_output}
        for what, path in targets.items():
            if path is not None and Path(path).resolve() in kept:
                why = kept[Path(path).resolve()]
                raise OnnxPruneError(
                    f"the {what} can't be written to '{path}', {why}: give another path"
                )

    def digest(self) -> str | None:
        """The digest of the model's file."""
        given = isinstance(self.source, str | os.PathLike)
        return files.sha256(Path(self.source)) if given else None


def given_inputs(inputs: Inputs, model: Model) -> Feeds | None:
    """The user's inputs, read where they are a file."""
    return data.load_inputs(Path(inputs), model) if isinstance(inputs, str | Path) else inputs


def timed_on(run: Run, model: Model, seed: int) -> Feeds:
    """What a model is timed on: the user's inputs, or random ones for one sample."""
    return given_inputs(run.inputs, model) or data.one_sample(model, seed)
