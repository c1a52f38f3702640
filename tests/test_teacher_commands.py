"""`fedkd teachers list`, `fetch`, `check` and `card`: what they print, leave and return."""

import dataclasses
import hashlib
import json
import re
import threading

import pytest
import torch
import torchvision

from fedkd import seeding
from fedkd.data import obtain
from fedkd.data.card import Download
from fedkd.errors import FetchError
from fedkd.teachers import zoo
from server.cli import main
from tests.test_fetching import Server

NAME = "resnet18_imagenet_v1"
DEFAULT = zoo.WEIGHTS / "default.safetensors"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder of teachers."""
    path = tmp_path / "teachers"
    monkeypatch.setenv("FEDKD_TEACHERS", str(path))
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file as torchvision's are, of a smaller network, with BatchNorm statistics of 0 and 1."""
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    with seeding.isolated(0, "weights"):
        torch.save(torchvision.models.mobilenet_v2().state_dict(), path)
    return path


@pytest.fixture
def small(monkeypatch):
    """A function that makes NAME a smaller network with a download of its own."""

    def make(url="https://example.org/w.pth", **hashes):
        card = dataclasses.replace(
            zoo.CARDS[NAME],
            architecture="mobilenet_v2",
            num_features=1280,
            download=Download(url, "w.pth", **hashes),
        )
        monkeypatch.setitem(zoo.CARDS, NAME, card)

    return make


def run(capsys, *arguments):
    code = main(["teachers", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def refused(capsys, *arguments):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    return err.splitlines()[-1]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# list


def test_list_has_every_teacher_in_120_columns_and_says_which_are_here(capsys, folder, small):
    small()
    code, out, err = run(capsys, "list")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines()[:-1])) <= 120
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split()}
    assert set(zoo.CARDS) <= set(rows)
    assert rows["default"][1:4] == ["resnet10", "480", "any"]
    assert rows["default"][-2:] == ["3", "embedded"]
    assert rows["moco_v2_r50"][1:4] == ["resnet50", "2048", "224"]
    assert rows[NAME][-1] == "no"
    for name in ("pretrained", "timm:<model>", "torchvision:<model>"):
        assert f"\n{name}: {zoo.TEACHERS[name]}\n" in out
    assert out.endswith(f"files are kept in {folder} (FEDKD_TEACHERS)\n")
    folder.mkdir()
    (folder / "w.pth").write_bytes(bytes(7_400_000))
    row = next(line for line in run(capsys, "list")[1].splitlines() if line.startswith(NAME))
    assert row.split()[-2:] == ["7", "yes"]


# fetch


def test_a_fetched_teacher_can_be_checked(capsys, folder, small, weights):
    with Server() as served:
        served.content = weights.read_bytes()
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        small(served.url, sha256=digest(weights)[:8])
        code, out, _ = run(capsys, "fetch", NAME)
        again = run(capsys, "fetch", NAME)
        served.shutdown()
        thread.join()
    file = folder / "w.pth"
    compared = (
        f"the first digits of its sha256 are as published, {digest(weights)[:8]}; the whole one "
        "kept in w.pth.sha256 to compare with"
    )
    assert code == 0
    assert out == (
        f"{file}  sha256 {digest(weights)} ({compared})\n"
        f"`fedkd teachers check {NAME}` opens it; its licence: {zoo.CARDS[NAME].licence}\n"
    )
    assert again[:2] == (0, out)
    assert served.asked == [None]
    code, out, _ = run(capsys, "check", NAME)
    assert code == 0
    assert out.splitlines()[-1] == (
        f"{NAME}: opened without faults ({compared}); ready for ekd and fopro, whose prior the "
        "first run measures"
    )
    (folder / "w.pth.sha256").write_text(f"{digest(weights)[:8]}{'0' * 56}  w.pth\n")
    assert f"not {digest(weights)[:8]}{'0' * 56}; remove it" in refused(capsys, "check", NAME)


def test_without_a_connection_the_error_says_which_file_belongs_where(
    capsys, folder, small, monkeypatch
):
    def fetch(*_, **__):
        raise FetchError("no connection")

    monkeypatch.setattr(obtain, "fetch", fetch)
    for hashes, text in (
        ({"sha256": "ab" * 32}, f"  sha256 {'ab' * 32}"),
        ({"md5": "a04e12f8"}, "  md5 a04e12f8... (a beginning)"),
        ({}, ""),
    ):
        small(**hashes)
        code, out, err = run(capsys, "fetch", NAME)
        assert (code, out) == (2, "")
        assert [line for line in err.splitlines() if line.startswith("fedkd")] == [
            "fedkd: no connection",
            "fedkd: without a connection bring the file from elsewhere:",
            "fedkd: https://example.org/w.pth",
            f"fedkd:   -> {folder / 'w.pth'}{text}",
        ]


def test_what_nobody_may_fetch_prints_its_steps(capsys, folder):
    code, out, err = run(capsys, "fetch", "radimagenet_r50")
    assert code == 2
    card = zoo.CARDS["radimagenet_r50"]
    assert out == (
        f"radimagenet_r50 cannot be fetched without you:\n{card.steps}\n"
        f"  -> {folder / 'radimagenet_r50.pt'}  sha256 {card.download.sha256}\n"
    )
    missing = re.fullmatch(r"fedkd: (.*) is not there yet; follow the steps above\n", err).group(1)
    folder.mkdir()
    (folder / missing.rpartition("/")[2]).touch()
    code, out, _ = run(capsys, "fetch", "radimagenet_r50")
    assert code == 0
    assert out == (
        f"{missing} is there; `fedkd teachers check radimagenet_r50` shows whether it is whole\n"
    )


def test_the_default_needs_no_fetching(capsys):
    assert run(capsys, "fetch", "default")[:2] == (
        0, "default is shipped with fedkd: there is nothing to fetch\n"
    )  # fmt: skip


def test_a_model_of_timm_is_fetched_from_its_hub(capsys, folder, monkeypatch):
    timm = pytest.importorskip("timm", reason="the extra timm is not installed")
    asked = []

    def fetch(url, path, **_):
        asked.append((url, path.parent))
        return "0" * 64

    monkeypatch.setattr(obtain, "fetch", fetch)
    code, out, _ = run(capsys, "fetch", "timm:resnet10t")
    hub = timm.get_pretrained_cfg("resnet10t").hf_hub_id
    assert code == 0
    assert asked[0][0].startswith(f"https://huggingface.co/{hub}/resolve/main/")
    assert asked[0][1] == folder
    assert "no hash is published" in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fetch", "dinov2"], "dinov2 is no teacher and no file; did you mean dinov2_vit"),
        (["card", "nothing"], "nothing is no teacher and no file; `fedkd teachers list` shows all"),
        (["check", "mocov2_r50"], "mocov2_r50 is no teacher and no file; did you mean moco_v2_r50"),
        (["fetch", "pretrained"], "pretrained is a file of yours: `fedkd pretrain CONFIG` makes"),
        (["card", "pretrained"], "pretrained is a file of yours; name the file itself"),
        (
            ["fetch", "torchvision:resnet18"],
            "torchvision:resnet18 has no file that anybody publishes as its own; name yours in "
            "teacher.checkpoint",
        ),
        (["fetch", "torchvision:resnet19"], "teacher.name is 'torchvision:resnet19', but"),
        (["check", "default", "precison=full"], "unknown key teacher.precison on the command line"),
        (["check", "none.safetensors"], "teacher.checkpoint is none.safetensors, but there is no"),
        (["card", "none.safetensors"], "there is no card none.json beside the weights; `fedkd pre"),
    ],
)
def test_wrong_names_and_settings_are_one_line_and_code_2(capsys, arguments, text):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"fedkd: {text}")
    assert len(err.splitlines()) == 1


def test_an_action_is_required(capsys):
    with pytest.raises(SystemExit) as end:
        main(["teachers"])
    assert end.value.code == 2
    assert "ACTION" in capsys.readouterr().err


# check


def test_check_says_what_the_default_is(capsys):
    code, out, _ = run(capsys, "check", "default", "input_size=32")
    assert code == 0
    facts = {line[:12].strip(): line[12:].strip() for line in out.splitlines()[1:-1]}
    assert facts == {
        "file": str(DEFAULT),
        "size": "2.7 MB",
        "sha256": f"{digest(DEFAULT)} (as its card says)",
        "network": "resnet10 (SmallResNet)",
        "parameters": "1.23 M, and 0.10 M in its head",
        "features": "480",
        "input": "resized to 32 px, minus [0.5, 0.5, 0.5], divided by [0.25, 0.25, 0.25]",
        "head": "contrastive: the confidence of Fourier prompts compares its embeddings",
        "BatchNorm": "12 layers with usable statistics: they are the prior of Fourier prompts",
    }
    assert out.splitlines()[-1] == (
        "default: opened without faults (as its card says); ready for ekd and fopro"
    )


def test_check_takes_a_file_that_pretrain_wrote(capsys, tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(DEFAULT.read_bytes())
    out = run(capsys, "check", path)[1]
    assert f"{path}: opened without faults (there is no card beside it to compare with)" in out
    card = path.with_suffix(".json")
    card.write_text(DEFAULT.with_suffix(".json").read_text())
    assert f"{path}: opened without faults (as its card says)" in run(capsys, "check", path)[1]
    named = run(capsys, "check", "pretrained", f"checkpoint={path}", f"sha256={digest(path)}")
    assert "(as teacher.sha256 says)" in named[1]
    card.write_text('{"sha256": "123"}')
    assert refused(capsys, "check", path) == (
        f"fedkd: {path} is damaged, or {card} is the card of another file: the sha256 is "
        f"{digest(path)}, the card says 123; get both again"
    )
    card.write_text("[]")
    assert "must be a table of names and values" in refused(capsys, "check", path)


def test_check_says_that_folded_statistics_need_a_measured_prior(capsys, weights):
    code, out, _ = run(capsys, "check", "torchvision:mobilenet_v2", f"checkpoint={weights}")
    assert code == 0
    assert "(no hash is known to compare with)" in out
    assert re.search(r"network +mobilenet_v2 \(MobileNetV2\)", out)
    assert re.search(
        r"BatchNorm +52 layers, their statistics folded away: the prior of Fourier prompts is "
        "measured once on reference images", out
    )  # fmt: skip


def test_check_of_what_is_not_there_says_how_to_get_it(capsys, folder):
    assert refused(capsys, "check", "moco_v2_r50") == (
        f"fedkd: {folder / 'moco_v2_800ep_pretrain.pth.tar'} is not there; `fedkd teachers fetch "
        "moco_v2_r50` fetches it or says how to get it; or name your own file, checkpoint=<file>"
    )


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        (
            "0.0.weight",
            float("inf"),
            "holds weights that are not finite in features.0.0.weight; it",
        ),
        ("0.1.running_var", -1.0, "gives features that are not finite on procedural images"),
        ("0.0.weight", 0.0, "gives the same features for all images: it has learnt nothing"),
    ],
)
def test_weights_that_are_spoilt_are_refused(capsys, weights, tmp_path, key, value, text):
    state = torch.load(weights, weights_only=True)
    state[f"features.{key}"].fill_(value)
    path = tmp_path / "spoilt.pth"
    torch.save(state, path)
    settings = ("check", "torchvision:mobilenet_v2", f"checkpoint={path}")
    assert refused(capsys, *settings).startswith(f"fedkd: {path} {text}")


def test_check_of_a_truncated_file_is_refused(capsys, folder, small, weights):
    folder.mkdir()
    (folder / "w.pth").write_bytes(weights.read_bytes()[:-100])
    small()
    assert f"{folder / 'w.pth'}" in refused(capsys, "check", NAME)
    small(sha256=digest(weights))
    assert f"not {digest(weights)}; remove it to fetch it again" in refused(capsys, "check", NAME)


# card


def plain_values(value):
    """All single values in a card, lists within rows of a table aside."""
    if isinstance(value, dict):
        return [v for inner in value.values() for v in plain_values(inner)]
    if isinstance(value, list):
        rows = [row for row in value if isinstance(row, dict)]
        kept = [{k: v for k, v in row.items() if not isinstance(v, list)} for row in rows]
        return [v for inner in kept or value for v in plain_values(inner)]
    return [] if value is None else [str(value)]


def test_the_card_of_the_default_is_printed_whole_with_its_probe_and_its_command(capsys, tmp_path):
    code, out, _ = run(capsys, "card", "default")
    assert code == 0
    card = json.loads(DEFAULT.with_suffix(".json").read_text())
    squeezed = "".join(out.split())
    for value in plain_values(card):
        if len(value) < 14:
            assert "".join(value.split()) in squeezed
    assert "".join(card["probe"]["command"].split()) in squeezed
    assert re.search(r"teacher +test +3 +0.6019 +0.026 +0.9063 +0.002 +-", out)
    assert out.endswith(f"the whole card is {DEFAULT.with_suffix('.json')}\n")
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"")
    path.with_suffix(".json").write_text('{"name": "mine", "method": "MoCo [v2]", "x": {"y": 1}}')
    out = run(capsys, "card", path)[1]
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[1:6] == ["  name    mine", "  method  MoCo [v2]", "", "x", "  y  1"]


def test_the_card_of_a_zoo_teacher_says_what_is_published_and_where_its_file_belongs(
    capsys, folder
):
    code, out, _ = run(capsys, "card", "moco_v2_r50")
    assert code == 0
    card = zoo.CARDS["moco_v2_r50"]
    for text in (card.method, card.data, card.licence, card.source, card.citation,
                 card.download.url, card.download.md5):  # fmt: skip
        assert "".join(text.split()) in "".join(out.split())
    place = folder / card.download.path
    assert "".join(f"{place} (it is not there)".split()) in "".join(out.split())
