"""Where a user sees that clients failed: the terminal, the page of a run, a comparison."""

import io
import json
from xml.etree import ElementTree

from rich.console import Console

from server import write_report
from server.comparison.outcome import CELLS, gather
from server.comparison.plan import plan
from server.comparison.runner import run_cells
from server.progress import TerminalProgress
from tests.failing_clients import CONTINUE, PLAIN, RETRY, broken
from tests.failing_clients import failing as failing
from tests.test_comparison_runner import Quiet, recipe


def test_the_line_of_a_round_says_how_many_failed_and_nothing_where_none_did(run, opened, failing):
    failing({(1, 1): [broken()]})
    text = io.StringIO()
    with TerminalProgress(Console(file=text, width=200), opened(**PLAIN)) as display:
        run(**PLAIN, **CONTINUE, observers=[display])
    first, second = text.getvalue().splitlines()
    assert first.endswith(" s  1 of 3 failed")
    assert "failed" not in second


def alarms_of(path):
    page = ElementTree.fromstring(write_report(path).read_text(encoding="utf-8"))
    texts = (" ".join("".join(one.itertext()).split()) for one in page.iter())
    return {text for text in texts if text.startswith("Clients failed")}


def test_a_page_begins_with_the_clients_that_are_missing(run, failing, tmp_path):
    failing({(1, 1): [broken()], (2, 1): [broken()], (3, 0): [broken()]})
    path = run(**PLAIN, **CONTINUE, num_rounds=4, output=tmp_path).path
    sentence = (
        f"Clients failed: {path.name} (seed 0) went on without them in 3 of 4 rounds; students "
        "missing: 3, of south, north. failures.csv in the run directory says why."
    )
    assert alarms_of(path) == {sentence}
    summary = json.loads((path / "summary.json").read_text())
    del summary["failures"]  # as of a run that is not over yet
    (path / "summary.json").write_text(json.dumps(summary | {"status": "running"}))
    assert alarms_of(path) == {sentence}


def test_a_page_is_silent_where_asking_again_helped(run, failing, tmp_path):
    failing({(1, 1): [broken()]})
    path = run(**PLAIN, **RETRY, output=tmp_path).path
    assert (path / "failures.csv").exists()
    assert alarms_of(path) == set()


def test_a_comparison_names_the_cells_whose_rounds_went_on_without_a_client(failing, tmp_path):
    given = recipe(**CONTINUE, compare={"strategies": ["mas"], "seeds": [0], "baselines": []})
    planned = plan(given)
    failing({(1, 1): [broken()]})
    run_cells(planned.cells, tmp_path / CELLS, 1, Quiet())
    outcome = gather(given, planned, tmp_path)
    assert list(outcome.cells["status"]) == ["finished", "finished"]
    client = json.loads(
        (tmp_path / outcome.cells["run"][0] / "summary.json").read_text()
    )["clients"][1]  # fmt: skip
    assert outcome.notes == (
        f"NOT ALL CLIENTS: fedavg, seed 0 went on without {client} in some rounds, as 1 of their "
        "answers failed (failures.policy = 'continue')",
    )
