"""The door to the UCI density benchmark: see ``python examples/uci.py --help``."""

from uci.__main__ import main  # the package of this name: an import prefers it

if __name__ == "__main__":
    main()
