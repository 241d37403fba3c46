"""Let the documentation's API pages link what docstrings name in reStructuredText's way.

mkdocstrings reads Markdown; a role such as ``:func:`wrap``` becomes its cross-reference.
"""

import re

import griffe

ROLE = re.compile(r":(?:class|func|meth):`([\w.]+)`")


class DocstringRoles(griffe.Extension):
    """Rewrites the roles in every docstring; mkdocs.yml names this file."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Called by griffe once for each loaded object."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"[`\1`][\1]", obj.docstring.value)
