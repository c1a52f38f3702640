"""The command ``fedkd report``: one page of a run, of several runs, or of a comparison."""

import argparse

from server import terminal
from server.reporting.report import write_report


def report(options: argparse.Namespace) -> None:
    """``fedkd report``: a page, and its numbers as CSV, JSON and LaTeX."""
    terminal.log_to_stderr()
    print(write_report(*options.runs, output=options.output))
