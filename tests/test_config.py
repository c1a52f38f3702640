from pathlib import Path

import pytest

from fedkd import config
from fedkd.errors import ConfigError
from fedkd.recipe import Recipe


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert config.load(Recipe, write(tmp_path, "a.toml", "")) == Recipe()


def test_the_saved_config_loads_back_to_the_same(tmp_path):
    recipe = config.build(
        Recipe,
        {"num_clients": 1, "training": {"learning_rate": 0.5}, "student": {"name": "resnet18"}},
    )
    assert config.load(Recipe, write(tmp_path, "a.toml", config.dump(recipe))) == recipe


def test_overrides_beat_the_file_and_the_last_one_wins(tmp_path):
    path = write(tmp_path, "a.toml", "num_rounds = 3\n[training]\nlearning_rate = 0.1\n")
    recipe = config.load(
        Recipe, path, ["strategy.name=mas", "num_rounds=20", "num_rounds=21", "name=trial"]
    )
    assert (recipe.num_rounds, recipe.strategy.name, recipe.name) == (21, "mas", "trial")
    assert recipe.training.learning_rate == 0.1


def test_a_recipe_extends_another_key_by_key(tmp_path):
    write(
        tmp_path, "base.toml", "num_rounds = 3\n[training]\nlearning_rate = 0.1\nbatch_size = 8\n"
    )
    path = write(tmp_path, "a.toml", 'extends = "base.toml"\n[training]\nbatch_size = 16\n')
    recipe = config.load(Recipe, path)
    assert recipe.num_rounds == 3
    assert (recipe.training.learning_rate, recipe.training.batch_size) == (0.1, 16)


def test_another_data_set_drops_the_keys_of_the_first(tmp_path):
    write(tmp_path, "base.toml", '[data]\nname = "lesions"\nnum_train = 800\n')
    text = 'extends = "base.toml"\n[data]\nname = "folder"\nimages = "i"\ncsv = "c"\n'
    text += 'id_column = "a"\nlabel_column = "b"\nsplit_column = "c"\nsize = 32\n'
    assert config.load(Recipe, write(tmp_path, "a.toml", text)).data.name == "folder"


def test_a_circle_of_extends_is_refused(tmp_path):
    write(tmp_path, "a.toml", 'extends = "b.toml"\n')
    path = write(tmp_path, "b.toml", 'extends = "a.toml"\n')
    with pytest.raises(ConfigError, match="extends itself"):
        config.load(Recipe, path)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["training.learning_rat=1"],
            "unknown key training.learning_rat on the command line; did you "
            "mean training.learning_rate",
        ),
        (["strategi.name='mas'"], "unknown key strategi on .*; did you mean strategy"),
        (
            ["partition.alpha=-0.5"],
            r"partition.alpha is -0.5 on the command line; it must be greater "
            "than 0",
        ),
        (
            ["strategy.name=fedavvg"],
            "strategy.name is 'fedavvg' on .*; it must be 'fedavg', .* or 'mas_drw'",
        ),
        (
            ["data.name=isic"],
            "data.name is 'isic' on the command line; it must be one of 'lesions', 'folder'",
        ),
        (["data.num_trian=3"], "unknown key data.num_trian on .*; did you mean data.num_train"),
        (["num_rounds"], "override 'num_rounds' is not key=value"),
        (["num_rounds=two"], "num_rounds is 'two' on .*; it must be a valid integer"),
        (
            ["teacher.name=dinov2_vits"],
            "teacher.name is 'dinov2_vits'; did you mean dinov2_vits14 or",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, overrides, text):
    with pytest.raises(ConfigError, match=text) as caught:
        config.load(Recipe, write(tmp_path, "a.toml", ""), overrides)
    assert len(str(caught.value).splitlines()) == 1


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        config.load(Recipe, write(tmp_path, "a.toml", "num_rounds = 0\nseed = -1\n"))
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_file_names_the_nearest(tmp_path):
    write(tmp_path, "quickstart.toml", "")
    with pytest.raises(ConfigError, match="did you mean .*quickstart.toml"):
        config.load(Recipe, tmp_path / "quikstart.toml")


def test_broken_toml_names_file_and_line(tmp_path):
    with pytest.raises(ConfigError, match=r"a.toml is not valid TOML.*line 1"):
        config.load(Recipe, write(tmp_path, "a.toml", "num_rounds = = 3"))


def test_the_hash_ignores_name_and_output_alone():
    recipe = Recipe()
    assert recipe.hash() == Recipe(name="other", output="elsewhere").hash()
    assert recipe.hash() != Recipe(seed=1).hash()


def test_every_field_has_a_description():
    def check(model):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            for inner in config._sections_in(field.annotation):
                check(inner)

    check(Recipe)


def test_the_explained_config_loads_back_to_the_same(tmp_path):
    recipe = config.build(
        Recipe,
        {
            "num_clients": 3,
            "output": 'a "b"',
            "schedule": {"name": "torch", "scheduler": "StepLR", "options": {"step_size": 2}},
            "teacher": {"by_client": [{"clients": ["x"], "std": [1, 1, 2]}, {"clients": ["y"]}]},
        },
    )
    text = config.explain(recipe)
    assert config.load(Recipe, write(tmp_path, "a.toml", text)) == recipe
    assert "# Initial step size of the optimiser; see [schedule]." in text


@pytest.mark.parametrize(
    "override",
    [
        "objective.lambda_f=inf",
        "moon.temperature=inf",
        "training.weight_decay=nan",
        "fedprox.mu=inf",
    ],
)
def test_numbers_are_finite(override):
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=f"{key} is (inf|nan) .*it must be"):
        config.load(Recipe, Path(__file__).parents[1] / "configs/quickstart.toml", [override])


def test_an_empty_table_of_free_keys_takes_them_back(tmp_path):
    path = tmp_path / "counts.toml"
    path.write_text("[long_tail]\ncounts = {NV = 20}\n", encoding="utf-8")
    overrides = ["long_tail.counts={}", "long_tail.imbalance_factor=5"]
    recipe = config.load(Recipe, path, overrides)
    assert (recipe.long_tail.counts, recipe.long_tail.imbalance_factor) == ({}, 5)
    with pytest.raises(ConfigError, match="both given"):
        config.load(Recipe, path, overrides[1:])
