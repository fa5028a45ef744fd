"""Means over seeds, and paired differences: of what several runs say of the same images."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from common.paired import estimate
from common.report import markdown
from common.runs import Config, Line, log_likelihoods

# Of a line and what its run says of each test image, one number for each image, by the name it has in tables.
Quantities = Mapping[str, Callable[[Line, Tensor], Tensor]]
Seeds = dict[int, Tensor]


def summary(
    lines: Sequence[Line], out: Path, quantities: Quantities, group: Callable[[Config], str] = lambda _: ""
) -> str:
    """A Markdown table: a row for each model, with errors of images and seeds together.

    Args:
        lines: The runs.
        out: Where they are.
        quantities: The columns.
        group: What runs have in common with those they are compared with: the first model of each group.
    """
    runs: dict[tuple[str, str], dict[str, list[Line]]] = {}
    for line in lines:
        config = line["config"]
        runs.setdefault((config["data"], group(config)), {}).setdefault(config["model"], []).append(line)
    columns = [title for name in quantities for title in (f"{name} ± 2 s.e.", "difference ± 2 s.e.")]
    rows = list[list[object]]()
    for (data, _), models in runs.items():
        first: dict[str, Seeds] = {}
        for model, own in models.items():
            cells = list[str]()
            for name, quantity in quantities.items():
                values = by_seed(own, out, quantity)
                others = first.setdefault(name, values)
                differences = [value - others[seed] for seed, value in values.items() if seed in others]
                cells += [estimate(list(values.values())), "" if others is values else estimate(differences, "+")]
            rows.append([data, model, " ".join(str(line["config"]["seed"]) for line in own), *cells])
    return markdown(["data", "model", "seeds", *columns], rows)


def by_seed(lines: Sequence[Line], out: Path, quantity: Callable[[Line, Tensor], Tensor]) -> Seeds:
    """A number for each image, of each seed whose run ended well."""
    found = {line["config"]["seed"]: (line, log_likelihoods(line["config"], out)) for line in lines}
    return {
        seed: quantity(line, values)
        for seed, (line, values) in found.items()
        if "failed" not in line and values is not None
    }
