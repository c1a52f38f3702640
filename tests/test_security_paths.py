"""Nothing outside the folders that were named is read or written; what never ends is not begun."""

import os
import stat
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from fedkd import config
from fedkd.data.image_files import decode_file
from fedkd.data.site_writing import write_sites
from fedkd.errors import ConfigError, DataError, FedkdError
from fedkd.experiment import open_data
from fedkd.partitions import manifest
from fedkd.pretraining.config import PretrainConfig
from fedkd.recipe import Recipe
from fedkd.site import open_site
from server.cli import main
from server.engines import flower
from tests.image_project import Project
from tests.site_federation import recipe_with, write_folders

ROOT = Path(__file__).parents[1]


@pytest.fixture
def pipe(tmp_path):
    """A pipe that nobody writes to: who opens it waits for ever."""
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    return path


# Names that become paths


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "../up", "a/b", "-x", "a\n", ""])
@pytest.mark.parametrize("model", [Recipe, PretrainConfig])
def test_a_name_that_leads_out_of_the_output_is_refused(name, model):
    with pytest.raises(ConfigError, match=r"^name is "):
        config.build(model, {"name": name})


def test_ids_that_lead_out_become_plain_names_in_folders_of_sites(tmp_path):
    splits, divided = open_data(recipe_with())
    bad = ("../../up", "/etc/passwd", "..", "a\nb", "a/../../b", "-rf", "%00", "C:\\x")
    train = splits.train
    ids = tuple(f"{bad[n]}.png" if n < len(bad) else name for n, name in enumerate(train.ids))
    divided = replace(divided, client_names=("../up", "/etc", ".."))
    splits = replace(splits, train=replace(train, ids=ids))
    written = write_sites(tmp_path / "in" / "sites", splits, divided, 0, {})
    assert {path.parent for path in written} == {tmp_path / "in" / "sites"}
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["sites"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    images = [path for path in files if path.suffix == ".png"]
    assert len(images) == sum(len(part) for part in (train, splits.val, splits.val, splits.test))
    assert {path.parent.parent.parent for path in images} == {tmp_path / "in" / "sites"}


# Links


def test_links_out_of_a_hospitals_images_are_refused(tmp_path):
    recipe = recipe_with(objective={"name": "supervised"})
    sites, _ = write_folders(recipe, tmp_path / "sites")
    image = sorted((sites[0] / "images").iterdir())[0]
    elsewhere = tmp_path / "elsewhere.png"
    image.rename(elsewhere)
    image.symlink_to(elsewhere)
    with pytest.raises(DataError) as refused:
        open_site(recipe, 0, 3, sites[0])
    assert "1 row(s) are links out of the folder images: row " in str(refused.value)
    assert "; copy the files themselves there" in str(refused.value)


def test_the_folder_of_images_may_be_a_link_and_links_may_stay_inside(tmp_path):
    recipe = recipe_with(objective={"name": "supervised"})
    sites, _ = write_folders(recipe, tmp_path / "sites")
    before = open_site(recipe, 0, 3, sites[0]).splits.train.images[:]
    (sites[0] / "images").rename(tmp_path / "archive")
    (sites[0] / "images").symlink_to(tmp_path / "archive")
    image = sorted((tmp_path / "archive").iterdir())[0]
    image.rename(tmp_path / "archive" / "other")
    image.symlink_to("other")
    after = open_site(recipe, 0, 3, sites[0]).splits.train.images[:]
    assert (before == after).all()


# Pipes and devices


def test_pipes_and_devices_that_a_table_or_a_folder_holds_are_not_read(tmp_path, pipe):
    os.symlink("/dev/zero", tmp_path / "zero.png")
    assert decode_file(pipe, 16) == "is no regular file"
    assert decode_file(tmp_path / "zero.png", 16) == "is no regular file"


def test_a_table_that_names_pipes_and_devices_is_refused(tmp_path):
    project = Project(tmp_path)
    os.mkfifo(project.images / "pipe.jpg")
    (project.images / "zero.jpg").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        project.rows.append((name, "mel", "south", "train", ""))
    text = project.error()
    assert "2 row(s) name a file that does not exist: " in text
    assert "/pipe.jpg" in text
    assert "/zero.jpg" in text


def test_files_that_a_recipe_names_are_no_pipes(pipe, tmp_path):
    (tmp_path / "recipe.toml").write_text('extends = "pipe.png"\n')
    with pytest.raises(ConfigError, match=r"extends is 'pipe.png' in .*which is no regular file"):
        config.load(Recipe, tmp_path / "recipe.toml")
    with pytest.raises(FedkdError, match=r"partition.file is .*pipe.png, which is no regular file"):
        manifest.read(pipe)
    (tmp_path / "labels.csv").symlink_to(pipe)
    (tmp_path / "site.json").symlink_to("/dev/zero")
    with pytest.raises(DataError) as refused:
        open_site(recipe_with(), 0, 3, tmp_path)
    assert str(refused.value).count("which is no regular file; name a file that ends") == 2


# Images


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (15, 15)).save(tmp_path / "bomb.png")
    assert decode_file(tmp_path / "bomb.png", 16).startswith("DecompressionBombError: ")


def test_pillow_bounds_pixels_by_itself():
    assert Image.MAX_IMAGE_PIXELS == 1024**3 // 4 // 3


@pytest.mark.parametrize("name", ["a.eps", "a.jpg"])
def test_eps_is_not_given_to_ghostscript(tmp_path, monkeypatch, name):
    Image.new("RGB", (8, 8)).save(tmp_path / name, format="EPS")
    called = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a: called.append(a))
    assert "cannot identify image file" in decode_file(tmp_path / name, 16)
    assert not called


# What this machine's other users may read


def test_files_with_code_lie_where_this_user_alone_writes(monkeypatch):
    seen = []

    class Stop(Exception):
        pass

    def note(clients, folder):
        seen.append(stat.S_IMODE(folder.stat().st_mode))
        raise Stop

    monkeypatch.setattr(flower, "_Runtime", note)
    before = os.umask(0)
    try:
        with pytest.raises(Stop):
            flower.run(lambda grid: None, None)
        seen.append(stat.S_IMODE(Path(tempfile.mkdtemp()).stat().st_mode))
    finally:
        os.umask(before)
    assert seen == [0o700, 0o700]


def test_private_keys_are_readable_by_their_owner_alone(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "configs/deploy"))
    import certificates

    for name in ("server.key", "hospital"):
        (tmp_path / name).write_text("an older key")
        (tmp_path / name).chmod(0o644)
    certificates.make_certificates(tmp_path)
    certificates.make_key_pair(tmp_path / "hospital")
    for name in ("server.key", "hospital"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        assert b"PRIVATE KEY" in (tmp_path / name).read_bytes()


def test_what_a_hospital_writes_is_readable_by_its_account_alone(tmp_path):
    program = tmp_path / "flower-supernode"
    program.write_text("#!/bin/sh\numask\n")
    program.chmod(0o755)
    environment = {"SUPERLINK": "x", "PARTITION": "0", "DATA": "x", "CA": "x", "KEY": "x"}
    script = ROOT / "configs/deploy/hospital.sh"
    done = subprocess.run(
        ["sh", script],
        env={**environment, "PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout, 8) == 0o077


# Secrets


def test_an_address_with_a_password_is_refused_and_not_shown(tmp_path, capsys):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[engine]\nname = "ray"\naddress = "ray://me:geheim@cluster:10001"\n')
    assert main(["config", str(recipe)]) == 2
    said = capsys.readouterr()
    assert said.err == (
        f"fedkd: engine.address in {recipe} is an address with a password; configs are saved with "
        "every run, so take it out, and give it to the program that asks for it otherwise\n"
    )
    assert main(["config", str(recipe), "engine.address=ray://cluster:10001"]) == 0


def test_variables_of_the_environment_are_not_filled_in_where_a_recipe_is_saved(monkeypatch):
    monkeypatch.setenv("FEDKD_DATA", "/home/somebody/secret")
    data = {"name": "ham10000", "images": "${FEDKD_DATA}/i", "metadata": "${FEDKD_DATA}/m.csv"}
    saved = config.dump(config.build(Recipe, {"data": data}))
    assert "${FEDKD_DATA}/i" in saved
    assert "secret" not in saved
