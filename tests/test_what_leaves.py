"""What leaves a hospital that has images of its own: all of it, message by message."""

import io

import pandas as pd
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedkd import config, wire
from fedkd.experiment import open_experiment
from fedkd.site import open_site
from server.cli import main
from tests.site_federation import make_grid, recipe_with, run_sites, write_folders

NUM_CLASSES = 8
ROLL = {wire.PARTITION_ID, wire.TRAIN_COUNTS, wire.VAL_COUNTS, wire.IMAGE_SIZE}
WORDS = {wire.SITE_NAME, wire.CLASS_NAMES, wire.RECIPE_SHA256, wire.TEACHER_SHA256}
PER_CLASS = {wire.CLASS_COUNTS, wire.CLASS_LOSSES, wire.CLASS_SCORES}
ONE_NUMBER = {
    wire.PARTITION_ID,
    wire.NUM_EXAMPLES,
    wire.NUM_SEEN,
    wire.NUM_STEPS,
    wire.SECONDS,
}


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """One round of fopro that shares its prompts, with the strategy that asks for class scores."""
    folder = tmp_path_factory.mktemp("federation")
    recipe = recipe_with(
        num_rounds=1,
        output=str(folder / "runs"),
        strategy={"name": "mas"},
        prompts={"shared": "by_strategy"},
    )
    sites, server = write_folders(recipe, folder / "sites")
    grid = run_sites(recipe, folder / "recipe.toml", sites, server)
    (run,) = (folder / "runs" / "sites").iterdir()
    return recipe, sites, grid, run


def test_a_run_of_one_round_is_one_roll_call_and_one_training_for_each_hospital(federation):
    _, _, grid, _ = federation
    kinds = [message.metadata.message_type for message in grid.sent]
    assert kinds == ["query"] * 3 + ["train"] * 3


def test_a_roll_call_tells_counts_names_and_check_sums(federation):
    recipe, sites, grid, _ = federation
    for number, reply in enumerate(grid.told[:3]):
        own = open_site(recipe, number, 3, sites[number])
        (metrics,), (words,) = reply["metrics"].values(), reply["words"].values()
        assert set(metrics) == ROLL
        assert set(words) == WORDS
        assert not reply["arrays"]
        assert metrics[wire.TRAIN_COUNTS] == own.splits.train.class_counts().tolist()
        assert metrics[wire.VAL_COUNTS] == own.splits.val.class_counts().tolist()
        assert words[wire.SITE_NAME] == own.partition.client_names[number]
        assert words[wire.CLASS_NAMES] == list(own.splits.train.class_names)
        assert len(words[wire.RECIPE_SHA256]) == len(words[wire.TEACHER_SHA256]) == 64


def test_a_training_tells_the_student_shared_prompts_sums_and_counts(federation):
    recipe, _, grid, _ = federation
    student = open_experiment(recipe).build_student().state_dict()
    assert len(grid.told) == 6
    for reply in grid.told[3:]:
        assert not reply["words"]
        (arrays,), (metrics,) = reply["arrays"].values(), reply["metrics"].values()
        prompts = {name for name in arrays if name.startswith(wire.PROMPTS)}
        assert set(arrays) - prompts == set(student)
        assert prompts
        assert all(arrays[name] == tensor.shape for name, tensor in student.items())
        sums = {key for key in metrics if key.startswith((wire.SUM, wire.MEAN))}
        assert set(metrics) - sums == ONE_NUMBER | PER_CLASS | {wire.CONFUSION}
        assert all(len(metrics[key]) == NUM_CLASSES for key in PER_CLASS)
        assert len(metrics[wire.CONFUSION]) == NUM_CLASSES**2
        assert all(isinstance(metrics[key], int | float) for key in sums | ONE_NUMBER)


def test_a_hospital_is_told_nothing_of_another(federation):
    recipe, sites, grid, _ = federation
    names = [
        open_site(recipe, n, 3, path).partition.client_names[n] for n, path in enumerate(sites)
    ]
    trains = [message.content for message in grid.sent if message.metadata.message_type == "train"]
    for content in trains:
        assert set(content.config_records[wire.CONFIG]) == {
            wire.ROUND, wire.BEST_ROUND, wire.SCORE_CLASSES, wire.AT_HOSPITALS
        }  # fmt: skip
        assert not content.metric_records
        assert not any(name in str(content.config_records) for name in names)


def test_a_hospital_predicts_for_nobody(federation, tmp_path):
    recipe, sites, *_ = federation
    (tmp_path / "recipe.toml").write_text(config.dump(recipe))
    grid = make_grid(tmp_path / "recipe.toml", sites)
    content = RecordDict(
        {
            wire.ARRAYS: ArrayRecord(open_experiment(recipe).build_student().state_dict()),
            wire.CONFIG: ConfigRecord({wire.SPLIT: "val", wire.AS_OF_ROUND: 0}),
        }
    )
    (reply,) = grid.send_and_receive(
        [Message(content, dst_node_id=grid.get_node_ids()[0], message_type="evaluate")]
    )
    assert reply.error.reason == (
        "client 0 has images of its own, of which no prediction leaves the hospital; set "
        "strategy.exchange = 'all'"
    )


@pytest.mark.parametrize("command", [("evaluate", "--split", "val"), ("prompts",), ("spectrum",)])
def test_commands_that_need_images_refuse_in_a_line(federation, command, capsys):
    *_, run = federation
    name, *rest = command
    assert main([name, str(run), *rest]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"fedkd: {run} was trained on images that stayed at the hospitals, which its config.toml "
        "does not name; what needs images can only be done where they are"
    )


def test_its_student_predicts_files_as_the_server_did(federation, capsys):
    _, sites, _, run = federation
    expected = pd.read_csv(run / "predictions_test.csv")
    name = expected["id"][4]
    image = sites[0].parent / "server" / "images" / f"{name}.png"
    assert main(["predict", str(run), str(image)]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    columns = [column for column in expected if column.startswith("p_")]
    assert table[columns].iloc[0].tolist() == pytest.approx(
        expected[columns].iloc[4].tolist(), abs=1e-6
    )


def test_the_run_has_a_report(federation, capsys):
    *_, run = federation
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Data: images that stayed at the hospitals, 90 training images" in page
    assert "Each of the 3 hospitals trained on its own." in page
    assert "in Python" not in page
    assert "flwr run . --run-config" in page
    assert "fedkd run" not in page
    capsys.readouterr()


def test_the_recipe_of_the_run_is_the_one_that_was_given_and_says_where_it_ran(federation):
    recipe, *_, run = federation
    engine = recipe.engine.model_copy(update={"name": "flower"})
    assert config.load(type(recipe), run / "config.toml") == recipe.model_copy(
        update={"engine": engine}
    )
