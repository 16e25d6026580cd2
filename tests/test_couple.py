"""The structures that coupling has to discover, each on a real topology."""

from functools import cache

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxprune import files
from onnxprune.coupling import Coupling, Group
from onnxprune.errors import OnnxPruneError
from onnxprune.explaining import explanation, frozen_rows, nothing_to_prune
from onnxprune.model import Array
from onnxprune.passes.couple import couple
from onnxprune.passes.normalize import normalize
from tests.zoo.fill import load


@cache
def coupled(name: str) -> Coupling:
    return couple(normalize(files.load(load(name), name)))


def holding(coupling: Coupling, param: str, axis: int) -> list[Group]:
    """The groups on one axis of a parameter, in the order of its layout."""
    leaves = coupling.factors.leaves(coupling.layouts[param][axis])
    names = coupling.names()
    return [g for leaf in leaves if leaf in names for g in coupling.groups if g.factor == leaf]


def layout(coupling: Coupling, param: str, axis: int) -> str:
    names = {g.factor: f"{'m' if g.mixing else 'e'}" for g in coupling.groups}
    return coupling.factors.render(coupling.layouts[param][axis], names)


@pytest.mark.parametrize(
    ("name", "param", "axis", "expected"),
    [
        # packed QKV: three whole parts, heads, head dims
        ("timm/vit_tiny_patch16_224", "blocks.0.attn.qkv.bias", 0, "(1+1+1 e:3 e:64)"),
        # GPT-2: q and k share their dims, v has its own; the heads are shared by all
        (
            "transformers/gpt2_eager.legacy",
            "m.transformer.h.0.attn.c_attn.weight",
            1,
            "(e:4 e:32)+(e:4 e:32)+(e:4 e:32)",
        ),
        # RoPE: the halves of a head rotate together
        ("transformers/llama_mha", "val_108", 1, "(e:4 e:32+e:32)"),
        # channel shuffle ties positions of both branches
        ("torchvision/shufflenet_v2_x0_5", "stage2.0.branch1.2.weight", 0, "e:3+e:3+e:6+e:12"),
        # the residual width of a transformer goes through LayerNorm
        ("timm/vit_tiny_patch16_224", "patch_embed.proj.weight", 0, "m:192"),
        # a CNN's residual width does not mix
        ("torchvision/resnet18", "conv1.weight", 0, "e:64"),
        # depthwise: one factor, no second axis
        ("torchvision/mobilenet_v2", "features.2.conv.1.0.weight", 0, "e:96"),
        # concatenation of dense layers
        (
            "torchvision/densenet121",
            "features.denseblock1.denselayer2.conv1.weight",
            1,
            "e:64+e:32",
        ),
        # grouped convolution keeps groups and the channels inside them apart
        ("torchvision/resnext50_32x4d", "layer1.0.conv2.weight", 0, "(e:32 e:4)"),
    ],
)
def test_layout(name: str, param: str, axis: int, expected: str) -> None:
    assert layout(coupled(name), param, axis) == expected


def test_grouped_convolution_reads_another_factor_than_it_makes() -> None:
    coupling = coupled("torchvision/resnext50_32x4d")
    groups, made = holding(coupling, "layer1.0.conv2.weight", 0)
    (read,) = holding(coupling, "layer1.0.conv2.weight", 1)
    assert (groups.size, made.size, read.size) == (32, 4, 4)
    assert made is not read
    member = next(m for m in read.members if m.param == "layer1.0.conv2.weight")
    assert (member.axis, member.contracted) == (1, True)


def test_sides_of_members() -> None:
    coupling = coupled("torchvision/resnet18")
    (group,) = holding(coupling, "layer1.0.conv1.weight", 0)
    sides = {(m.param, m.axis): m.contracted for m in group.members}
    assert sides.pop(("layer1.0.conv2.weight", 1)) is True
    assert not any(sides.values())
    assert len(sides) == 5  # the weight, and scale, bias, mean, variance of its BatchNormalization


def test_groups_are_named_after_their_first_member_and_names_are_unique() -> None:
    for name in ("torchvision/resnet18", "timm/vit_tiny_patch16_224", "transformers/llama_mha"):
        coupling = coupled(name)
        assert len({g.name for g in coupling.groups}) == len(coupling.groups)
        for group in coupling.groups:
            first = group.members[0]
            assert group.name.startswith(f"{first.param}:{first.axis}")


def test_inputs_and_outputs_are_frozen_with_a_reason() -> None:
    coupling = coupled("torchvision/resnet18")
    said = {(row.param, row.axis): row.reason for row in frozen_rows(coupling)}
    assert said["conv1.weight", 1] == "it is an axis of a graph input"
    assert said["fc.weight", 0] == "it is an axis of a graph output"
    assert ("conv1.weight", 0) not in said


def test_every_frozen_axis_has_a_reason_and_a_node_where_one_did_it() -> None:
    coupling = coupled("timm/eca_botnext26ts_256")
    said = [row.reason for row in frozen_rows(coupling)]
    assert any("node '/stages/stages.0/stages.0.0/attn/conv/Conv' (Conv)" in x for x in said)
    assert all(said)


def _model(nodes: list[NodeProto], outputs: list[str], **weights: Array) -> Coupling:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(w.astype(np.float32), k) for k, w in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    return couple(normalize(files.load(helper.make_model(graph, opset_imports=opsets))))


def test_unknown_operator_freezes_all_that_it_touches() -> None:
    coupling = _model(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
            helper.make_node("Odd", ["h"], ["i"], "odd", domain="my"),
            helper.make_node("MatMul", ["h", "b"], ["y"], "second"),
        ],
        ["y", "i"],
        a=np.ones((4, 8)),
        b=np.ones((8, 3)),
    )
    assert coupling.groups == ()
    text = nothing_to_prune(coupling)
    assert "node 'odd' (my::Odd): operator my::Odd has no rule" in text


def test_shared_vector_does_not_couple_and_shared_matrix_does() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"]),
        helper.make_node("Add", ["p", "zero"], ["q"]),
        helper.make_node("MatMul", ["q", "square"], ["r"]),
        helper.make_node("Add", ["r", "zero"], ["s"]),
        helper.make_node("MatMul", ["s", "square"], ["t"]),
        helper.make_node("MatMul", ["t", "b"], ["y"]),
    ]
    weights = {"a": np.ones((4, 8)), "b": np.ones((8, 3)), "zero": np.zeros(8)}
    tied = _model(nodes, ["y"], square=np.arange(64.0).reshape(8, 8), **weights)
    assert [g.size for g in tied.groups] == [8]
    free = _model(nodes, ["y"], square=np.ones((8, 8)), **weights)
    assert [g.size for g in free.groups] == [8, 8, 8]
    assert {"zero@q:1", "zero@s:1"} <= {m.param for g in tied.groups for m in g.members}


def test_explanations() -> None:
    coupling = coupled("torchvision/resnet18")
    text = explanation(coupling, "layer1.0.conv1.weight:0")
    assert "group layer1.0.conv1.weight:0: 64 channels, exact, 6 members" in text
    assert "layer1.0.conv2.weight, axis 1 (contracted): layer1.0.conv1.weight:0:64" in text
    assert "whole: it is an axis of a graph input" in explanation(coupling, "conv1.weight:1")
    with pytest.raises(OnnxPruneError, match=r"no group or value 'conv9'"):
        explanation(coupling, "conv9")
    with pytest.raises(OnnxPruneError, match=r"'conv1.weight' has 4 axes, so there is no axis 7"):
        explanation(coupling, "conv1.weight:7")
