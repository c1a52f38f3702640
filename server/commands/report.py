"""The command ``fedkd report``: one page of a run, of several runs, or of a comparison."""

import argparse
from pathlib import Path

from server import terminal
from server.output_folder import output_folder
from server.reporting.report import write_report


def report(options: argparse.Namespace) -> None:
    """``fedkd report``: a page, and its numbers as CSV, JSON and LaTeX."""
    terminal.log_to_stderr()
    runs = sorted({str(Path(run).resolve()) for run in options.runs})
    if options.output is None or [str(Path(options.output).resolve())] == runs:
        # A page of a run in its own directory is the run's: it is made anew as the run goes on.
        print(write_report(*options.runs, output=options.output))
        return
    with output_folder(options.output, Path(), "report", {"runs": runs}) as folder:
        print(write_report(*options.runs, output=folder))
