"""Small networks with rows: heads and groups, and what may or may not differ between them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from onnxprune import balance
from tests.laws.cases.build import random

HEAD = '<ir_version: 10, opset_import: ["" : 17, "com.microsoft" : 1]>\n'
B, S, M, H, D = 2, 5, 16, 4, 6  # batch, tokens, width, heads, dims of a head
WIDTH = M
TOKENS = f"(float[{B},{S},{M}] x) => (float[{B},{S},3] y)"
PIXELS = "(float[2,6,7,7] x) => (float[2,5,N,N] y)"


@dataclass(frozen=True)
class Net:
    """A network.

    Attributes:
        body: its nodes.
        weights: shapes of its float parameters.
        ints: its other constants.
        rows: by parameter and axis how many rows the group there may keep other channels in.
        refused: groups that have to keep the same, and what objects, in words.
        signature: its input and output.
        bytes: shapes of its parameters of int8.
    """

    body: str
    weights: dict[str, tuple[int, ...]]
    ints: dict[str, list[int]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    signature: str = TOKENS
    bytes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        """The network with random weights."""
        proto = onnx.parser.parse_model(f"{HEAD}g {self.signature} {{\n{self.body}\n}}")
        for name, shape in self.weights.items():
            values = random(shape, name).standard_normal(shape).astype(np.float32)
            values = np.abs(values) if name == "var" else values * np.float32(0.4)
            proto.graph.initializer.append(numpy_helper.from_array(values, name))
        for name, numbers in self.ints.items():
            proto.graph.initializer.append(numpy_helper.from_array(np.array(numbers), name))
        for name, shape in self.bytes.items():
            small = random(shape, name).integers(-100, 100, shape).astype(np.int8)
            proto.graph.initializer.append(numpy_helper.from_array(small, name))
        return proto


QKV = {"wq": (M, H * D), "bq": (H * D,), "wk": (M, H * D), "bk": (H * D,)}
VO = {"wv": (M, H * D), "bv": (H * D,), "wo": (H * D, M), "wy": (M, 3)}
SPLIT = {"split": [B, S, H, D], "joined": [0, 0, -1]}


def _attention(of_q: str = "", of_k: str = "", of_v: str = "", before: str = "") -> str:
    """Attention written out; what happens to q, k and v (b, h, s, d) before they meet."""
    made = "\n".join(
        f"""p{x} = MatMul(x, w{x}) b{x}_ = Add(p{x}, b{x})
        {before.replace("$", x)}
        r{x} = Reshape(b{x}_, split) t{x} = Transpose <perm = [0, 2, 1, 3]> (r{x})
        {own or f"{x} = Identity(t{x})"}"""
        for x, own in (("q", of_q), ("k", of_k), ("v", of_v))
    )
    return f"""{made}
        kt = Transpose <perm = [0, 1, 3, 2]> (k)
        s = MatMul(q, kt) a = Softmax(s)
        o = MatMul(a, v) u = Transpose <perm = [0, 2, 1, 3]> (o)
        j = Reshape(u, joined) z = MatMul(j, wo) n = Relu(z) y = MatMul(n, wy)"""


def _twice(text: str) -> tuple[str, str]:
    """The same for q and for k."""
    return text.replace("$", "q"), text.replace("$", "k")


def _attending(of_q: str = "", of_k: str = "", of_v: str = "", **more: object) -> Net:
    found = {"rows": {"wq:1[1]": H, "wv:1[1]": H}, "weights": {}, "ints": {}, "refused": {}} | more
    weights = {**QKV, **VO, **found["weights"]}  # type: ignore[dict-item]
    ints = {**SPLIT, **found["ints"]}  # type: ignore[dict-item]
    body = _attention(of_q, of_k, of_v)
    return Net(body, weights, ints, found["rows"], found["refused"])  # type: ignore[arg-type]


V_ALONE = {"wv:1[1]": H}
LACKING, ALONE = balance.LACKING, "holds it without these rows"
HALVES = """l$ = Slice(t$, zero, three, three) g$ = Slice(t$, three, six, three)
    m$ = Neg(g$) c$ = Concat <axis = 3> (m$, l$) e$ = Mul(c$, sin) f$ = Mul(t$, cos)
    $ = Add(e$, f$)"""

MERGED = """p = MatMul(x, wq) a0 = Reshape(p, split) a1 = Transpose <perm = [0, 2, 1, 3]> (a0)
    k0 = MatMul(x, wk) b0 = Reshape(k0, split) b1 = Transpose <perm = [0, 2, 3, 1]> (b0)
    q = Reshape(a1, qs) k = Reshape(b1, ks) s = MatMul(q, k) e = Reshape(s, apart)
    y = MatMul(e, wy)"""
MERGED_WEIGHTS: dict[str, tuple[int, ...]] = {"wq": (M, H * D), "wk": (M, H * D), "wy": (S, 3)}
MERGED_SIZES = {"split": [-1, S, H, D], "qs": [-1, S, D], "ks": [-1, D, S], "apart": [-1, H, S, S]}

NETS: dict[str, Net] = {
    "heads beside the batch": Net(
        MERGED,
        MERGED_WEIGHTS,
        MERGED_SIZES,
        rows={"wq:1[1]": H},
        signature=f"(float[{B},{S},{M}] x) => (float[{B},{H},{S},3] y)",
    ),
    "heads beside a dynamic batch": Net(
        MERGED,
        MERGED_WEIGHTS,
        MERGED_SIZES,
        refused={"wq:1[1]": balance.DYNAMIC},
        signature=f"(float[N,{S},{M}] x) => (float[N,{H},{S},3] y)",
    ),
    "grouped convolution": Net(
        """a = Conv(x, w1, b1) b = Relu(a) c = Conv <group = 3> (b, w2, b2) d = Relu(c)
        y = Conv(d, w3)""",
        {"w1": (12, 6, 1, 1), "b1": (12,), "w2": (15, 4, 3, 3), "b2": (15,), "w3": (5, 15, 1, 1)},
        rows={"w1:0[1]": 3, "w2:0[1]": 3},
        signature=PIXELS,
    ),
    "ResNeXt": Net(
        """s = Conv(x, w0) a = Conv(s, w1) m = BatchNormalization(a, g, h, i, var) b = Relu(m)
        c = Conv <group = 3, pads = [1, 1, 1, 1]> (b, w2, b2) d = Sigmoid(c) e = Conv(d, w3)
        t = Add(s, e) y = Conv(t, w4)""",
        {"w0": (8, 6, 1, 1), "w1": (12, 8, 1, 1), "g": (12,), "h": (12,), "i": (12,), "var": (12,)}
        | {"w2": (12, 4, 3, 3), "b2": (12,), "w3": (8, 12, 1, 1), "w4": (5, 8, 1, 1)},
        rows={"w1:0[1]": 3, "w2:0[1]": 3},
        signature=PIXELS,
    ),
    "grouped convolution of integers": Net(
        """a = Conv(x, w1) scale = Constant <value = float {0.05}> ()
        zero = Constant <value = int8 {3}> () even = Constant <value = int8 {0}> ()
        b = QuantizeLinear(a, scale, zero)
        c = QLinearConv <group = 3> (b, scale, zero, w2, scale, even, scale, zero)
        d = DequantizeLinear(c, scale, zero) y = Conv(d, w3)""",
        {"w1": (12, 6, 1, 1), "w3": (5, 15, 1, 1)},
        rows={"w2:0[1]": 3},
        refused={"w1:0[1]": "it sums integers"},
        signature=PIXELS,
        bytes={"w2": (15, 4, 1, 1)},
    ),
    "transposed grouped convolution": Net(
        "a = Conv(x, w1) b = Relu(a) c = ConvTranspose <group = 3> (b, w2) y = Conv(c, w3)",
        {"w1": (12, 6, 1, 1), "w2": (12, 5, 3, 3), "w3": (5, 15, 1, 1)},
        rows={"w1:0[1]": 3, "w2:1": 3},
        signature=PIXELS,
    ),
    "attention": _attending(),
    "attention with a scale a head": _attending("q = Mul(tq, heads)", weights={"heads": (H, 1, 1)}),
    "packed attention": Net(
        """p = MatMul(x, w) q0 = Add(p, b) r = Reshape(q0, five)
        t = Transpose <perm = [2, 0, 3, 1, 4]> (r) i, j, l = Split <axis = 0> (t)
        q = Squeeze(i, zero) k = Squeeze(j, zero) v = Squeeze(l, zero)
        kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul(q, kt) a = Softmax(s)
        o = MatMul(a, v) u = Transpose <perm = [0, 2, 1, 3]> (o)
        m = Reshape(u, joined) z = MatMul(m, wo) n = Relu(z) y = MatMul(n, wy)""",
        {"w": (M, 3 * H * D), "b": (3 * H * D,), "wo": (H * D, M), "wy": (M, 3)},
        {"five": [B, S, 3, H, D], "zero": [0], "joined": [0, 0, -1]},
        rows={"w:1[1]": H},
    ),
    "q, k and v side by side": Net(
        """p = MatMul(x, w) b0 = Add(p, b) i, j, l = Split <axis = 2> (b0)
        r = Reshape(i, split) q = Transpose <perm = [0, 2, 1, 3]> (r)
        g = Reshape(j, split) kt = Transpose <perm = [0, 2, 3, 1]> (g)
        f = Reshape(l, split) v = Transpose <perm = [0, 2, 1, 3]> (f)
        s = MatMul(q, kt) a = Softmax(s) o = MatMul(a, v) u = Transpose <perm = [0, 2, 1, 3]> (o)
        m = Reshape(u, joined) z = MatMul(m, wo) n = Relu(z) y = MatMul(n, wy)""",
        {"w": (M, 3 * H * D), "b": (3 * H * D,), "wo": (H * D, M), "wy": (M, 3)},
        SPLIT,
        rows={"w:1[1]": H, "w:1[2]": H},
    ),
    "MultiHeadAttention": Net(
        f"""q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        a = com.microsoft.MultiHeadAttention <num_heads = {H}, scale = 0.3> (q, k, v)
        z = MatMul(a, wo) n = Relu(z) y = MatMul(n, wy)""",
        {"wq": (M, 32), "wk": (M, 32), "wv": (M, 32), "wo": (32, M), "wy": (M, 3)},
        rows={"wq:1[1]": H, "wv:1[1]": H},
    ),
    "Einsum": Net(
        """q = Einsum <equation = "bsm,mhd->bshd"> (x, wq)
        k = Einsum <equation = "bsm,mhd->bshd"> (x, wk)
        v = Einsum <equation = "bsm,mhd->bshd"> (x, wv)
        s = Einsum <equation = "bshd,bthd->bhst"> (q, k) a = Softmax(s)
        o = Einsum <equation = "bhst,bthd->bshd"> (a, v)
        z = Einsum <equation = "bshd,hdm->bsm"> (o, wo) n = Relu(z) y = MatMul(n, wy)""",
        {"wq": (M, H, D), "wk": (M, H, D), "wv": (M, H, D), "wo": (H, D, M), "wy": (M, 3)},
        rows={"wq:2": H, "wv:2": H},
    ),
    "kv heads that two query heads read": Net(
        """p = MatMul(x, wq) g = Reshape(p, split) q = Transpose <perm = [0, 2, 1, 3]> (g)
        i = MatMul(x, wk) j = Reshape(i, kv) l = Transpose <perm = [0, 2, 1, 3]> (j)
        m = Unsqueeze(l, two) e = Expand(m, wide) k = Reshape(e, heads)
        kt = Transpose <perm = [0, 1, 3, 2]> (k)
        f = MatMul(x, wv) h = Reshape(f, kv) t = Transpose <perm = [0, 2, 1, 3]> (h)
        c = Unsqueeze(t, two) d = Expand(c, wide) v = Reshape(d, heads)
        s = MatMul(q, kt) a = Softmax(s) o = MatMul(a, v) u = Transpose <perm = [0, 2, 1, 3]> (o)
        r = Reshape(u, joined) z = MatMul(r, wo) n = Relu(z) y = MatMul(n, wy)""",
        {"wq": (M, H * D), "wk": (M, 2 * D), "wv": (M, 2 * D), "wo": (H * D, M), "wy": (M, 3)},
        {"kv": [B, S, 2, D], "two": [2], "wide": [B, 2, 2, S, D], "heads": [B, H, S, D]} | SPLIT,
        rows={"wq:1[1]": 2, "wq:1[2]": 2, "wv:1[1]": 2},
    ),
    "angles for all heads": _attending(
        *_twice(HALVES),
        weights={"sin": (S, D), "cos": (S, D)},
        ints={"zero": [0], "three": [3], "six": [6]},
        rows=V_ALONE,
    ),
    "a scale for all heads": _attending("q = Mul(tq, dims)", weights={"dims": (D,)}, rows=V_ALONE),
    "a computed scale for all heads": _attending(
        "i = MatMul(x, wi) j0 = Unsqueeze(i, one) q = Mul(tq, j0)",
        weights={"wi": (M, D)},
        ints={"one": [1]},
        rows=V_ALONE,
    ),
    "norms of heads": _attending(
        *_twice("$ = LayerNormalization(t$, g$)"),
        weights={"gq": (D,), "gk": (D,)},
        rows=V_ALONE,
    ),
    "a sum over heads": _attending(
        of_v="e = ReduceMax <axes = [1], keepdims = 1> (tv) v = Add(tv, e)",
        rows={"wq:1[1]": H},
        refused={"wv:1[1]": LACKING},
    ),
    "a mean over heads beside the heads": _attending(
        of_q="e = ReduceMean <axes = [1], keepdims = 1> (tq) q = Add(tq, e)",
        rows=V_ALONE,
        refused={"wq:1[1]": LACKING},
    ),
    "scores summed over heads": Net(
        """p = MatMul(x, wq) g = Reshape(p, split) k = MatMul(x, wk) l = Reshape(k, split)
        q = Transpose <perm = [0, 2, 1, 3]> (g) t = Transpose <perm = [0, 2, 3, 1]> (l)
        s = MatMul(q, t) e = ReduceSum <keepdims = 0> (s, one) y = MatMul(e, wy)""",
        {"wq": (M, H * D), "wk": (M, H * D), "wy": (S, 3)},
        SPLIT | {"one": [1]},
        rows={"wq:1[1]": H},
    ),
    "a largest entry of each head": Net(
        """p = MatMul(x, w) r = Reshape(p, split) e = ReduceMax <axes = [3], keepdims = 1> (r)
        q = Add(r, e) j = Reshape(q, joined) y = MatMul(j, wo)""",
        {"w": (M, H * D), "wo": (H * D, 3)},
        SPLIT,
    ),
    "a softmax over heads": _attending(
        of_v="v = Softmax <axis = 1> (tv)",
        rows={"wq:1[1]": H},
        refused={"wv:1[1]": "it combines the rows"},
    ),
    "running sums over heads": _attending(
        of_v="v = CumSum(tv, one)",
        ints={"one": [1]},
        rows={"wq:1[1]": H},
        refused={"wv:1[1]": "it combines the rows"},
    ),
    "dims outside heads in between": Net(
        """p = MatMul(x, w) r = Reshape(p, split) t = Transpose <perm = [0, 1, 3, 2]> (r)
        j = Reshape(t, joined) i = Reshape(j, turned) u = Transpose <perm = [0, 1, 3, 2]> (i)
        n = Relu(u) k = Reshape(n, joined) y = MatMul(k, wo)""",
        {"w": (M, H * D), "wo": (H * D, 3)},
        SPLIT | {"turned": [B, S, D, H]},
        refused={"w:1[1]": LACKING},
    ),
    "dims of two kinds on one axis": Net(
        """p = MatMul(x, w) r = Reshape(p, split) n = Relu(r) l = Reshape(n, joined)
        f = Reshape(l, five) m = Mul(f, scale) j = Reshape(m, joined) y = MatMul(j, wo)""",
        {"w": (M, H * D * 2), "scale": (H, D, 1), "wo": (H * D * 2, 3)},
        {"split": [B, S, H, D * 2], "five": [B, S, H, D, 2], "joined": [0, 0, -1]},
        rows={"w:1[2]": D},
    ),
    "parts and heads on one axis": Net(
        """p = MatMul(x, w) r = Reshape(p, split) a = Add(r, b) f = Reshape(a, five)
        i, j = Split <axis = 2> (f) m = Mul(i, j) k = Reshape(m, joined) y = MatMul(k, wo)""",
        {"w": (M, 2 * H * D), "b": (2 * H, D), "wo": (H * D, 3)},
        {"split": [B, S, 2 * H, D], "five": [B, S, 2, H, D], "joined": [0, 0, -1]},
        rows={"w:1[1]": H},
    ),
    "heads in a dynamic batch": Net(
        """p = MatMul(x, w) r = Reshape(p, split) t = Transpose <perm = [0, 2, 1, 3]> (r)
        f = Reshape(t, folded) n = Relu(f) u = Reshape(n, apart)
        v = Transpose <perm = [0, 2, 1, 3]> (u) j = Reshape(v, joined) y = MatMul(j, wo)""",
        {"w": (M, H * D), "wo": (H * D, 3)},
        {"split": [0, 0, H, D], "folded": [-1, S, D], "apart": [-1, H, S, D], "joined": [0, 0, -1]},
        refused={"w:1[1]": balance.DYNAMIC},
        signature=f"(float[N,{S},{M}] x) => (float[N,{S},3] y)",
    ),
    "three factors on one axis": Net(
        """p = MatMul(x, w) r = Reshape(p, split) n = Relu(r) m = Mul(n, scale)
        j = Reshape(m, joined) y = MatMul(j, wo)""",
        {"w": (M, 24), "scale": (2, 3, 4), "wo": (24, 3)},
        {"split": [B, S, 2, 3, 4], "joined": [0, 0, -1]},
        rows={"w:1[1]": 2, "w:1[2]": 2},
    ),
    "three factors on axes of their own": Net(
        """e = Einsum <equation = "bsm,mcde->bscde"> (x, w) n = Relu(e)
        y = Einsum <equation = "bscde,cdem->bsm"> (n, wo)""",
        {"w": (M, 3, 6, 4), "wo": (3, 6, 4, 3)},
        rows={"w:1": 6, "w:3": 6},
    ),
    "heads in turn": _attending(
        of_v="v = Gather <axis = 1> (tv, turn)",
        ints={"turn": [1, 2, 3, 0]},
        rows={"wq:1[1]": H},
        refused={"wv:1[1]": ALONE},
    ),
    "dims outside heads": Net(
        """p = MatMul(x, w) r = Reshape(p, split) t = Transpose <perm = [0, 1, 3, 2]> (r)
        j = Reshape(t, joined) y = MatMul(j, wo)""",
        {"w": (M, H * D), "wo": (H * D, 3)},
        SPLIT,
    ),
    "recurrent gates": Net(
        """h = Transpose <perm = [1, 0, 2]> (x) o, l = LSTM <hidden_size = 6> (h, w, r)
        f = Squeeze(o, one) g = Transpose <perm = [1, 0, 2]> (f) y = MatMul(g, wy)""",
        {"w": (1, 24, M), "r": (1, 24, 6), "wy": (6, 3)},
        {"one": [1]},
    ),
}
