"""Rows of recurrent layers: torch's kernels where they say the same, else one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from onnxprune.torch_bridge.at import At, Made, Tensor, optional
from onnxprune.torch_bridge.lazy import F, torch

# What activations need: their function, and the defaults of alpha and beta.
_FUNCTIONS: Final[dict[str, Callable[[Tensor, float, float], Tensor]]] = {
    "affine": lambda x, a, b: a * x + b,
    "elu": lambda x, a, b: F.elu(x, a),
    "hardsigmoid": lambda x, a, b: torch.clamp(a * x + b, 0, 1),
    "leakyrelu": lambda x, a, b: F.leaky_relu(x, a),
    "relu": lambda x, a, b: torch.relu(x),
    "scaledtanh": lambda x, a, b: a * torch.tanh(b * x),
    "sigmoid": lambda x, a, b: torch.sigmoid(x),
    "softplus": lambda x, a, b: F.softplus(x),
    "softsign": lambda x, a, b: F.softsign(x),
    "tanh": lambda x, a, b: torch.tanh(x),
    "thresholdedrelu": lambda x, a, b: torch.where(x > a, x, torch.zeros_like(x)),
}
_ALPHA: Final = {"affine": 1.0, "elu": 1.0, "hardsigmoid": 0.2, "leakyrelu": 0.01}
_BETA: Final = {"hardsigmoid": 0.5}

Cell = Callable[..., tuple[Tensor, ...]]


def _activations(at: At, defaults: Sequence[str]) -> list[Callable[[Tensor], Tensor]]:
    """One function for each gate and direction."""
    directions = 2 if at("direction", "forward") == "bidirectional" else 1
    names = [n.lower() for n in (at("activations") or list(defaults) * directions)]
    alphas, betas = list(at("activation_alpha") or ()), list(at("activation_beta") or ())
    found: list[Callable[[Tensor], Tensor]] = []
    for name in names:
        own = _FUNCTIONS[name]
        alpha = alphas.pop(0) if alphas and name in _ALPHA else _ALPHA.get(name, 1.0)
        beta = betas.pop(0) if betas and name in _BETA else _BETA.get(name, 1.0)
        found.append(lambda x, own=own, a=alpha, b=beta: own(x, a, b))  # type: ignore[misc]
    return found


def _lstm_cell(at: At, f: Sequence[Any], w: Tensor, r: Tensor, b: Tensor, p: Tensor) -> Cell:
    pi, po, pf = p.chunk(3)

    def step(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        i, o, g, n = (x @ w.t() + h @ r.t() + b).chunk(4, -1)
        i = f[0](i + pi * c)
        g = 1 - i if at("input_forget", 0) else f[0](g + pf * c)
        c = g * c + i * f[1](n)
        return f[0](o + po * c) * f[2](c), c

    return step


def _gru_cell(at: At, f: Sequence[Any], w: Tensor, r: Tensor, b: Tensor, own: Tensor) -> Cell:
    hidden = r.shape[1]
    wz, wh = w.split([2 * hidden, hidden])
    rz, rh = r.split([2 * hidden, hidden])
    bz, bw, br = b[: 2 * hidden] + own[: 2 * hidden], b[2 * hidden :], own[2 * hidden :]

    def step(x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        z, s = f[0](x @ wz.t() + h @ rz.t() + bz).chunk(2, -1)
        if at("linear_before_reset", 0):
            n = f[1](x @ wh.t() + bw + s * (h @ rh.t() + br))
        else:
            n = f[1](x @ wh.t() + bw + (s * h) @ rh.t() + br)
        return ((1 - z) * n + z * h,)

    return step


def _rnn_cell(at: At, f: Sequence[Any], w: Tensor, r: Tensor, b: Tensor) -> Cell:
    return lambda x, h: (f[0](x @ w.t() + h @ r.t() + b),)


def _run(
    cell: Cell, x: Tensor, states: Sequence[Tensor], lengths: Tensor | None, back: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All steps of one direction: outputs (steps, batch, hidden) and the last states."""
    steps, own = x.shape[0], tuple(states)
    outputs: list[Tensor] = [x.new_zeros(0)] * steps
    for t in reversed(range(steps)) if back else range(steps):
        new = cell(x[t], *own)
        if lengths is None:
            own, outputs[t] = new, new[0]
            continue
        live = (t < lengths)[:, None]
        outputs[t] = torch.where(live, new[0], torch.zeros_like(new[0]))
        own = tuple(torch.where(live, n, o) for n, o in zip(new, own, strict=True))
    return torch.stack(outputs), own


def _recurrent(gates: int, defaults: Sequence[str], cells: int) -> Any:
    """The row of a layer with so many gates and kinds of state."""

    def row(at: At, x: Tensor, w: Tensor, r: Tensor, *rest: Tensor | None) -> Made:
        if at("clip"):
            raise at.refuse("the attribute clip")
        b, lengths, h, c, p = optional(rest, 5)
        hidden, directions = r.shape[-1], w.shape[0]
        outer = bool(at("layout", 0))
        x = x.transpose(0, 1) if outer else x
        shape = (directions, x.shape[1], hidden)
        starts = [
            x.new_zeros(shape) if s is None else s.transpose(0, 1) if outer else s
            for s in (h, c)[:cells]
        ]
        b = x.new_zeros(directions, 2 * gates * hidden) if b is None else b
        plain = lengths is None and p is None and not at("activations")
        fast = _fast(at, gates) if plain and not at("input_forget", 0) else None
        if fast is not None:
            y, ends = _kernel(at, fast, x, (w, r, b), starts)
        else:
            p = x.new_zeros(directions, 3 * hidden) if p is None else p
            y, ends = _stepwise(at, defaults, x, (w, r, b, p), starts, lengths)
        if outer:
            y, ends = y.permute(2, 0, 1, 3), [e.transpose(0, 1) for e in ends]
        return (y, *ends)[: at.results]

    return row


def _stepwise(
    at: At,
    defaults: Sequence[str],
    x: Tensor,
    weights: tuple[Tensor, ...],
    starts: Sequence[Tensor],
    lengths: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    """Both directions, step by step."""
    functions, each = _activations(at, defaults), len(defaults)
    w, r, b, p = weights
    outputs, ends = [], []
    for d in range(w.shape[0]):
        f, (bw, br) = functions[d * each : (d + 1) * each], b[d].chunk(2)
        if len(starts) == 2:
            cell = _lstm_cell(at, f, w[d], r[d], bw + br, p[d])
        elif each == 2:
            cell = _gru_cell(at, f, w[d], r[d], bw, br)
        else:
            cell = _rnn_cell(at, f, w[d], r[d], bw + br)
        back = at("direction", "forward") == "reverse" or d == 1
        y, last = _run(cell, x, [s[d] for s in starts], lengths, back)
        outputs.append(y)
        ends.append(last)
    return torch.stack(outputs, 1), [torch.stack(e) for e in zip(*ends, strict=True)]


def _fast(at: At, gates: int) -> str | None:
    """torch's kernel that says the same."""
    if gates == 3:
        return "gru" if at("linear_before_reset", 0) else None
    return {4: "lstm", 1: "rnn_tanh"}[gates]


def _kernel(
    at: At, name: str, x: Tensor, weights: tuple[Tensor, ...], starts: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """torch's own layer: its gates stand in another order."""
    w, r, b = weights
    order = {"lstm": (0, 2, 3, 1), "gru": (1, 0, 2), "rnn_tanh": (0,)}[name]
    back = at("direction", "forward") == "reverse"

    def ordered(v: Tensor) -> Tensor:
        parts = v.chunk(len(order))
        return torch.cat([parts[i] for i in order])

    flat = []
    for d in range(w.shape[0]):
        flat += [ordered(w[d]), ordered(r[d]), *(ordered(v) for v in b[d].chunk(2))]
    given = x.flip(0) if back else x
    states: Any = tuple(s.contiguous() for s in starts)
    hidden = states if name == "lstm" else states[0]
    how = (True, 1, 0.0, at.mode.training, w.shape[0] == 2, False)
    y, *ends = getattr(torch, name)(given, hidden, flat, *how)
    y = y.reshape(*y.shape[:2], w.shape[0], -1).transpose(1, 2)
    return (y.flip(0) if back else y), ends


ROWS: Final[dict[str, Any]] = {
    "GRU": _recurrent(3, ("sigmoid", "tanh"), 1),
    "LSTM": _recurrent(4, ("sigmoid", "tanh", "tanh"), 2),
    "RNN": _recurrent(1, ("tanh",), 1),
}
