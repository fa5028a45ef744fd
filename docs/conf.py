"""How Sphinx makes the site: `sphinx-build -W -j auto docs site`."""

import re
from importlib.metadata import version as version_of

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.writers.html5 import HTML5Translator

project = "flowplug"
author = "The flowplug developers"
version = release = version_of("flowplug")
copyright = author

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosectionlabel",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["README.md"]
nitpicky = True

# Pages are Markdown; tutorials are notebooks in Markdown, and an error in a cell is an error of the build.
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
autosectionlabel_prefix_document = True
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
suppress_warnings = ["autosectionlabel.changelog", "autosectionlabel.results"]

# Docstrings name classes in single backticks.
default_role = "py:obj"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "exclude-members": "extra_repr"}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_use_ivar = True
nitpick_ignore_regex = [
    (r"py:.*", r"flowplug(_\w+)?\..*\b_\w+.*"),
    (r"py:.*", r"(torch|nn|nflows|contextlib|normflows|zuko|collections|typing|types|abc|math)\b.*"),
    (r"py:.*", r"(Tensor|Size|Module|Generator|device|dtype|load_state_dict)"),
    (r"py:.*", r"(Callable|Sequence|Iterable|Mapping|Any|Self|optional)"),
]

html_theme = "furo"
html_title = f"flowplug {version}"
html_static_path = ["_static"]
html_css_files = ["flowplug.css"]
html_theme_options = {"navigation_with_keys": True}
html_math_renderer = "mathml"
html_show_sphinx = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def mathml(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Formulas as MathML, which browsers show without a script, and so without a network."""
    block = isinstance(node, nodes.math_block)
    formula = convert(node.astext(), display="block" if block else "inline")
    translator.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def link_benchmarks(app: Sphinx, what: str, name: str, item: object, options: object, lines: list[str]) -> None:
    """Makes links of what docstrings say for readers without a browser: docs/benchmarks.md, "Round trips"."""
    text = re.sub(
        r'docs/benchmarks\.md,\s+"([^"]+)"',
        lambda match: f":ref:`{' '.join(match[1].split())} <benchmarks:{' '.join(match[1].split())}>`",
        "\n".join(lines),
    )
    lines[:] = text.split("\n")


def resolve_inherited(
    app: Sphinx, environment: BuildEnvironment, node: nodes.Element, content: nodes.Element
) -> nodes.reference | None:
    """Finds `start` of a `Whitening` where it is documented, at `Transform`; and `Whitening` from an adapter's page."""
    target, python = node.get("reftarget"), environment.get_domain("py")
    for name in (f"flowplug.Transform.{target}", f"flowplug.{target}"):
        if any(name == known for known, *_ in python.get_objects()):
            return python.resolve_xref(environment, node["refdoc"], app.builder, "obj", name, node, content)
    return None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", inline_renderers=(mathml, None), block_renderers=(mathml, None))
    app.connect("autodoc-process-docstring", link_benchmarks)
    app.connect("missing-reference", resolve_inherited)
