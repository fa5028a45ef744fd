"""The door to the study of anomalies: see ``python examples/anomalies.py --help``."""

from anomalies.__main__ import main  # the package of this name: an import prefers it

if __name__ == "__main__":
    main()
