"""An installed wheel is tested with the README alone, where there are no pages to hold to laws."""

from snippets import ROOT

collect_ignore = [] if (ROOT / "docs").is_dir() else ["test_extend.py", "test_release.py"]
