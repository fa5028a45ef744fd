"""The door to the study of posterior estimation in sbi: see ``python examples/posteriors.py --help``."""

from posteriors.__main__ import main  # the package of this name: an import prefers it

if __name__ == "__main__":
    main()
