"""An experiment's report, as one page of HTML and in Markdown."""

from tssl_adapters.bench.report.page import write_report

__all__ = ["write_report"]
