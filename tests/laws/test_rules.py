"""The rule table as a whole: golden lines of computed rules, what is refused, what is covered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from onnxprune.fitting import result_shapes
from onnxprune.model import Model
from onnxprune.notation import Fit, is_whole, parse
from onnxprune.report import operators
from onnxprune.rules import BUILT_IN, Unprunable, fit_node, frozen, row_of, tables, values
from onnxprune.rules.site import Site
from tests.laws import backend, cases
from tests.laws.cases.build import Given, make
from tests.laws.nodes import RUNNERS, attempt
from tests.laws.square import same
from tests.laws.texts import DYNAMIC, model

GOLDEN = Path(__file__).parent / "golden_rules.txt"


def sizes(fit: Fit) -> str:
    """The letters that may be pruned."""
    free = [(x, n) for x, n in fit.sizes.items() if not is_whole(x) and n != 1]
    return " ".join(f"{x}={n}" for x, n in free) or "nothing"


def computed() -> Iterator[tuple[str, str]]:
    """Label and text of each different line that a computed rule gives."""
    seen = set()
    for op, own in cases.table().items():
        row = BUILT_IN[op]
        for case in own if callable(row) else ():
            line = case.line()
            if (row, line) not in seen:
                seen.add((row, line))
                yield case.name, f"{line}\n    {sizes(case.fit())}"
    for label, (signature, *nodes) in DYNAMIC.items():
        yield label, "; ".join(_said(model(signature, *nodes)))


def _said(found: Model) -> list[str]:
    """The line of the last node for each choice of dynamic sizes; once where they agree."""
    node = found.nodes[-1]
    row = row_of(node.op, {})
    assert callable(row)
    return list(dict.fromkeys(row(Site(node, found, sample)) for sample in found.samples))


def test_computed_rules_give_the_lines_that_were_reviewed(regen: bool) -> None:
    """Regenerate with ``pytest tests/laws/test_rules.py --regen`` and review the difference."""
    text = "".join(f"{label}\n    {said}\n" for label, said in computed())
    if regen:
        GOLDEN.write_text(text, "utf-8")
    assert text == GOLDEN.read_text("utf-8")


@pytest.mark.parametrize("label", sorted(DYNAMIC))
def test_a_rule_says_the_same_for_every_choice_of_dynamic_sizes(label: str) -> None:
    signature, *nodes = DYNAMIC[label]
    found = model(signature, *nodes)
    assert len(found.samples) == (2 if "N" in signature else 1)
    assert len(fit_node(found.nodes[-1], found, {})) == len(found.samples)


@pytest.mark.parametrize(
    ("op", "operands", "settings", "reason"),
    [
        ("NonZero", [(2, 3)], {}, "it picks at run time"),
        ("Softmax", [(2, 3)], {"axis": 5}, "its axis 5 lies outside rank 2"),
        ("Add", [(2, 4, 4), (4,)], {"axis": 1, "broadcast": 1, "opset": 6}, "as before opset 7"),
        ("QuantizeLinear", [(4, 7), (4, 3)], {"block_size": 3}, "its last block is not full"),
        ("Reshape", [(0, 3), [3, -1]], {"allowzero": 1}, "changes the number of elements, or has"),
        (
            "com.microsoft::MoE",
            [(5, 8), (5, 4), (4, 24, 8), (4, 24), (4, 8, 12), (4, 8)],
            {"k": 1, "activation_type": "swiglu"},
            "no CPU kernel for a gate that stands apart",
        ),
        (
            "com.microsoft::GatherBlockQuantized",
            [(7, 64), (3,), (1, 64)],
            {"block_size": 16, "gather_axis": 1, "quantize_axis": 0},
            "it gathers along another axis than the first, or has one block a row",
        ),
        (
            "com.microsoft::GatherBlockQuantized",
            [(48, 5), (3,), (3, 5)],
            {"block_size": 16, "quantize_axis": 0},
            "its blocks don't run along the last axis",
        ),
        (
            "com.microsoft::GatherBlockQuantized",
            [(7, 40), (3,), (7, 3)],
            {"block_size": 16},
            "its last block is not full",
        ),
        (
            "com.microsoft::GatherBlockQuantized",
            [(7, 32), (3,), (7, 4), (7, 2)],
            {"block_size": 16},
            "its zero points share bytes",
        ),
        (
            "com.microsoft::QMoE",
            [(5, 64), (5, 4), (4, 32, 32), (4, 32, 4), None, (4, 64, 16), (4, 64, 2), None]
            + [None] * 3
            + [(4, 32, 2)],
            {"block_size": 16},
            "its zero points share bytes",
        ),
        (
            "com.microsoft::QMoE",
            [(5, 64), (5, 4), (4, 32, 64), (4, 32), None, (4, 64, 32), (4, 64), None],
            {"quant_type": "fp8"},
            "its weights are laid out for one device",
        ),
        (
            "com.microsoft::QMoE",
            [(5, 8), (5, 4), (4, 6, 4), (4, 6), None, (4, 8, 3), (4, 8), None, (4, 6, 4)],
            {},
            "no CPU kernel for experts of three layers",
        ),
        ("com.microsoft::Nothing", [(2,)], {}, "operator com.microsoft::Nothing has no rule"),
        ("PRelu", [(2, 3), (4, 3)], {}, "an axis of size 2 does not fit .1"),
    ],
)
def test_what_can_not_be_said_is_refused(
    op: str, operands: list[Given], settings: dict[str, int | str], reason: str
) -> None:
    with pytest.raises(Unprunable, match=reason):
        make(op, *operands, **settings).fit()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("signature", "nodes", "reason"),
    [
        (
            "(float[3,L] x) => (float[A,B] y)",
            [
                "a = Constant <value = int64[2] {0, 0}> ()",
                "b = Constant <value = int64[2] {3, 17000}> ()",
                "y = Slice(x, a, b)",
            ],
            "what it does with its axes depends on dynamic sizes",
        ),
        (
            "(float[3,8] x, int64[1] t) => (float[A,B] y)",
            ["y = ReduceMax(x)", "z = Tile(x, t)"],
            r"operand 1 \(repeats\) is computed at run time",
        ),
        (
            "(float[N,1] x) => (float[A,B] y)",
            ["s = Size(x)", "y = CumSum(x, s)"],
            r"operand 1 \(axis\) depends on dynamic sizes",
        ),
        (
            "(float[3,8] x, int64[1] t) => (float[A] y)",
            ["z = com.microsoft.Nothing(x)", "y = Relu(z)"],
            "operand 0 has an unknown rank",
        ),
        (
            "(float[3,8] x) => (float[A] y)",
            ["z = com.microsoft.Nothing(x)", "y = Softmax(z)"],
            "operand 0 has an unknown rank",
        ),
        (
            "(float[3,8] x) => (y)",
            ["y = com.microsoft.FusedConv(x, x)"],
            "result 0 has an unknown rank",
        ),
        (
            "(float[3,8] x, int64[2] i) => (y)",
            ["r = com.microsoft.Nothing(i)", "y = Expand(x, r)"],
            "result 0 has an unknown rank",
        ),
    ],
)
def test_what_is_unknown_is_refused(signature: str, nodes: list[str], reason: str) -> None:
    found = model(signature, *nodes)
    with pytest.raises(Unprunable, match=reason):
        fit_node(found.nodes[-1], found, {})


@pytest.mark.parametrize("op", sorted(cases.table()))
def test_a_row_finds_the_shapes_of_results(op: str) -> None:
    """As far as it says anything about them: a size that only a result knows stays open."""
    for case in cases.table()[op]:
        known = case.model.samples[0].shapes
        operands = [known.get(name) if name else None for name in case.node.inputs]
        whole = {k: v for k, v in case.node.attributes.items() if isinstance(v, int)}
        found = result_shapes(case.line(), operands, {"group": 1, **whole})
        for name, shape in zip(case.node.outputs, found, strict=False):
            if shape is not None:
                actual = known[name]
                assert len(shape) == len(actual)
                assert all(a in (None, b) for a, b in zip(shape, actual, strict=True)), case.name


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(values.FOLD.keys() & BUILT_IN.keys()))
def test_shape_arithmetic_is_what_a_runtime_gives(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "FLOAT_LIMIT", values.LIMIT)  # the cases hold more than sizes
    compared = 0
    for case in (*cases.table().get(op, ()), *backend.cases().get(op, ())):
        value = values.evaluate(case.node, case.operands)
        found = (attempt(runner, case.proto) for runner in RUNNERS)
        results = next((r for r in found if r is not None), None)
        if value is not None and results is not None and value.dtype.isbuiltin == 1:
            assert same(results[0], value), case.name
            compared += 1
    assert compared


def test_every_operator_of_onnx_has_a_row_or_a_reason() -> None:
    names = {
        s.name if s.domain == "" else f"{s.domain}::{s.name}"
        for s in onnx.defs.get_all_schemas()
        if s.domain in ("", "ai.onnx.ml")
    }
    assert names - BUILT_IN.keys() - frozen.FROZEN.keys() == set()
    assert BUILT_IN.keys().isdisjoint(frozen.FROZEN)


def test_no_operator_of_onnx_or_of_onnx_runtime_is_missing() -> None:
    """Every one has a row or a reason that was written for it, and no reason is for none."""
    rows = operators.operators()
    assert [row.op for row in rows if row.state == "missing"] == []
    assert {"ai.onnx", "ai.onnx.ml", "com.microsoft"} <= {row.domain for row in rows}
    own = {f"{operators.CONTRIB}::{name}" for name in operators._contrib_names()}
    stated = {op for op in (*BUILT_IN, *frozen.FROZEN) if op.startswith(f"{operators.CONTRIB}::")}
    assert stated == own


@pytest.mark.parametrize("op", sorted(BUILT_IN))
def test_a_row_is_in_the_notation(op: str) -> None:
    row = BUILT_IN[op]
    if isinstance(row, str):
        assert parse(row).line == row


def test_rows_are_alphabetical_inside_a_section() -> None:
    source = Path(tables.__file__).read_text("utf-8")
    table = source[source.index("TABLE:") : source.index("\n}\n")]
    for section in table.split("    # ")[1:]:
        names = [x.split('"')[1] for x in section.splitlines() if x.startswith('    "')]
        names = [name for name in names if name in BUILT_IN]
        assert names == sorted(names)


def test_a_row_of_the_user_comes_first() -> None:
    assert row_of("Relu", {"Relu": "_ -> _"}) == "_ -> _"
    assert row_of("Relu", {}) == "... -> ..."
