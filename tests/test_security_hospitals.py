"""What a hospital's errors tell the server, and what a hostile hospital can tell it."""

import pytest

from fedkd.errors import ClientFailure, ConfigError, StudentError, TeacherError
from fedkd.site import SiteAnswer, open_server, open_site
from tests.site_federation import recipe_with, run_sites, write_folders

SECRET = "/data/north/Jane Doe 1950/teacher.pt"
ELSE = (
    "; its own log says why, which does not leave the hospital, as it may name files and patients"
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    recipe = recipe_with(objective={"name": "supervised"}, num_rounds=1)
    folder = tmp_path_factory.mktemp("small")
    return recipe, *write_folders(recipe, folder / "sites")


def failing(small, tmp_path, monkeypatch, error):
    """What the server is told when a hospital raises this in training, and what it has written."""
    recipe, sites, server = small

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("clients.node.train_epochs", fail)
    recipe = recipe.model_copy(update={"output": str(tmp_path / "runs")})
    with pytest.raises(ClientFailure) as failed:
        run_sites(recipe, tmp_path / "r.toml", sites, server)
    (run,) = (tmp_path / "runs" / "sites").iterdir()
    written = "".join(
        p.read_text() for p in run.rglob("*") if p.suffix in (".csv", ".json", ".txt")
    )
    return str(failed.value), written


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TeacherError(f"{SECRET} has sha256 1234"), "client 0 failed (TeacherError)"),
        (ConfigError(f"cannot read {SECRET}"), "client 0 failed (ConfigError)"),
        (StudentError(r"C:\Jane Doe\x.pt is damaged"), "client 0 failed (StudentError)"),
        (RuntimeError(f"patient Jane Doe in {SECRET}"), "client 0 failed (RuntimeError)"),
        (KeyError("Jane Doe"), "client 0 failed (KeyError)"),
        (FileNotFoundError(2, "No such file", SECRET), "client 0 cannot use the images of its"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_at_a_hospital_names_no_file_and_no_patient_to_the_server(
    small, tmp_path, monkeypatch, caplog, capsys, error, told
):
    text, written = failing(small, tmp_path, monkeypatch, error)
    assert told in text
    assert ELSE in text
    for word in ("Jane", "Doe", "north/", "Traceback", "train_epochs", str(tmp_path)):
        assert word not in text, word
        assert word not in written.replace("Traceback", ""), word
    assert "Jane Doe" in caplog.text + capsys.readouterr().err


def test_an_error_that_names_no_path_says_how_to_mend_it(small, tmp_path, monkeypatch):
    error = ConfigError("training.batch_size is 7; set it to 8")
    text, _ = failing(small, tmp_path, monkeypatch, error)
    assert "client 0 failed: training.batch_size is 7; set it to 8" in text


# A hospital that the server need not trust


def answers(small, **changes):
    recipe, sites, _ = small
    good = {n: SiteAnswer.of(open_site(recipe, n, 3, path)) for n, path in enumerate(sites)}
    good[1] = SiteAnswer(**{**vars(good[1]), **changes})
    return good


@pytest.mark.parametrize(
    "counts", [(10**15,) + (0,) * 7, (-1,) + (2,) * 7, (1,) * 9], ids=["many", "negative", "long"]
)
@pytest.mark.parametrize("key", ["train_counts", "val_counts"])
def test_a_hospital_cannot_fill_the_servers_memory_with_numbers(small, key, counts):
    recipe, _, server = small
    with pytest.raises(ConfigError) as refused:
        open_server(recipe, answers(small, **{key: counts}), server)
    assert str(refused.value) == (
        f"client 1 (hospital_1) says that its classes have {counts} images; there must be one "
        "number for each class, 0 or more, at most 100,000,000 in all"
    )


@pytest.mark.parametrize("name", ["\x1b[2J" + "x" * 10, "x" * 201, "a\nb"])
def test_a_hospitals_name_is_short_and_printable(small, name):
    recipe, _, server = small
    with pytest.raises(ConfigError) as refused:
        open_server(recipe, answers(small, name=name), server)
    assert str(refused.value) == (
        f"client 1 has a name of {len(name)} characters, {name[:20]!r}; it must be 200 at most, "
        "all printable"
    )
