"""Where values go: ConvTranspose and Resize give every place what ONNX Runtime gives it."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import runtime
from onnxprune.files import load
from onnxprune.torch_bridge import bridge
from tests import graphs
from tests.graphs import node, weight

torch = pytest.importorskip("torch", reason="torch is not installed")

SAME = 1e-5  # absolute and relative; values at other places are 0.01 and more apart

AUTO = ("NOTSET", "SAME_LOWER", "SAME_UPPER", "VALID")
# No factor but 2 and 3 is a binary fraction: which of two places is nearest hangs on the precision.
FACTORS = (2.3, 0.6, 1.7, 0.7, 1.1, 0.3, 0.9, 3.0, 1 / 3, 2 / 3, 2.0, 1.0)
IMAGES = ((7, 8), (10, 4), (13, 30))
ROUNDED = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
MODES = [*product(["nearest"], ROUNDED), ("linear", ""), ("cubic", "")]
COORDINATES = {
    "align_corners": 11,
    "asymmetric": 11,
    "half_pixel": 11,
    "half_pixel_symmetric": 19,
    "pytorch_half_pixel": 11,
    "tf_crop_and_resize": 11,
    "tf_half_pixel_for_nn": 11,
}


def one(op: str, x: Any, weights: dict[str, Any], inputs: str, opset: int, **own: Any) -> Any:
    """A model of one node; its result may have any shape."""
    proto = graphs.model([node(op, inputs, "y", **own)], {"x": x.shape}, {"y": []}, weights, opset)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return proto


def places_agree(proto: onnx.ModelProto, x: Any) -> None:
    """The module's result has the shape of ONNX Runtime's, and its value at each place."""
    expected = runtime.run(runtime.session(proto, None), {"x": x}, ["y"])[0]
    with torch.no_grad():
        found = bridge(load(proto))(torch.from_numpy(x)).numpy()
    assert found.shape == expected.shape, proto.graph.node[0]
    np.testing.assert_allclose(found, expected, SAME, SAME, err_msg=str(proto.graph.node[0]))


@pytest.mark.parametrize("opset", [8, 11, 22])  # ONNX changed the rule in 11
@pytest.mark.parametrize("auto", AUTO)
def test_a_transposed_convolution_is_cut_where_onnx_runtime_cuts_it(auto: str, opset: int) -> None:
    x, w = weight(0, 1, 2, 5, 7), weight(1, 2, 3, 3, 2)
    for stride, dilation, extra in product((1, 2, 3), (1, 2), (0, 1)):
        if extra >= stride:
            continue
        whole = [
            (n - 1) * stride + (k - 1) * dilation + 1 + extra
            for n, k in zip(x.shape[2:], w.shape[2:], strict=True)
        ]
        own: dict[str, Any] = {
            "strides": [stride] * 2,
            "dilations": [dilation] * 2,
            "output_padding": [extra] * 2,
        }
        own |= {"auto_pad": auto}
        places_agree(one("ConvTranspose", x, {"w": w}, "x w", opset, **own), x)
        for less in range(1 + extra - stride, 4):  # odd and even totals, and sizes beyond the whole
            own |= {"output_shape": [n - less for n in whole]}
            places_agree(one("ConvTranspose", x, {"w": w}, "x w", opset, **own), x)


def test_a_transposed_convolution_of_stride_beyond_its_kernel_is_not_cut() -> None:
    """SAME implies a size that is larger than the whole: ONNX Runtime gives the whole."""
    x, w = weight(0, 1, 2, 5), weight(1, 2, 3, 1)
    for auto in AUTO:
        places_agree(one("ConvTranspose", x, {"w": w}, "x w", 17, auto_pad=auto, strides=[2]), x)


@pytest.mark.parametrize(("mode", "nearest"), MODES)
@pytest.mark.parametrize("how", sorted(COORDINATES))
def test_resize_reads_the_places_that_onnx_runtime_reads(how: str, mode: str, nearest: str) -> None:
    own: dict[str, Any] = {"coordinate_transformation_mode": how, "mode": mode}
    if nearest:
        own["nearest_mode"] = nearest
    roi = np.array([0, 0, 0.1, 0.2, 1, 1, 0.9, 0.7], np.float32)
    for (height, width), factor in product(IMAGES, FACTORS):
        x = weight(0, 1, 2, height, width)
        scales = np.array([1, 1, factor, factor], np.float32)
        sizes = np.array([1, 2, max(1, int(height * factor)), max(1, int(width * factor))])
        none = np.zeros(0, np.float32)
        for stated in ({"scales": scales}, {"scales": none, "sizes": sizes}):
            weights = {"roi": roi, **stated}
            inputs = " ".join(["x", *weights])
            places_agree(one("Resize", x, weights, inputs, COORDINATES[how], **own), x)


@pytest.mark.parametrize(("op", "opset"), [("Upsample", 9), ("Resize", 10)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizing_of_old_opsets(op: str, opset: int, mode: str) -> None:
    for (height, width), factor in product(IMAGES, FACTORS):
        if op == "Upsample" and factor < 1:  # ONNX Runtime refuses it
            continue
        x = weight(0, 1, 2, height, width)
        scales = np.array([1, 1, factor, factor], np.float32)
        places_agree(one(op, x, {"s": scales}, "x s", opset, mode=mode), x)


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resizing_that_keeps_the_aspect(policy: str, mode: str) -> None:
    for (height, width), tall, wide in product(IMAGES, (3, 5, 9, 14), (4, 7, 21)):
        x = weight(0, 1, 2, height, width)
        own = {"keep_aspect_ratio_policy": policy, "mode": mode, "axes": [2, 3]}
        sizes = np.array([tall, wide])
        places_agree(one("Resize", x, {"s": sizes}, "x - - s", 19, **own), x)
