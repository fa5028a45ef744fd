"""All laws by name, with what each needs of a way of running."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flowplug.testing import _bound, _inverse, _ladj, _protocol, _state
from flowplug.testing._case import EAGER, Case, Way


@dataclass(frozen=True)
class Law:
    """A law, which is called with a `Case` and raises `ConformanceError`.

    Attributes:
        check: The function; its docstring states the law.
        needs: What a way of running must have, of "gradients", "two derivatives", "autograd.grad", "precision",
            "copies", "batches", "casts", "memory", "cheap".
        only_eager: The reason why the law is checked eagerly only, or nothing.
        applies: Whether there is anything to check, and the reason to give where there is not.
    """

    check: Callable[[Case], None]
    needs: tuple[str, ...] = ()
    only_eager: str = ""
    applies: tuple[Callable[[Case], bool], str] | None = None

    def __call__(self, case: Case) -> None:
        """Checks the law."""
        self.check(case)

    def left_out_of(self, way: Way) -> str | None:
        """The reason why the law is not checked in a way, whatever the transform."""
        if way is not EAGER and self.only_eager:
            return self.only_eager
        return next((way.lacks[need] for need in self.needs if need in way.lacks), None)


_CARRIED = "the law of the same numbers carries it over to other ways"
_NOT_RUN = "it is about how a transform is made, not how it is run"
_ORACLE = ("cheap", "gradients", "precision", "autograd.grad")
_STATE = (_state.has_state, "it has no state")
_STARTS = (_state.starts_from_data, "it does not start from data")
_PARTS_START = (_state.has_part_that_starts, "no part of flowplug inside starts from data")
_BOUNDED = (_bound.has_a_bound, "no residual transform is inside")

LAWS: dict[str, Law] = {
    "shape and dtype": Law(_protocol.keeps_shape_and_dtype, ("cheap", "batches", "casts")),
    "inputs left alone": Law(_protocol.leaves_inputs_alone, ("cheap", "memory")),
    "layouts": Law(_protocol.takes_any_layout, ("cheap", "batches", "precision")),
    "scales": Law(_protocol.takes_any_scale, ("cheap", "precision")),
    "round trip": Law(_inverse.inverts, ("cheap", "precision")),
    "ladj of the inverse": Law(_inverse.inverts_ladj, ("cheap", "precision")),
    "every parameter": Law(_inverse.reaches_every_parameter, ("cheap", "gradients")),
    "derivative of the inverse": Law(_inverse.differentiates_the_inverse, ("cheap", "gradients", "precision")),
    "fixed noise": Law(_ladj.repeats_noise, ("cheap", "gradients", "precision")),
    "same numbers": Law(_state.runs_as_eagerly),
    "value of the ladj": Law(_ladj.estimates_ladj, _ORACLE),
    "gradient of the ladj": Law(_ladj.estimates_ladj_gradient, (*_ORACLE, "two derivatives")),
    "second derivatives": Law(_ladj.estimates_second_derivatives, only_eager=_CARRIED),
    "evaluation noise": Law(_ladj.cuts_no_noise, only_eager=_CARRIED),
    "rows by torch.func": Law(_ladj.maps_over_rows, only_eager=_CARRIED),
    "written weights": Law(_state.follows_written_weights, only_eager=_CARRIED, applies=_STATE),
    "start in any units": Law(_state.starts_in_any_unit, only_eager=_CARRIED, applies=_STARTS),
    "start from few rows": Law(_state.survives_a_small_start, only_eager=_CARRIED, applies=_STARTS),
    "start by name": Law(_state.starts_by_name, only_eager=_CARRIED, applies=_PARTS_START),
    "Lipschitz bound": Law(_bound.respects_its_bound, only_eager=_NOT_RUN, applies=_BOUNDED),
    "honest certificate": Law(_bound.covers_what_it_computes, only_eager=_NOT_RUN, applies=_BOUNDED),
    "saving and copying": Law(_protocol.saves_and_copies, ("cheap", "copies")),
    "unknown keywords": Law(_protocol.refuses_unknown_keywords, only_eager=_NOT_RUN),
}
