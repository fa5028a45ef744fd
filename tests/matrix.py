"""The matrix of laws, ways of running and transforms: its cells as tests, and how many run."""

from collections import Counter
from fnmatch import fnmatchcase

import pytest

from flowplug.testing import LAWS, WAYS, Case, check_cell
from known import KNOWN

# Laws that draw hundreds of times or train.
DEAR = {
    "value of the ladj",
    "gradient of the ladj",
    "second derivatives",
    "evaluation noise",
    "Lipschitz bound",
    "written weights",
    "honest certificate",
}


def cells(table, typical):
    """The cells of a table that are not exempt, as parameters ``(name, law, way)``; a first run leaves out slow ones.

    Rows that are not ``typical`` are in ways other than eager held to the law of the same numbers, which carries the
    others over, and to those that a state made by the way might break; they are not compiled, at ten seconds a row.
    """
    found = []
    for name, row in table.items():
        for way in WAYS:
            for law in LAWS:
                if not left_out(row, law, way) and (way == "eager" or name in typical or is_wide(law, way)):
                    quick = way == "eager" and (name in typical or law not in DEAR)
                    quick |= name in typical and way != "compiled" and law == "same numbers"
                    marks = [pytest.mark.slow] * (not quick)
                    marks += [pytest.mark.xfail(strict=False, reason=why) for why in known(name, law, way)]
                    found.append(pytest.param(name, law, way, marks=marks))
    return found


def is_wide(law, way):
    """Whether all rows are held to this law in a way other than eager."""
    if way == "compiled":
        return False
    return law == "same numbers" or (law == "round trip" and way in {"averaged", "averaged with buffers"})


def left_out(row, law, way):
    """Why a cell is empty for what the table, the law or the way says: nothing that has to be tried."""
    for reason, patterns in row.exempt.items():
        if any(fnmatchcase(law, p) or fnmatchcase(f"{law} / {way}", p) for p in patterns):
            return f"exempt: {reason}"
    return LAWS[law].left_out_of(WAYS[way])


def known(name, law, way):
    """Faults that are being mended."""
    return [why for why, patterns in KNOWN.items() if any(fnmatchcase(f"{name} / {law} / {way}", p) for p in patterns)]


def laws_of(name, exempt=()):
    """The laws, as parameters, of a transform like this one of the table, run eagerly."""
    marks = {law: [pytest.mark.xfail(strict=False, reason=why) for why in known(name, law, "eager")] for law in LAWS}
    return [pytest.param(law, marks=marks[law]) for law in LAWS if law not in exempt]


def check(row, law, way="eager"):
    """Checks a cell; what turns out to be empty is skipped with its reason."""
    reason = check_cell(law, way, Case(row.make, *row.inputs()))
    if reason is not None:
        pytest.skip(reason)


def print_summary(title, table):
    """Counts the cells, and the reasons of the empty ones."""
    counts = Counter(left_out(row, law, way) or "" for row in table.values() for law in LAWS for way in WAYS)
    total = counts.total()
    assert total == len(table) * len(LAWS) * len(WAYS)
    print(f"\n{title}: {len(LAWS)} laws x {len(WAYS)} ways x {len(table)} transforms = {total} cells")
    print(f"{counts.pop('')} to check")
    for reason, count in counts.most_common():
        print(f"{count} empty: {reason}")
        assert reason
