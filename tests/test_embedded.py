import json
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from fedkd.errors import TeacherError
from fedkd.models import states
from fedkd.teachers import embedded, zoo
from fedkd.teachers.config import TeacherConfig
from fedkd.teachers.embedded import NAME, embedded_weights
from fedkd.teachers.loading import open_teacher

INSTALLED = zoo.WEIGHTS / NAME


class Distribution:
    """A distribution of fedkd, editable from a folder or not."""

    def __init__(self, url=None):
        self.text = url and json.dumps({"url": url, "dir_info": {"editable": True}})

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.text


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A bundle's package, which has the card but no weights; fedkd is installed nowhere."""
    weights = tmp_path / "app" / "weights"
    weights.mkdir(parents=True)
    (weights / "default.json").write_bytes((zoo.WEIGHTS / "default.json").read_bytes())
    monkeypatch.setattr(zoo, "WEIGHTS", weights)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "app")])
    monkeypatch.setattr(embedded, "distribution", lambda name: Distribution())
    return weights


def install(folder, content=None):
    """Weights as fedkd has them when it is installed in a folder."""
    path = folder / "fedkd" / "teachers" / "weights" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(INSTALLED.read_bytes() if content is None else content)
    return path


def test_the_packages_own_weights_come_first(bundle, tmp_path, monkeypatch):
    install(tmp_path / "site")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    (bundle / NAME).write_bytes(b"own")
    assert embedded_weights() == bundle / NAME


def test_a_bundle_takes_the_weights_of_the_second_fedkd_on_the_path(bundle, tmp_path, monkeypatch):
    there = install(tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, "", str(tmp_path / "site")])
    assert embedded_weights() == there
    teacher = open_teacher(TeacherConfig())
    monkeypatch.setattr(zoo, "WEIGHTS", INSTALLED.parent)
    own = open_teacher(TeacherConfig())
    assert states.sha256(teacher.state_dict()) == states.sha256(own.state_dict())


def test_a_bundle_takes_the_weights_of_an_editable_fedkd(bundle, tmp_path, monkeypatch):
    there = install(tmp_path / "my work")
    url = (tmp_path / "my work").as_uri()
    assert "%20" in url
    monkeypatch.setattr(embedded, "distribution", lambda name: Distribution(url))
    assert embedded_weights() == there


def test_a_wheels_url_is_no_folder(bundle, monkeypatch):
    url = "https://example.org/fedkd-0.1.0-py3-none-any.whl"
    monkeypatch.setattr(embedded, "distribution", lambda name: Distribution(url))
    assert embedded_weights() == bundle / NAME


def test_weights_of_another_fedkd_are_refused_by_the_bundles_card(bundle, tmp_path, monkeypatch):
    install(tmp_path / "site", content=b"another")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    with pytest.raises(TeacherError, match="the file is damaged or another one"):
        open_teacher(TeacherConfig())


def test_without_weights_anywhere_the_error_says_to_install_fedkd(bundle, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(embedded, "distribution", missing)
    with pytest.raises(TeacherError) as error:
        open_teacher(TeacherConfig())
    assert str(error.value) == (
        f"the shipped teacher {bundle / NAME} is missing, and no fedkd that has it is installed in "
        f"{sys.prefix}; install fedkd there (pip install <folder or wheel of fedkd>), as every "
        "site of a federation must"
    )
