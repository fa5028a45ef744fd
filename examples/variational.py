"""The door to the study of variational sampling: see ``python examples/variational.py --help``."""

from variational.__main__ import main  # the package of this name: an import prefers it

if __name__ == "__main__":
    main()
