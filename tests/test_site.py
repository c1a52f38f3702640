"""Hospitals that have only their own images, and a server that has none of theirs."""

import json

import numpy as np
import pandas as pd
import pytest

from fedkd import config
from fedkd.data.site_folder import LABELS, SITE
from fedkd.errors import ClientFailure, ConfigError, DataError
from fedkd.site import SiteAnswer, open_server, open_site
from server import simulate
from strategies.roll import call_roll
from tests.site_federation import make_grid, recipe_with, run_sites, write_folders

METHODS = {
    "ekd, kept features": {
        "objective": {"name": "ekd"},
        "teacher": {"views": "dihedral"},
        "augmentation": {"name": "dihedral"},
        "strategy": {"name": "mas"},
    },
    "fopro, mas, shared prompts": {
        "objective": {"name": "fopro"},
        "strategy": {"name": "mas", "fraction_train": 0.7},
        "prompts": {"shared": "by_strategy"},
        "num_rounds": 3,
    },
    "moco": {"objective": {"name": "moco"}, "moco": {"queue_size": 8}},
    "supervised, dirichlet, a long tail": {
        "objective": {"name": "supervised"},
        "partition": {"name": "dirichlet", "alpha": 1.0, "min_examples": 8},
        "long_tail": {"imbalance_factor": 4.0},
    },
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The small recipe with its folders, which tests do not change."""
    recipe = recipe_with(objective={"name": "supervised"})
    sites, server = write_folders(recipe, tmp_path_factory.mktemp("small") / "sites")
    return recipe, sites, server


def answers_of(recipe, sites):
    experiments = [open_site(recipe, n, len(sites), path) for n, path in enumerate(sites)]
    return {number: SiteAnswer.of(own) for number, own in enumerate(experiments)}


@pytest.mark.parametrize("method", METHODS)
def test_hospitals_with_their_own_folders_give_the_student_of_the_simulation(method, tmp_path):
    recipe = recipe_with(**METHODS[method], output=str(tmp_path / "runs"))
    sites, server = write_folders(recipe, tmp_path / "sites")
    simulated = simulate(recipe)
    run_sites(recipe, tmp_path / "recipe.toml", sites, server)
    (run,) = (tmp_path / "runs" / "sites").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    same = ["student_sha256", "best_student_sha256", "config_hash", "clients"]
    same += ["val", "test", "train_counts", "best_round"]
    assert {key: summary[key] for key in same} == {key: simulated.summary[key] for key in same}
    assert (summary["given"], summary["at_hospitals"]) == (["images"], True)
    assert summary["engine"] == "flower", "it did not run in the recipe's own process"
    rounds = pd.read_csv(run / "rounds.csv")
    left_out = ["seconds", "bytes_up"]  # hospitals send counts instead of predictions
    pd.testing.assert_frame_equal(
        rounds.drop(columns=left_out), simulated.rounds.drop(columns=left_out)
    )
    files = {path.name for path in run.iterdir()}
    assert "partition.csv" in files
    assert not {"partition.json", "predictions_clients.csv"} & files
    per_class = pd.read_csv(run / "per_class.csv")
    assert per_class["num_train"].tolist() == list(simulated.summary["train_counts"].values())


def test_a_hospital_has_no_image_of_another_and_the_server_none_for_training(small):
    recipe, sites, server = small
    answers = answers_of(recipe, sites)
    own = open_site(recipe, 1, None, sites[1])
    assert [len(rows) for rows in own.partition.indices] == [0, sum(answers[1].train_counts), 0]
    assert len(own.splits.train) == sum(answers[1].train_counts)
    assert [len(rows) for rows in own.held_out_rows["val"]] == [0, sum(answers[1].val_counts), 0]
    assert own.held_out_rows["test"][1].size == len(own.splits.test) == 0
    central = open_server(recipe, answers, server)
    with pytest.raises(DataError) as refused:
        central.loader(0).pixels(np.arange(1))
    assert str(refused.value) == (
        "the 90 training images are at the hospitals, which say only how many they have of each "
        "class; what needs the images themselves can be done at a hospital, or in a simulation"
    )
    with pytest.raises(DataError, match="are at the hospitals"):
        np.asarray(central.splits.train.images)


def changed(site, **changes):
    values = json.loads((site / SITE).read_text())
    (site / SITE).write_text(json.dumps({**values, **changes}))


def refusal(recipe, path, sites, server, kind=ConfigError):
    with pytest.raises(kind) as refused:
        run_sites(recipe, path, sites, server)
    assert type(refused.value) is kind
    return str(refused.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"strategy": {"exchange": "without_classifier"}},
            "strategy.exchange is 'without_classifier', with which the hospitals predict val and "
            "test, each its own part; where hospitals and server have their own images, the server "
            "predicts its own: set strategy.exchange = 'all', or simulate",
        ),
        (
            {"teacher": {"by_client": [{"clients": ["x"]}]}},
            "teacher.by_client is given, but where hospitals open their own images the teacher is "
            "the same at every one; set teacher.by_client = [], or simulate",
        ),
        (
            {"long_tail": {"imbalance_factor": 3.0}},
            "long_tail of the recipe would change images, but {site} does not say in data_set that "
            "these were made so; leave the section out, or write the folders with this recipe by "
            "`fedkd partition CONFIG --sites FOLDER`",
        ),
        (
            {"data": {"size": 32}},
            "{site}: image_size is 16 but data.size is 32; resized twice they would be other "
            "images: make the folder anew for this size, or leave image_size out if the files are "
            "the originals",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_a_hospital_is_refused_in_a_line(small, changes, text):
    _, sites, server = small
    recipe = recipe_with(**{"objective": {"name": "supervised"}, **changes})
    for opened, folder in (
        (lambda: open_site(recipe, 0, 3, sites[0]), sites[0]),
        (lambda: open_server(recipe, dict(enumerate([ANSWER] * 3)), server), server),
    ):
        with pytest.raises((ConfigError, DataError)) as refused:
            opened()
        assert str(refused.value) == text.format(site=folder / SITE)


ANSWER = SiteAnswer("north", ("a", "b"), (1, 1), (0, 0), 16, "", "")


def test_a_partition_id_beyond_the_federation_is_refused(small):
    recipe, sites, _ = small
    with pytest.raises(ConfigError) as refused:
        open_site(recipe, 3, 3, sites[0])
    assert str(refused.value) == (
        "this hospital's partition-id is 3, but the federation has 3 clients; give each its own "
        "number from 0 to 2"
    )


def test_hospitals_that_differ_from_the_server_are_named_one_line_each(small):
    recipe, sites, server = small
    good = answers_of(recipe, sites)
    names = [answer.name for answer in good.values()]
    faults = {
        0: {"class_names": good[0].class_names[::-1]},
        1: {"recipe_sha256": "0123456789abcdef"},
        2: {"image_size": 32, "name": names[0]},
    }
    bad = {n: SiteAnswer(**{**vars(good[n]), **fault}) for n, fault in faults.items()}
    classes = ", ".join(good[0].class_names)
    with pytest.raises(ConfigError) as refused:
        open_server(recipe, bad, server)
    assert str(refused.value).splitlines() == [
        f"client 0 ({names[0]}) has the classes {', '.join(good[0].class_names[::-1])}, but the "
        f"server {classes}; class_names in site.json must be the same, in the same order",
        f"client 1 ({names[1]}) has opened another recipe (hash 01234567) than the server "
        f"({recipe.hash()[:8]}); give all the same file",
        f"client 2 ({names[0]}) has images of 32 px, but the server's recipe says data.size = 16; "
        "give all the same recipe",
        f"clients 0, 2 are all called {names[0]!r}; give each hospital a name of its own in its "
        "site.json, and each SuperNode the data-path of its own",
    ]
    with pytest.raises(ConfigError, match=r"partition-ids \[0, 2\] answered; they must count from"):
        open_server(recipe, {0: good[0], 2: good[2]}, server)


def test_a_hospital_with_another_teacher_is_named(tmp_path):
    recipe = recipe_with(objective={"name": "ekd"})
    sites, server = write_folders(recipe, tmp_path / "sites")
    answers = answers_of(recipe, sites)
    own = answers[0].teacher_sha256
    assert len(own) == 64
    assert own == answers[2].teacher_sha256
    bad = {**answers, 1: SiteAnswer(**{**vars(answers[1]), "teacher_sha256": "f" * 64})}
    with pytest.raises(ConfigError) as refused:
        open_server(recipe, bad, server)
    assert str(refused.value) == (
        f"client 1 ({answers[1].name}) has another teacher (sha256 ffffffffffff) than the server "
        f"({own[:12]}); give all the same file, and set teacher.sha256 in the recipe"
    )


def test_a_node_without_a_data_path_is_named(small, tmp_path):
    recipe, sites, server = small
    text = refusal(recipe, tmp_path / "r.toml", [sites[0], None, sites[2]], server)
    assert text == (
        f"client 1 has no data-path, but server-data is {str(server)!r}; start every SuperNode "
        "with its own data-path in --node-config, or leave server-data out"
    )


def test_what_is_wrong_with_a_hospitals_files_stays_in_its_own_log(tmp_path, capsys):
    recipe = recipe_with(objective={"name": "supervised"})
    sites, server = write_folders(recipe, tmp_path / "sites")
    labels = (sites[1] / LABELS).read_text().splitlines()
    patient = labels[1].split(",")[0]
    (sites[1] / "images" / f"{patient}.png").unlink()
    text = refusal(recipe, tmp_path / "r.toml", sites, server, ClientFailure)
    assert "client 1 cannot use the images of its data-path; its own log says why" in text
    assert patient not in text
    assert f"name a file that does not exist: row 2 ({sites[1]}/images/{patient}.png)" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("given", ["one", "1.5", "-1"])
def test_a_partition_id_that_is_no_number_is_refused_in_a_line(small, tmp_path, given):
    recipe, sites, _ = small
    (tmp_path / "r.toml").write_text(config.dump(recipe))
    grid = make_grid(tmp_path / "r.toml", sites)
    list(grid._contexts.values())[0].node_config["partition-id"] = given
    with pytest.raises(ClientFailure) as failed:
        call_roll(grid, 3)
    assert str(failed.value) == (
        f"node 100 failed: this node's partition-id is '{given}'; give it one of 0, 1, 2 ... in "
        "--node-config"
    )


def test_an_image_that_goes_while_it_is_trained_with_is_named_to_the_hospital_alone(
    tmp_path, capsys, monkeypatch
):
    recipe = recipe_with(objective={"name": "supervised"}, output=str(tmp_path / "runs"))
    sites, server = write_folders(recipe, tmp_path / "sites")

    def gone(*args, **kwargs):
        raise OSError(5, "Input/output error", "patient-7.png")

    monkeypatch.setattr("clients.node.train_epochs", gone)
    text = refusal(recipe, tmp_path / "r.toml", sites, server, ClientFailure)
    assert "client 0 cannot use the images of its data-path" in text
    assert "patient" not in text.replace("files and patients", "")
    log = capsys.readouterr().err
    assert "patient-7.png" in log
    (run,) = (tmp_path / "runs" / "sites").iterdir()
    assert "patient-7" not in "".join(p.read_text() for p in run.glob("*.[cj]s*"))


def test_hospitals_do_not_train_for_a_server_that_knows_nothing_of_their_images(small, tmp_path):
    recipe, sites, _ = small
    recipe = recipe.model_copy(update={"output": str(tmp_path / "runs")})
    assert refusal(recipe, tmp_path / "r.toml", sites, "", ClientFailure) == (
        "client 0 failed: client 0 has a data-path, but the server has no server-data and takes "
        "its images for those of the recipe; start `flwr run` with server-data in --run-config, or "
        "the SuperNodes without data-path"
    )


def test_a_recipe_that_is_nowhere_is_said_with_the_places_to_the_hospital_alone(
    small, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    recipe, sites, server = small
    grid = make_grid("configs/nowhere.toml", sites)
    with pytest.raises(ClientFailure) as failed:
        call_roll(grid, 3, describe=True)
    assert str(failed.value) == (
        "node 100 failed: client 0 failed (ConfigError); its own log says why, which does not "
        "leave the hospital, as it may name files and patients"
    )
    assert f"neither {tmp_path}/configs/nowhere.toml nor" in caplog.text
