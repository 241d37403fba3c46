"""An experiment's report, as one page of HTML and in Markdown."""

from tssl_adapters.bench.report.page import (
    NOTHING_PUBLISHED,
    Plot,
    Published,
    listed,
    plot,
    render,
    write_report,
)

__all__ = ["NOTHING_PUBLISHED", "Plot", "Published", "listed", "plot", "render", "write_report"]
