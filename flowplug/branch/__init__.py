"""The contract of a residual branch g: what is asked of it in a pass, and the bound that makes it a contraction."""

from flowplug.branch._bound import LipschitzBound as LipschitzBound
from flowplug.branch._bound import NormDependent as NormDependent
from flowplug.branch._bound import bound_in as bound_in
from flowplug.branch._bound import compose_bounds as compose_bounds
from flowplug.branch._bound import dual_order as dual_order
from flowplug.branch._bound import lipschitz_bound as lipschitz_bound
from flowplug.branch._bound import on_meta as on_meta
from flowplug.branch._bound import require_contraction as require_contraction
from flowplug.branch._bound import rule_for as rule_for
from flowplug.branch._branch import Branch as Branch
from flowplug.branch._branch import BranchModule as BranchModule
from flowplug.branch._branch import Linearization as Linearization
from flowplug.branch._parts import require_plain as require_plain
from flowplug.branch._torch_rules import SWISH_SLOPE as SWISH_SLOPE
from flowplug.branch._watch import Watch as Watch
