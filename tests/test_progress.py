import io

import pytest
from rich.console import Console

from server import progress
from server.progress import TerminalProgress


@pytest.fixture
def watched(run, opened):
    """A function that runs two rounds under a progress display and returns what it wrote."""

    def make(terminal=False, **changes):
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=200)
        with TerminalProgress(console, opened(**changes)) as display:
            run(observers=[display], **changes)
        return text.getvalue()

    return make


def test_there_is_one_line_a_round_with_loss_scores_and_seconds(watched):
    lines = watched().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["round 1/2", "round 2/2"]
    for line in lines:
        parts = [part.rsplit(" ", 1)[0] for part in line.split("  ")[1:-1]]
        assert parts == ["loss", "prior", "val: bal. acc.", "mcc", "tail recall"]
        assert line.endswith(" s")


def test_without_prompts_there_is_no_prior(watched):
    assert "prior" not in watched(objective={"name": "supervised"})


def test_without_a_terminal_something_is_said_when_it_was_quiet_for_long(watched, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_S", -1.0)
    text = watched(num_rounds=1, objective={"name": "supervised"})
    assert "round 1/1  north: training 4/11\n" in text
    assert "round 1/1  west: training 6/6\n" in text


def test_a_terminal_gets_a_bar_that_is_removed(watched):
    text = watched(terminal=True)
    assert "\x1b[" in text
    assert "round 2/2  loss" in text


def test_the_bar_is_removed_after_an_error(opened):
    console = Console(file=io.StringIO(), force_terminal=True)
    display = TerminalProgress(console, opened())

    def fail():
        with display:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fail()
    assert not display._bar.live.is_started
