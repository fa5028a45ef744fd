"""The door to the benchmark on images: see ``python examples/images.py --help``."""

from images.__main__ import main  # the package of this name: an import prefers it

if __name__ == "__main__":
    main()
