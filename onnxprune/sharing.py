"""Weights that several layers share: one fit for all uses, from the sum of their moments.

Weights of heads that run on each level of a pyramid, or of a block that is run several times, can't
be fitted one layer after the other: a change for one use changes the others. They are fitted after
all other layers, in one more pass, each to what its uses miss together; all of them at the same
time, so that what they read is not what they will read. The end check of recovery sees to that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from onnxprune.gathering import Gathered
from onnxprune.linear import Linear
from onnxprune.refit import SHARED, Refit, claims
from onnxprune.results import Layer
from onnxprune.runtime import Feeds


def shared_weights(work: Refit) -> dict[str, list[Linear]]:
    """The parameters that are the weights of several layers, and nothing else, with these."""
    found: dict[str, list[Linear]] = defaultdict(list)
    for linear in work.linears():
        if work.refusal(linear) == SHARED:
            found[linear.node.inputs[linear.weight]].append(linear)
    return {
        name: own
        for name, own in found.items()
        if len(own) == work.uses[name]
        and len({_form(linear) for linear in own}) == 1
        and all(work.uses[x] == 1 for x in own[0].root.through[1:])
    }


def _form(linear: Linear) -> object:
    """What makes a weight the same matrix."""
    return linear.node.op, linear.w, linear.batch, linear.inner, linear.outer


def fit_shared(
    work: Refit, shared: Mapping[str, Sequence[Linear]], feeds: Sequence[Feeds]
) -> dict[str, Layer]:
    """Fit them, and let the pruned model start again with the new values.

    Args:
        work: a run that is through.
        shared: the layers of each weight.
        feeds: the inputs of that run.

    Returns:
        by node what was done, for all uses alike.
    """
    work.original.restart(feeds)
    work.pruned.restart(feeds)
    names = {linear.node.key: name for name, own in shared.items() for linear in own}
    sums: dict[str, Gathered] = {}
    for fitted, branch in work.found():
        node = fitted.node
        if isinstance(fitted, Linear) and node.key in names:
            place = work.pruned.index[node.key]
            work.pruned.advance(place)
            work.reach(node.outputs[0])
            own = work.gathered(fitted, None, work.pruned.nodes[place], None)
            known = sums.setdefault(names[node.key], own)
            if known is not own:
                known.join(own)
        work.done(claims(fitted, branch))
    told = {}
    for name, own in sums.items():
        for linear in shared[name]:
            found = own.fitted(linear)
            if found is not None:
                told[linear.node.label] = found.layer
                if found.weight is not None:
                    work.put(linear.node, linear.weight, found.weight)
    work.pruned.restart(feeds)
    return told
