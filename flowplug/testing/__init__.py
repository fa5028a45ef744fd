"""The conformance harness: laws every invertible transform obeys, in every way of running it.

Works for flowplug transforms, for their adapters, and for your own: anything with ``forward(x, context)`` and
``inverse(y, context)`` that return (output, ladj). Needs torch only.
"""

from flowplug.testing._case import Case as Case
from flowplug.testing._case import InWay as InWay
from flowplug.testing._case import Way as Way
from flowplug.testing._check import check_cell as check_cell
from flowplug.testing._check import check_transform as check_transform
from flowplug.testing._comparison import ConformanceError as ConformanceError
from flowplug.testing._comparison import z_test as z_test
from flowplug.testing._laws import LAWS as LAWS
from flowplug.testing._laws import Law as Law
from flowplug.testing._ways import WAYS as WAYS
