"""Show the site's navigation at the left from 1140 px on, as wide as a small laptop's window.

The theme begins at 1220 px, in its styles and in its script; mkdocs.yml names this file as a hook.
"""

import logging
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig

THEIRS = re.compile(r"\b76\.(25|234375)em\b")
OURS = r"71.\1em"
LOG = logging.getLogger("mkdocs.hooks.site_width")


def on_post_build(config: MkDocsConfig) -> None:
    """Called by mkdocs after the site is written."""
    assets = Path(config.site_dir, "assets")
    for pattern in ("stylesheets/main.*.min.css", "javascripts/bundle.*.min.js"):
        changed = 0
        for file in assets.glob(pattern):
            text, found = THEIRS.subn(OURS, file.read_text(encoding="utf-8"))
            file.write_text(text, encoding="utf-8")
            changed += found
        if not changed:
            LOG.warning("%s: the theme has no longer a breakpoint of 76.25em", pattern)
