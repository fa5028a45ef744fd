"""Laws of the two directions: round trips, and derivatives that reach everything and cancel."""

import torch

from flowplug._errors import NotConverged
from flowplug.testing._case import Case, directions, inner, leaves, whole
from flowplug.testing._comparison import require, require_close


def inverts(case: Case) -> None:
    """``inverse(forward(x)) = x`` and ``forward(inverse(y)) = y`` to rounding, or `NotConverged`."""
    for training in (True, False):
        transform = case.build(training=training)
        for there, back, x in ((transform, transform.inverse, case.x), (transform.inverse, transform, case.y)):
            with torch.no_grad():
                try:
                    z = back(there(x, case.context)[0], case.context)[0]
                except NotConverged:
                    continue
            require_close("round trip", z, x, units=100)


def inverts_ladj(case: Case) -> None:
    """In eval mode outputs and ladjs repeat, and the ladj of the inverse is minus that of forward."""
    transform = case.build(training=False)
    with torch.no_grad():
        y, ladj = transform(case.x, case.context)
        again = transform(case.x, case.context)
        inverse_ladj = transform.inverse(y, case.context)[1]
    require(torch.equal(y, again[0]) and torch.equal(ladj, again[1]), "two calls in eval mode disagree")
    require_close("ladj of the inverse", inverse_ladj, -ladj)


def reaches_every_parameter(case: Case) -> None:
    """Every parameter, the input and the context get a finite gradient, forward and through the inverse."""
    transform = case.build(training=True)
    for _, direction, inputs, _ in directions(case, transform):
        transform.zero_grad(set_to_none=True)
        x, context = leaves(case, inputs)
        output, ladj = direction(x, context)
        torch.autograd.backward(output.square().sum() + ladj.sum())
        named = {**dict(inner(transform).named_parameters()), "the input": x}
        for name, leaf in named.items() if context is None else {**named, "the context": context}.items():
            require(leaf.grad is not None, f"{name} got no gradient")
            gradient = whole(leaf.grad)
            require(bool(gradient.isfinite().all()), f"the gradient of {name} is not finite")
            require(name != "the context" or bool(gradient.any()), "the output does not depend on the context")


def differentiates_the_inverse(case: Case) -> None:
    """``forward(inverse(y))`` is y, so its derivatives are those of the identity: the two maps' gradients cancel."""
    transform = case.build(training=False)
    transform.zero_grad(set_to_none=True)
    y, context = leaves(case, case.y)
    x, inverse_ladj = transform.inverse(y, context)
    output, ladj = transform(x, context)
    weights = torch.randn_like(y)
    torch.autograd.backward((weights * output).sum() + (ladj + inverse_ladj).sum())
    by = [y, *inner(transform).parameters(), *([] if context is None else [context])]
    wanted = [weights, *(whole(leaf.detach()).new_zeros(leaf.shape) for leaf in by[1:])]
    for leaf, gradient in zip(by, wanted, strict=True):
        if leaf.grad is not None:
            require_close("gradient of forward(inverse(y))", whole(leaf.grad), gradient, units=10_000)
