"""What is in a built source distribution and wheel, and what the wheel says of itself.

python .ci/contents.py FOLDER
"""

import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

PACKAGES = {"flowplug", "flowplug_nflows", "flowplug_normflows", "flowplug_zuko"}
SOURCES = {
    "flowplug", "adapters", "docs", "examples", "tests", "constraints.txt", "pyproject.toml", "PKG-INFO", ".gitignore",
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md",
}  # fmt: skip
EXTRAS = {"all", "dev", "docs", "examples", "glasflow", "nflows", "normflows", "sbi", "test", "zuko"}
LARGEST = 1_000_000  # bytes of either file


def equal(found: set[str], wanted: set[str], what: str) -> None:
    """Ends the process where they differ."""
    if found != wanted:
        raise SystemExit(f"{what}: {sorted(found - wanted)} more, {sorted(wanted - found)} less than wanted")


folder = Path(sys.argv[1])
(source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
for path in (source, wheel):
    if path.stat().st_size > LARGEST:
        raise SystemExit(f"{path.name} has {path.stat().st_size:,} bytes, more than {LARGEST:,}")

with tarfile.open(source) as archive:
    files = [name.partition("/")[2] for name in archive.getnames()]
equal({name.partition("/")[0] for name in files}, SOURCES, source.name)
pictures = {name for name in files if name.endswith((".png", ".pyc"))}
equal(pictures, {"docs/_static/gains.png"}, f"pictures and caches of {source.name}")

with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
    (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    metadata = message_from_bytes(archive.read(f"{info}/METADATA"))
equal({name.partition("/")[0] for name in names} - {info}, PACKAGES, wheel.name)
equal({name for name in names if name.endswith("py.typed")}, {f"{name}/py.typed" for name in PACKAGES}, "py.typed")
equal({name for name in names if "/licenses/" in name}, {f"{info}/licenses/LICENSE"}, "licenses")
equal(set(metadata.get_all("License-File", [])), {"LICENSE"}, "License-File")
equal({metadata["License-Expression"], metadata["Author"]}, {"MIT", "The flowplug developers"}, "license and authors")
equal(set(metadata.get_all("Provides-Extra", [])), EXTRAS, "extras")
needed = {line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
equal(needed, {"torch>=2.4", "numpy"}, "Requires-Dist")
print(f"{source.name}: {source.stat().st_size:,} bytes; {wheel.name}: {wheel.stat().st_size:,} bytes")
