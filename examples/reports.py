"""Tables, summaries and pictures of results, anew from their JSON lines; of the benchmarks their page.

Of each folder table.md, summary.md and gains.png come from results.jsonl and rows.jsonl. Where there is no rows.jsonl,
as in results of before, the summary stays as it is, for the rows that its gains are of are gone.

    python examples/reports.py                                   # of every study in examples/results
    python examples/reports.py --folders examples/results/equal_time
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anomalies.report
import posteriors.report
import uci.report
import variational.report
from benchmarks import page
from common.command import OptionError, parse
from common.provenance import ROOT
from common.report import read_lines, write_text
from common.rows import NAME
from common.study import Study

RESULTS = ROOT / "examples" / "results"


STUDIES = {  # by what its lines have, and no other's
    "auroc": anomalies.report.STUDY,
    "published": uci.report.STUDY,
    "reverse_kl": variational.report.STUDY,
    "test_log_q": posteriors.report.STUDY,
}


@dataclass(frozen=True)
class Options:
    """The command line; comments are its help."""

    folders: tuple[Path, ...] = ()  # of results, instead of all of them and the page of the benchmarks

    def __post_init__(self) -> None:
        for folder in self.folders:
            if study_of(folder) is None:
                raise OptionError(f"--folders {folder} holds no results.jsonl of {', '.join(sorted(STUDIES))}")


def study_of(folder: Path) -> Study | None:
    """The study that wrote a folder."""
    lines = read_lines(folder / "results.jsonl")
    return next((study for key, study in STUDIES.items() if any(key in line for line in lines)), None)


def again(folder: Path, study: Study) -> str:
    """Writes what follows from the lines of a folder; returns what that is."""
    lines = read_lines(folder / "results.jsonl")
    if (folder / NAME).exists() or not study.rows:
        return study.report(lines, folder).splitlines()[-1]
    write_text(folder / "table.md", f"{study.table(lines)}\n")
    return f"written to {folder}: table.md{', gains.png' if study.draw(folder) else ''}; {NAME} is not there"


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes all that the command line asks for."""
    options = parse(Options, arguments, description=__doc__)
    folders = options.folders or tuple(path.parent for path in sorted(RESULTS.rglob("results.jsonl")))
    for folder in folders:
        study = study_of(folder)
        if study is not None:
            print(again(folder, study))
    if not options.folders:
        page.main()


if __name__ == "__main__":
    main()
