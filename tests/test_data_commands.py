"""`fedkd data list`, `fetch` and `check`: what they print, leave and return."""

import hashlib
import re
import sys
import threading
import time
import zipfile

import pytest
from PIL import Image

from fedkd.data import catalog, obtain
from fedkd.data.card import DataCard, Download
from fedkd.data.catalog import DATASETS
from fedkd.data.sets import fed_isic2019, isic2019_lt
from fedkd.data.sets.fed_isic2019 import FedIsic2019Config
from fedkd.data.sets.isic2019_lt import Isic2019LtConfig
from fedkd.errors import ConfigError, FetchError
from server.cli import main
from tests.image_project import Project
from tests.isic_files import save_isic_lt

URL = "https://example.org/"
SHA256 = hashlib.sha256(b"list").hexdigest()


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty folder of all data."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("FEDKD_DATA", str(folder))
    return folder


@pytest.fixture
def published(monkeypatch):
    """A function that puts another card on isic2019_lt, and files behind its addresses."""

    def make(files, **fields):
        entry = DATASETS["isic2019_lt"]._replace(card=DataCard("Small", **fields), card_for=None)
        monkeypatch.setitem(DATASETS, "isic2019_lt", entry)

        def fetch(url, path, *, sha256, md5, progress):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[url])
            progress(len(files[url]), None)
            asked.append(url)
            return hashlib.sha256(files[url]).hexdigest()

        monkeypatch.setattr(obtain, "fetch", fetch)
        return asked

    asked = []
    return make


def run(capsys, *arguments):
    code = main(["data", *arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_a_second_process_waits_and_then_finds_the_files_there(store, monkeypatch):
    files = (Download(f"{URL}a", "a"), Download(f"{URL}b", "b"))
    inside, most, fetched = [], [], []

    def fetch(_, path, **__):
        inside.append(path)
        most.append(len(inside))
        if not path.exists():
            time.sleep(0.05)
            path.write_bytes(b"x")
            fetched.append(path.name)
        inside.remove(path)
        return "hash"

    monkeypatch.setattr(obtain, "fetch", fetch)
    arguments = (files, store, lambda *_: None, lambda *_: None)
    threads = [threading.Thread(target=obtain.fetch_all, args=arguments) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (max(most), fetched) == (1, ["a", "b"])


# The cards


def test_the_cards_of_isic_know_the_settings():
    lt = catalog.card(Isic2019LtConfig(imbalance_factor=0.002))
    assert sum(lt.class_counts.values()) == 21982
    assert lt.class_counts["DF"] == 175
    assert catalog.card(Isic2019LtConfig(fold=2)).class_counts == {}
    fed = catalog.card(FedIsic2019Config())
    assert sum(fed.class_counts.values()) == sum(fed.site_counts.values()) == 23247
    four = catalog.card(FedIsic2019Config(centers=(1, 2, 3, 5)))
    assert four.class_counts["AK"] == 130
    assert four.site_counts == {
        "center-1-vidir_molemax": 3954,
        "center-2-vidir_modern": 3363,
        "center-3-rosendahl": 2259,
        "center-5-vienna_dias": 439,
    }
    assert catalog.card(FedIsic2019Config(fold=2)).class_counts == {}


@pytest.mark.parametrize("name", DATASETS)
def test_every_download_has_an_address_a_place_and_at_most_well_formed_hashes(name):
    for item in DATASETS[name].card.downloads:
        assert item.url.startswith("https://")
        assert not item.path.startswith("/")
        assert re.fullmatch(r"[0-9a-f]{64}", item.sha256 or "0" * 64)
        assert re.fullmatch(r"[0-9a-f]{32}", item.md5 or "0" * 32)


@pytest.mark.realdata
@pytest.mark.parametrize(("module", "num_known"), [(fed_isic2019, 12), (isic2019_lt, 9)])
def test_the_hashes_of_the_lists_are_those_of_genuine_copies(realdata, module, num_known):
    known = [item for item in module.CARD.downloads if item.sha256]
    assert len(known) == num_known
    for item in known:
        assert hashlib.sha256((realdata / item.path).read_bytes()).hexdigest() == item.sha256


# list


def test_list_has_a_row_for_every_data_set(store, capsys):
    code, out, err = run(capsys, "list")
    assert (code, err) == (0, "")
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    assert set(DATASETS) <= set(rows)
    assert rows["lesions"].endswith(" embedded │")
    assert rows["folder"].endswith(" your own │")
    assert re.search(r" 23,247 │ +8 │ +6 │ CC BY-NC 4.0.*│ no +│$", rows["fed_isic2019"])


def test_list_says_what_is_there_and_what_it_cannot_know(store, capsys, monkeypatch, published):
    published({})
    for folder in ("isic2019/images", "splits/isic_lt"):
        (store / folder).mkdir(parents=True)
    assert re.search(r"isic2019_lt .*│ no ", run(capsys, "list")[1])
    for folder in ("isic2019/images", "splits/isic_lt"):
        (store / folder / "file").touch()
    assert re.search(r"isic2019_lt .*│ yes ", run(capsys, "list")[1])
    monkeypatch.delenv("FEDKD_DATA")
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert re.search(r"isic2019_lt .*│ \? ", out)
    assert out.endswith("start the command with FEDKD_DATA=<folder of all data sets>\n")


# fetch


def test_fetch_downloads_and_says_what_is_left_to_do(store, capsys, published):
    asked = published(
        {f"{URL}a": b"list", f"{URL}b": b"list", f"{URL}c": b"list"},
        downloads=(
            Download(f"{URL}a", "splits/isic_lt/a.csv", sha256=SHA256),
            Download(f"{URL}b", "splits/isic_lt/b.csv", md5="1" * 32),
            Download(f"{URL}c", "splits/isic_lt/c.csv"),
        ),
        steps="1. Go there.\n2. Accept.",
    )
    code, out, err = run(capsys, "fetch", "isic2019_lt")
    folder = store / "splits" / "isic_lt"
    assert code == 2
    assert len(asked) == 3
    assert out == (
        f"{folder}/a.csv  sha256 {SHA256} (as published)\n"
        f"{folder}/b.csv  sha256 {SHA256} (its md5 is as published)\n"
        f"{folder}/c.csv  sha256 {SHA256} (no hash is published; kept in c.csv.sha256 to compare "
        "with)\n"
        "\nSmall cannot be fetched without you:\n1. Go there.\n2. Accept.\n"
    )
    assert err.splitlines()[-1] == (
        f"fedkd: isic2019_lt is not complete: {store}/isic2019/images is not there yet; "
        "follow the steps above"
    )


def test_fetch_of_a_complete_data_set_succeeds(store, capsys, published):
    for folder in ("isic2019/images", "splits/isic_lt"):
        (store / folder).mkdir(parents=True)
        (store / folder / "file").touch()
    published({}, steps="1. Go there.")
    code, out, _ = run(capsys, "fetch", "isic2019_lt")
    assert code == 0
    assert out == (
        "what can be fetched is there; `fedkd data check isic2019_lt` shows whether it is whole\n"
    )


def test_an_archive_is_unpacked_mends_what_is_lost_and_may_be_deleted(
    store, capsys, published, tmp_path
):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("ISIC_1.jpg", b"pixels")
    asked = published(
        {f"{URL}z": (tmp_path / "z.zip").read_bytes()},
        downloads=(Download(f"{URL}z", "isic2019/z.zip", unpack="isic2019/images"),),
    )
    run(capsys, "fetch", "isic2019_lt")
    image = store / "isic2019" / "images" / "ISIC_1.jpg"
    for _ in range(2):
        assert image.read_bytes() == b"pixels"
        image.unlink()
        run(capsys, "fetch", "isic2019_lt")
    (store / "isic2019" / "z.zip").unlink()
    asked.clear()
    out = run(capsys, "fetch", "isic2019_lt")[1]
    assert out.startswith(f"{store}/isic2019/z.zip  unpacked before\n")
    assert asked == []


def test_the_files_of_isic_are_those_of_the_card(store, capsys, monkeypatch):
    asked = []

    def fetch(url, path, **_):
        asked.append(url)
        return SHA256

    monkeypatch.setattr(obtain, "fetch", fetch)
    code, out, err = run(capsys, "fetch", "fed_isic2019")
    assert code == 2
    assert len(asked) == 12
    assert asked[1] == (
        "https://raw.githubusercontent.com/xmed-lab/Fed-MAS/b656e7df1fac0a42596aca43432118ce2a5238bc"
        "/data/Flamby_isic/val_flamby_isic_fl_0_1.csv"
    )
    assert "1. Read the terms of use at https://challenge.isic-archive.com/data/#2019" in out
    assert "$FEDKD_DATA/isic2019/images/ISIC_0000000.jpg ..." in out


@pytest.mark.parametrize("name", ["lesions", "folder"])
def test_what_needs_no_fetching_is_said(capsys, monkeypatch, name):
    monkeypatch.delenv("FEDKD_DATA", raising=False)
    code, out, _ = run(capsys, "fetch", name)
    assert code == 0
    assert out.rstrip().endswith(": there is nothing to fetch")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fetch", "fed_isic"], "fed_isic is no data set and no recipe; did you mean fed_isic2019"),
        (["check", "lesion"], "lesion is no data set and no recipe; did you mean lesions?"),
        (["check", "lesion.toml"], "there is no config file lesion.toml"),
        (["fetch", "isic2019_lt", "sise=3"], "unknown key data.sise .*; did you mean data.size"),
        (["check", "lesions", "size=3"], "data.size is 3 on the command line; it must be"),
        (["check", "folder"], "data.images is missing .*; it must be given"),
        (["check", "lesions", "size"], "override 'data.size' is not key=value"),
    ],
)
def test_wrong_names_and_settings_are_one_line_and_code_2(store, capsys, arguments, text):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert re.match(f"fedkd: {text}", err)


@pytest.mark.parametrize("action", ["fetch", "check"])
def test_without_the_folder_of_all_data_the_variable_is_named(capsys, monkeypatch, action):
    monkeypatch.delenv("FEDKD_DATA", raising=False)
    code, out, err = run(capsys, action, "isic2019_lt")
    assert (code, out) == (2, "")
    assert "the environment variable FEDKD_DATA is not set; start the command with" in err


def test_the_error_of_the_folder_of_all_data(monkeypatch):
    monkeypatch.delenv("FEDKD_DATA", raising=False)
    with pytest.raises(ConfigError) as caught:
        obtain.paths.data_dir()
    assert str(caught.value) == (
        "the environment variable FEDKD_DATA is not set; start the command with "
        "FEDKD_DATA=<folder>, the folder in which all data sets are kept"
    )


# check


def test_check_prints_both_tables_and_a_verdict(capsys):
    code, out, err = run(capsys, "check", "lesions", "size=16", "num_train=64", "num_sites=2",
                         "num_val_per_class=2", "num_test_per_class=2")  # fmt: skip
    assert code == 0
    assert re.search(r"│ MEL +│ +\d+ │ +2 │ +2 │ +\d+ │\n", out)
    assert re.search(r"│ hospital_1 +│", out)
    assert re.search(r"│ all +│ +64 │ +16 │ +16 │ +96 │\n", out)
    assert out.endswith(
        "lesions: 96 images, without faults; there are no published counts to compare with\n"
    )
    assert "drawing 96 synthetic lesion images" in err


def test_check_of_a_recipe_with_a_leak_is_code_2_with_a_line(tmp_path, capsys):
    project = Project(tmp_path)
    (tmp_path / "images" / "c.jpg").write_bytes((tmp_path / "images" / "a.jpg").read_bytes())
    project.write()
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        f'[data]\nname = "folder"\nimages = "{project.images}"\ncsv = "{tmp_path}/table.csv"\n'
        'site_column = "site"\n'
    )
    code, out, err = run(capsys, "check", str(recipe), "data.size=16")
    assert code == 2
    assert out.endswith("folder: 4 images, with faults\n")
    faults = [line for line in err.splitlines() if line.startswith("fedkd: ")]
    assert faults == [
        "fedkd: 1 set(s) of images with equal pixels are in both train and val: a (train, nv) = "
        "c (val, nv)"
    ]


def test_check_compares_with_what_is_published(store, capsys, published):
    rows = {split: [(f"{split}{n}", 0, n) for n in range(8)] for split in ("train", "val", "test")}
    (store / "splits").mkdir()
    save_isic_lt(store / "splits" / "isic_lt", rows)
    images = store / "isic2019" / "images"
    images.mkdir(parents=True)
    for number, (name, _, _) in enumerate(row for own in rows.values() for row in own):
        Image.new("RGB", (20, 12), (10 * number, 90, 60)).save(images / f"{name}.jpg")
    names = isic2019_lt.CLASS_NAMES
    published({}, class_counts=dict.fromkeys(names, 3), source=URL)
    code, out, _ = run(capsys, "check", "isic2019_lt", "size=16")
    assert code == 0
    assert re.search(r"│ all +│ +8 │ +8 │ +8 │ +24 │ +24 │", out)
    assert out.endswith("isic2019_lt: 24 images, as many as published, without faults\n")
    published({}, class_counts={**dict.fromkeys(names, 3), "DF": 4}, source=URL)
    code, out, err = run(capsys, "check", "isic2019_lt", "size=16")
    assert code == 2
    assert err.endswith("fedkd: class DF has 3 images, 4 are published\n")


def test_check_of_what_is_not_there_says_how_to_get_it(store, capsys):
    code, out, err = run(capsys, "check", "isic2019_lt")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == (
        "fedkd: `fedkd data fetch isic2019_lt` says how to get the data set"
    )


def test_an_action_is_required(capsys):
    with pytest.raises(SystemExit) as end:
        main(["data"])
    assert end.value.code == 2
    assert "ACTION" in capsys.readouterr().err


def test_without_a_connection_fetch_says_which_file_belongs_where(
    store, published, capsys, monkeypatch
):
    def fetch(*_, **__):
        raise FetchError("no connection")

    lists = (
        Download(URL + "a.csv", "lists/a.csv", sha256=SHA256),
        Download(URL + "b.csv", "lists/b.csv"),
    )
    published({}, downloads=lists, steps="1. Read the terms.")
    monkeypatch.setattr(obtain, "fetch", fetch)
    (store / "lists").mkdir()
    (store / "lists" / "b.csv").write_text("there")
    code, out, err = run(capsys, "fetch", "isic2019_lt")
    assert code == 2
    assert f"{URL}a.csv\n  -> {store / 'lists' / 'a.csv'}  sha256 {SHA256}\n" in out
    assert "b.csv" not in out
    assert "1. Read the terms." in out
    assert err.rstrip().endswith("fedkd: no connection")


def test_list_needs_no_extra(store, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "medmnist.info", None)
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert "medmnist" in out
    code, _, err = run(capsys, "fetch", "medmnist")
    assert code == 2
    assert "pip install 'fedkd[medmnist]'" in err
