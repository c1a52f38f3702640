"""``fedkd prompts``: what it prints and leaves, and what it refuses, in one line each."""

import json
import shutil
from xml.etree import ElementTree

import pandas as pd
import pytest

from clients.factory import make_objective
from fedkd import config, seeding
from fedkd.experiment import open_experiment
from fedkd.fourier.generators.factory import make_generator
from fedkd.fourier.kept import path_of, save_prompts
from fedkd.fourier.prompter import Prompter
from fedkd.recipe import Recipe
from server import simulate
from server.cli import main
from server.hospital_prompts import numbers_table, open_prompts
from server.opened_run import open_run

SMALL = {
    "name": "small",
    "num_rounds": 1,
    "data": {"size": 16, "num_train": 60, "num_sites": 2, "num_val_per_class": 2,
             "num_test_per_class": 1},
    "explore": {"warm_up_steps": 1, "steps_per_round": 1, "batch_size": 8},
    "prompts": {"latent_dim": 6},
}  # fmt: skip


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run with the prompts of its two hospitals."""
    recipe = config.build(Recipe, SMALL)
    path = simulate(recipe, output=tmp_path_factory.mktemp("runs")).path
    assert path is not None
    return path


@pytest.fixture
def run(finished, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(finished, tmp_path / "run")


def change(run, **prompts):
    """Settings of the prompts, and files that fit them."""
    recipe = config.load(
        Recipe, run / "config.toml", [f"prompts.{k}={v}" for k, v in prompts.items()]
    )
    (run / "config.toml").write_text(config.dump(recipe))
    with seeding.isolated(0, "test"):
        generator = make_generator(recipe.prompts, 3, 16, 16)
    for client in range(2):
        save_prompts(path_of(run / "prompts", client), Prompter(recipe.prompts, generator), 1)


def page_of(folder):
    return ElementTree.fromstring((folder / "prompts.html").read_text(encoding="utf-8"))


def headings(page):
    return [one.text for one in page.iter("h2")]


def test_a_run_gives_a_page_pictures_numbers_and_a_table(run, capsys):
    assert main(["prompts", str(run)]) == 0
    out, err = capsys.readouterr()
    folder = run / "prompts"
    assert out.splitlines()[-1] == str(folder / "prompts.html")
    assert "Fourier prompts (conv) at full strength" in out
    for word in ("hospital_1", "magnitude", "effective", "prompted", "saturated", "cosine"):
        assert word in out
    assert "measuring the prompts of hospital_1 ..." in err
    pictures = ["changes", "images_client-0", "images_client-1", "maps", "profiles", "rounds"]
    assert sorted(p.name for p in folder.glob("*.png")) == [f"prompts_{n}.png" for n in pictures]
    page = page_of(folder)
    assert len(list(page.iter("img"))) == len(pictures)
    assert headings(page) == [
        "Hospitals in numbers",
        "The prompts",
        "The prompts over frequency",
        "Images before and after",
        "What changed where in the spectrum",
        "Over the rounds",
    ]
    assert all(section.findall("p") for section in page.iter("section"))
    table = pd.read_csv(folder / "prompts.csv")
    assert table["client"].tolist() == ["hospital_0", "hospital_1"]
    assert table["num_train"].sum() == 60
    assert table["effective_rank"].gt(0).all()
    # 2 hospitals, 3 channels, frequency 0 and 8 rings.
    assert len(pd.read_csv(folder / "prompts_profiles.csv")) == 2 * 3 * 9


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(finished):
    run = open_run(finished)
    tables = [
        numbers_table(open_prompts(run, run.experiment(), "train", 1, seed)[0])
        for seed in (7, 7, 8)
    ]
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])


def test_images_of_val_and_their_number_can_be_chosen(run, capsys):
    out = run.parent / "elsewhere"
    arguments = ["--split", "val", "--images", "1", "--output", str(out)]
    assert main(["prompts", str(run), *arguments]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "prompts.html")
    assert pd.read_csv(out / "prompts.csv")["num_images"].sum() <= 16
    assert "measured on val images" in (out / "prompts.html").read_text()


def test_jitter_is_called_a_control_and_untrained(run):
    change(run, generator="jitter")
    assert main(["prompts", str(run)]) == 0
    text = (run / "prompts" / "prompts.html").read_text()
    assert "control jitter: its prompts are random" in text
    assert "The prompts over frequency" in text
    assert "our interpretation" not in text


def test_amplitude_mix_has_no_log_gains_to_show(run):
    change(run, generator="amplitude_mix")
    assert main(["prompts", str(run)]) == 0
    page = page_of(run / "prompts")
    assert [name for name in headings(page) if name.startswith("The prompts")] == []
    assert pd.read_csv(run / "prompts" / "prompts.csv")["magnitude"].isna().all()
    assert not (run / "prompts" / "prompts_maps.png").exists()


def test_a_collapse_raises_the_alarm_and_what_is_missing_is_said(run, capsys):
    change(run, generator="conv")
    experiment = open_experiment(config.load(Recipe, run / "config.toml"))
    prompter = make_objective(experiment, 0, 1).prompter
    for name, weights in prompter.generator.named_parameters():
        if name.startswith("fc"):
            weights.data.fill_(0.1)  # all latents in one direction
    save_prompts(path_of(run / "prompts", 0), prompter, 1)
    path_of(run / "prompts", 1).unlink()
    (run / "clients.csv").unlink()
    assert main(["prompts", str(run), "--images", "1"]) == 0
    alarm = "Collapse: the effective rank is below 3 at hospital_0 ("
    out = capsys.readouterr().out
    assert alarm in out
    assert "hospital_1 is left out: it has not trained" in out
    page = (run / "prompts" / "prompts.html").read_text()
    assert "hospital_1 is left out: it has not trained." in page
    assert "The run had finished no round" in page
    (text,) = [p.text for p in page_of(run / "prompts").findall(".//p[@class='alarm']")]
    assert text.startswith(alarm)
    assert "hospital_1" not in text
    assert "Raise explore.diversity_weight" in text


def refused(capsys, *arguments):
    assert main(["prompts", *map(str, arguments)]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("fedkd: ")]
    return line


def test_no_run_directory_is_refused(tmp_path, capsys):
    assert f"{tmp_path} is no run directory, as it has no config.toml" in refused(capsys, tmp_path)


def test_another_objective_is_refused(run, capsys):
    recipe = config.load(Recipe, run / "config.toml", ["objective.name=ekd"])
    (run / "config.toml").write_text(config.dump(recipe))
    line = refused(capsys, run)
    assert "objective.name is 'ekd'" in line
    assert "only 'fopro' has Fourier prompts" in line


def test_a_run_without_prompts_is_refused(run, capsys):
    shutil.rmtree(run / "prompts")
    line = refused(capsys, run)
    assert "has no client-<id>.safetensors: the run (status 'finished')" in line
    assert f"run it again: fedkd run {run / 'config.toml'}" in line


def test_prompts_of_images_of_another_size_are_refused(run, capsys):
    recipe = config.load(Recipe, run / "config.toml")
    generator = make_generator(recipe.prompts, 3, 32, 32)
    save_prompts(path_of(run / "prompts", 0), Prompter(recipe.prompts, generator), 1)
    line = refused(capsys, run)
    assert "and images of 16x16 px: size mismatch" in line


def test_a_damaged_file_is_refused(run, capsys):
    path_of(run / "prompts", 1).write_bytes(b"no tensors")
    assert "cannot read the prompts" in refused(capsys, run)


def test_mixing_without_a_mean_amplitude_is_refused(run, capsys):
    change(run, form="mix")
    assert "prompts.form = 'mix' and images of 16x16 px: it has no mean amplitude" in refused(
        capsys, run
    )


def test_other_images_than_those_of_the_run_are_refused(run, capsys):
    recipe = config.load(Recipe, run / "config.toml", ["data.num_train=61"])
    (run / "config.toml").write_text(config.dump(recipe))
    assert "are divided otherwise than in the run (partition hash" in refused(capsys, run)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_summary_is_refused(run, capsys, text):
    (run / "summary.json").write_text(text)
    assert "summary.json" in refused(capsys, run)


def test_a_folder_that_cannot_be_made_or_written_is_refused(run, capsys):
    blocked = run / "file"
    blocked.touch()
    assert "cannot make the folder" in refused(capsys, run, "--output", blocked / "x")
    assert main(["prompts", str(run)]) == 0
    picture = run / "prompts" / "prompts_maps.png"
    picture.unlink()
    picture.mkdir()
    line = refused(capsys, run)
    assert f"cannot write to {run / 'prompts'}" in line
    assert "choose another --output" in line


@pytest.mark.parametrize(
    ("option", "value"), [("--images", "0"), ("--images", "many"), ("--seed", "-1")]
)
def test_numbers_out_of_range_are_refused(run, capsys, option, value):
    with pytest.raises(SystemExit) as caught:
        main(["prompts", str(run), option, value])
    assert caught.value.code == 2
    assert f"{value!r} is no whole number from" in capsys.readouterr().err


def test_a_teacher_given_in_python_is_not_replaced_by_that_of_the_config(run, capsys):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "given": ["teacher"]}))
    assert "was given its own teacher in Python (simulate)" in refused(capsys, run)
