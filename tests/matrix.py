"""The matrix of laws, ways of running and transforms: its cells as tests, and how many run."""

from collections import Counter
from fnmatch import fnmatchcase

import pytest

from flowplug.testing import LAWS, WAYS, Case, check_cell

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


# The ways of running that depend most on how a transform is written, and on what it keeps.
REVEALING = {
    "autocast",
    "inference mode",
    "torch.func",
    "vmap",
    "another default device",
    "ensemble",
    "checkpointed",
    "FSDP",
    "averaged with buffers",
    "dtype there and back",
}


def cells(table, *, whole=(), typical=()):
    """The cells of a table that are checked, as parameters ``(name, law, way)``; a first run leaves out slow ones.

    All rows are held to all laws eagerly. In other ways the law of the same numbers carries them over: rows that stand
    for others, ``typical``, are held to it in all ways, and the rest in those that reveal most. Rows that are ``whole``
    are held to all laws in all ways.
    """
    found = []
    for name, row in table.items():
        chosen = name in whole or name in typical
        for way in WAYS:
            for law in LAWS:
                same = law == "same numbers" and (chosen or way in REVEALING)
                if not left_out(row, law, way) and (way == "eager" or name in whole or same):
                    quick = way == "eager" and (chosen or law not in DEAR)
                    quick |= chosen and way not in {"compiled", "anomaly mode"} and law == "same numbers"
                    marks = [pytest.mark.slow] * (not quick) + [pytest.mark.ways] * (way != "eager")
                    found.append(pytest.param(name, law, way, marks=marks))
    return found


def left_out(row, law, way):
    """Why a cell is empty for what the table, the law or the way says: nothing that has to be tried."""
    for reason, patterns in row.exempt.items():
        if any(fnmatchcase(law, p) or fnmatchcase(f"{law} / {way}", p) for p in patterns):
            return f"exempt: {reason}"
    return LAWS[law].left_out_of(WAYS[way])


def check(row, law, way="eager"):
    """Checks a cell; what turns out to be empty is skipped with its reason."""
    reason = check_cell(law, way, Case(row.make, *row.inputs(), support=row.support))
    if reason is not None:
        pytest.skip(reason)


def print_summary(title, table, **rows):
    """Counts the cells of a table, and the reasons of those that are not checked."""
    checked = {param.values for param in cells(table, **rows)}
    counts = Counter()
    for name, row in table.items():
        for law in LAWS:
            for way in WAYS:
                why = left_out(row, law, way) or "the same numbers there and all laws eagerly stand for it"
                counts["" if (name, law, way) in checked else why] += 1
    total = counts.total()
    assert total == len(table) * len(LAWS) * len(WAYS)
    assert counts[""] == len(checked)
    print(f"\n{title}: {len(LAWS)} laws x {len(WAYS)} ways x {len(table)} transforms = {total} cells")
    print(f"{counts.pop('')} are checked")
    for reason, count in counts.most_common():
        print(f"{count} are not: {reason}")
