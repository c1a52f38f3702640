"""Those who follow a run: what they are told, in which order, and what happens if one fails."""

import logging
import math
import re
import sys
import types
from pathlib import Path

import pandas as pd
import pytest

from fedkd.errors import ConfigError, DependencyError
from server import Observer, simulate, simulation
from server.tracking.scalars import final_scalars, flat, scalars

DOCS = (Path(__file__).parents[1] / "docs/tracking.md").read_text(encoding="utf-8")
SUPERVISED = {"objective": {"name": "supervised"}}


class Diary(Observer):
    """Writes down what it is told."""

    def __init__(self, fails_in="", error=None):
        self.told, self.fails_in, self.error = [], fails_in, error or OSError("no\nnetwork")

    def note(self, name, *values):
        self.told.append((name, *values))
        if name == self.fails_in:
            raise self.error

    def run_started(self, experiment, path):
        self.note("run_started", experiment.recipe.name, path)

    def round_started(self, round_number):
        self.note("round_started", round_number)

    def client_progress(self, partition_id, what, done, total):
        if done == total and what == "training":
            self.note("client_progress", partition_id)

    def round_finished(self, board):
        self.note("round_finished", board.rounds[-1]["round"])

    def run_ended(self, board, summary):
        self.note("run_ended", board and board.test.accuracy, summary["status"])


class Writer:
    """A SummaryWriter that keeps what it is given."""

    made = []

    def __init__(self, folder):
        self.folder, self.calls, self.closed = folder, [], False
        self.made.append(self)

    def add_scalar(self, tag, value, step):
        self.calls.append(("scalar", tag, value, step))

    def add_text(self, tag, text):
        self.calls.append(("text", tag, text))

    def add_hparams(self, keys, values, run_name, global_step):
        self.calls.append(("hparams", keys, values, global_step))

    def flush(self):
        pass

    def close(self):
        self.closed = True


@pytest.fixture
def writers(monkeypatch):
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


@pytest.mark.parametrize("centralized", [False, True])
def test_an_observer_is_told_in_order(run, tmp_path, centralized):
    diary = Diary()
    result = run(output=tmp_path, observers=[diary], centralized=centralized, **SUPERVISED)
    clients = [("client_progress", n) for n in range(1 if centralized else 3)]
    assert diary.told == [
        ("run_started", "run", result.path),
        *[("round_started", 1), *clients, ("round_finished", 1)],
        *[("round_started", 2), *clients, ("round_finished", 2)],
        ("run_ended", result.board.test.accuracy, "finished"),
    ]


def test_an_observer_need_override_nothing(run):
    assert run(num_rounds=1, observers=[Observer()], **SUPERVISED).path is None


def test_the_tables_of_a_round_are_there_when_it_is_finished(run, tmp_path):
    rows = []

    class Reader(Observer):
        def run_started(self, experiment, path):
            self.path = path

        def round_finished(self, board):
            rows.append(len(pd.read_csv(self.path / "rounds.csv")))

    run(output=tmp_path, observers=[Reader()], **SUPERVISED)
    assert rows == [1, 2]


@pytest.mark.parametrize("where", ["round_started", "client_progress", "round_finished"])
def test_an_observer_that_fails_is_dropped_with_one_line_and_no_number_changes(run, caplog, where):
    failing, other = Diary(where), Diary()
    result = run(num_rounds=2, observers=[failing, other], **SUPERVISED)
    assert failing.told[-1][0] == where
    assert [name for name, *_ in failing.told].count(where) == 1
    assert other.told[-1][0] == "run_ended"
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert line == (
        f"observer Diary failed in {where} and is told no more; the run goes on: "
        "OSError: no network"
    )
    plain = run(num_rounds=2, **SUPERVISED)
    assert result.summary["student_sha256"] == plain.summary["student_sha256"]


def test_a_failure_at_the_end_loses_nothing(run, tmp_path, caplog):
    result = run(num_rounds=1, output=tmp_path, observers=[Diary("run_ended")], **SUPERVISED)
    assert '"status": "finished"' in (result.path / "summary.json").read_text()
    assert "failed in run_ended" in caplog.text


def test_a_failure_at_the_start_ends_the_run_and_those_before_hear_of_it(run, tmp_path):
    first, failing, last = Diary(), Diary("run_started", ConfigError("no account")), Diary()
    with pytest.raises(ConfigError, match="no account"):
        run(output=tmp_path, observers=[first, failing, last], **SUPERVISED)
    assert [name for name, *_ in first.told] == ["run_started", "run_ended"]
    assert first.told[-1] == ("run_ended", None, "failed")
    assert len(failing.told) == 1
    assert last.told == []
    (summary,) = tmp_path.glob("run/*/summary.json")
    assert '"error": "ConfigError: no account"' in summary.read_text()


def test_a_run_that_fails_or_is_stopped_on_purpose_ends_for_everybody(run, monkeypatch):
    diary, stopping = Diary(), Diary("round_finished", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(observers=[diary, stopping], **SUPERVISED)
    for observer in (diary, stopping):
        assert observer.told[-1] == ("run_ended", None, "interrupted")

    def fail(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(simulation, "summarise", fail)
    diary = Diary()
    with pytest.raises(RuntimeError, match="broken"):
        run(num_rounds=1, observers=[diary], **SUPERVISED)
    assert diary.told[-1] == ("run_ended", None, "failed")


def test_scalars_have_every_number_of_the_round_and_of_its_clients(run):
    board = run(**SUPERVISED).board
    found, row = scalars(board), board.rounds[-1]
    assert found["val/balanced_accuracy"] == row["val_balanced_accuracy"]
    assert found["val/ece"] == row["val_ece"]
    assert found["train/loss"] == row["train_loss"]
    assert found["train/learning_rate"] == 2e-3
    assert found["traffic/bytes_up"] == row["bytes_up"]
    assert found["own_val/mcc"] == row["own_val_mcc"]
    assert found["round/seconds"] == row["seconds"]
    assert found["client_weight/south"] == board.clients[-2]["weight"]
    assert found["client_loss/west"] == board.clients[-1]["loss"]
    of_round = {tag for tag in found if not tag.startswith("client_")}
    numbers = {name for name, v in row.items() if math.isfinite(v)} - {"round"}
    assert len(of_round) == len(numbers)
    own = {name for name, v in board.clients[-1].items() if name not in ("round", "client")}
    assert {tag.split("/")[0] for tag in found} - {
        "train",
        "val",
        "own_val",
        "traffic",
        "round",
    } <= {f"client_{name}" for name in own}
    assert final_scalars(board)["test/mcc"] == board.test.mcc


def test_what_is_not_finite_is_left_out(run):
    board = run(num_rounds=1, **SUPERVISED).board
    board.rounds[-1]["val_recall_head"] = math.nan
    board.clients[0]["loss"] = math.inf
    assert not {"val/recall_head", "client_loss/north"} & set(scalars(board))
    assert all(map(math.isfinite, scalars(board).values()))


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("St. Mary (east)", "süd", "a/b"), {"St._Mary_east_", "s_d", "a_b"}),
        (("a b", "a/b", "c"), {"0-a_b", "1-a_b", "2-c"}),
    ],
)
def test_names_of_clients_become_tags_and_stay_apart(run, names, shown):
    board = run(num_rounds=1, **SUPERVISED).board
    object.__setattr__(board.experiment.partition, "client_names", names)
    found = scalars(board)
    assert {tag.split("/")[1] for tag in found if tag.startswith("client_seconds/")} == shown
    assert all(re.fullmatch(r"[\w./-]+", tag, re.ASCII) for tag in found)


def test_nested_keys_are_joined_by_dots():
    assert flat({"a": 1, "b": {"c": {"d": 2}, "e": []}}) == {"a": 1, "b.c.d": 2, "b.e": []}


def test_tensorboard_gets_rounds_config_and_final_scores(run, writers, tmp_path):
    result = run(output=tmp_path, tracking=["tensorboard"], **SUPERVISED)
    (writer,) = writers
    assert Path(writer.folder) == result.path / "tensorboard"
    assert writer.closed
    steps = [call[3] for call in writer.calls if call[:2] == ("scalar", "val/mcc")]
    values = [call[2] for call in writer.calls if call[:2] == ("scalar", "val/mcc")]
    assert (steps, values) == ([1, 2], result.rounds["val_mcc"].tolist())
    texts = {call[1]: call[2] for call in writer.calls if call[0] == "text"}
    assert '    name = "supervised"\n' in texts["config"]
    assert '      "status": "finished"' in texts["summary"]
    (_, keys, scores, step) = writer.calls[-1]
    assert (keys["strategy.name"], keys["num_rounds"], keys["tracking"]) == (
        "fedavg",
        2,
        '["tensorboard"]',
    )
    assert scores["test/balanced_accuracy"] == result.board.test.balanced_accuracy
    assert step == result.board.best_round


def test_tensorboard_keeps_why_a_run_failed(run, writers, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(
            output=tmp_path,
            tracking=["tensorboard"],
            observers=[Diary("round_finished", KeyboardInterrupt())],
            **SUPERVISED,
        )
    assert '"status": "interrupted"' in writers[0].calls[-1][2]
    assert writers[0].closed


def test_tracking_changes_no_number_and_no_hash(run, writers, tmp_path):
    plain = run(num_rounds=1, output=tmp_path, **SUPERVISED).summary
    tracked = run(num_rounds=1, output=tmp_path, tracking=["tensorboard"], **SUPERVISED).summary
    for key in ("config_hash", "student_sha256", "test"):
        assert plain[key] == tracked[key]


def test_a_missing_package_is_said_before_anything_is_written(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        DependencyError, match=r"tracking has 'tensorboard'.*pip install 'fedkd\[tracking\]'.*=\[\]"
    ):
        run(output=tmp_path, tracking=["tensorboard"], **SUPERVISED)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_needs_a_run_directory(run, writers):
    with pytest.raises(ConfigError, match="leaves none .output is None.; give an output, or"):
        run(tracking=["tensorboard"], **SUPERVISED)


def test_the_real_tensorboard_reads_the_same_numbers(run, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(output=tmp_path, tracking=["tensorboard"], **SUPERVISED)
    events = EventAccumulator(str(result.path / "tensorboard")).Reload()
    read = events.Scalars("val/balanced_accuracy")
    assert [event.step for event in read] == [1, 2]
    assert [event.value for event in read] == pytest.approx(
        result.rounds["val_balanced_accuracy"].tolist()
    )
    (final,) = events.Scalars("test/mcc")
    assert final.value == pytest.approx(result.board.test.mcc)
    tags = events.Tags()
    assert {"config/text_summary", "summary/text_summary"} <= set(tags["tensors"])
    assert [path for path in (result.path / "tensorboard").iterdir() if path.is_dir()] == []


# The examples of docs/tracking.md, as they stand there


def example(word):
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if word in c]
    assert code.count("\n") <= 26
    return code


@pytest.fixture
def tiny_simulate(monkeypatch, make_recipe, hospitals, tmp_path):
    """``simulate`` as the examples call it, of the tiny recipe."""
    results = []

    def tiny(config, *, output, observers):
        assert (config, output) == ("configs/quickstart.toml", "runs")
        recipe = make_recipe(name="quickstart", **SUPERVISED)
        results.append(simulate(recipe, **hospitals, output=tmp_path, observers=observers))

    monkeypatch.setattr(simulation, "simulate", tiny)
    return results


class Recorder(types.ModuleType):
    """A module whose functions write down their calls."""

    def __init__(self, name, *functions):
        super().__init__(name)
        self.calls = []
        for function in functions:
            setattr(self, function, self.recorded(function))

    def recorded(self, function):
        def call(*arguments, **options):
            self.calls.append((function, arguments, options))
            return self

        return call


def test_the_example_for_weights_and_biases_logs_every_round(tiny_simulate, monkeypatch, caplog):
    fake = Recorder("wandb", "init", "log", "finish", "update")
    fake.summary = fake
    monkeypatch.setitem(sys.modules, "wandb", fake)
    exec(example("wandb"), {})
    (result,) = tiny_simulate
    assert [name for name, *_ in fake.calls] == ["init", "log", "log", "update", "finish"]
    (_, _, options), (_, _, first), (_, (values,), second), (_, (final,), _), end = fake.calls
    assert (options["project"], options["name"], options["dir"]) == (
        "fedkd",
        "quickstart",
        result.path,
    )
    assert options["config"]["objective"]["name"] == "supervised"
    assert (first, second) == ({"step": 1}, {"step": 2})
    assert values["val/mcc"] == result.board.rounds[-1]["val_mcc"]
    assert final["test/mcc"] == result.board.test.mcc
    assert end == ("finish", (), {"exit_code": 0})
    assert "failed in" not in caplog.text


def test_the_example_for_mlflow_logs_every_round(tiny_simulate, monkeypatch, caplog):
    names = ("set_experiment", "start_run", "log_params", "log_dict", "log_metrics")
    fake = Recorder("mlflow", *names, "log_artifacts", "end_run")
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    exec(example("mlflow"), {})
    (result,) = tiny_simulate
    assert [name for name, *_ in fake.calls] == [
        *names,
        *["log_metrics", "log_metrics", "log_artifacts", "end_run"],
    ]
    assert fake.calls[1] == ("start_run", (), {"run_name": "quickstart"})
    assert fake.calls[2] == ("log_params", ({"strategy": "fedavg", "seed": 0},), {})
    assert [call[2]["step"] for call in fake.calls if call[0] == "log_metrics"] == [
        *[1, 2],
        result.board.best_round,
    ]
    assert fake.calls[6][1][0]["test/mcc"] == result.board.test.mcc
    assert fake.calls[7] == ("log_artifacts", (str(result.path), "run"), {})
    assert fake.calls[8] == ("end_run", ("FINISHED",), {})
    assert "failed in" not in caplog.text
