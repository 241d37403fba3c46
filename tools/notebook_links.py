"""Let tutorials link pages by their files, as the other pages do, and warn where there is none.

mkdocs rewrites the links of Markdown pages alone; mkdocs.yml names this file as a hook.
"""

import logging
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

LINK = re.compile(r'href="(?!\w+:)([^"#]+\.(?:md|ipynb))(#[^"]*)?"')
LOG = logging.getLogger("mkdocs.hooks.notebook_links")


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Called by mkdocs for each page."""
    folder, extension = posixpath.split(page.file.src_uri)[0], page.file.src_uri[-6:]
    if extension != ".ipynb":
        return html

    def resolved(link: re.Match[str]) -> str:
        target = files.get_file_from_path(posixpath.normpath(posixpath.join(folder, link[1])))
        if target is None:
            LOG.warning("%s links %s, which is not there", page.file.src_uri, link[1])
            return link[0]
        return f'href="{get_relative_url(target.url, page.url)}{link[2] or ""}"'

    return LINK.sub(resolved, html)
