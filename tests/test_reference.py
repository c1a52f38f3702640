"""Feature moments of teachers without BatchNorm: which images, measured once, kept with a hash."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from scipy.stats import spearmanr
from torch import nn

from fedkd import seeding
from fedkd.data.dead_leaves import dead_leaves
from fedkd.errors import DataError, TeacherError
from fedkd.teachers import reference
from fedkd.teachers.config import TeacherConfig
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.loading import open_teacher
from fedkd.teachers.moments import Moments, moment_divergence
from fedkd.teachers.moments_file import read_moments, write_moments
from fedkd.teachers.reference import measure_reference
from server import simulate

SIZE = 12


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of kept moments, which is not there yet."""
    monkeypatch.setenv("FEDKD_TEACHERS", str(tmp_path / "teachers"))
    return tmp_path / "teachers" / "moments"


@pytest.fixture
def drawn(monkeypatch):
    """How often, and how, procedural images are drawn."""
    calls = []
    draw = reference.dead_leaves
    monkeypatch.setattr(
        reference, "dead_leaves", lambda *a, **k: calls.append((*a, k["seed"])) or draw(*a, **k)
    )
    return calls


def bare(seed=0, activation=nn.ReLU, **values):
    """A teacher without BatchNorm."""
    with seeding.isolated(seed, "bare"):
        conv = nn.Conv2d(3, 4, 3)
    backbone = nn.Sequential(conv, activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    values = {"mean": None, "std": None, "input_size": None, **values}
    return Teacher("bare", backbone, num_features=4, head=None, head_kind="none", **values)


def settings(**values):
    return TeacherConfig(**{"reference_images": 32, **values})


def measured(teacher=None, size=SIZE, **values):
    teacher = teacher or bare()
    measure_reference(teacher, settings(**values), size)
    return teacher.reference


def equal(first, second):
    return list(first) == list(second) and all(
        torch.equal(a, b) and a.dtype == b.dtype == torch.float64
        for name in first
        for a, b in zip(first[name], second[name], strict=True)
    )


def save_photographs(folder, num=40):
    """Files of noise around a colour, in three formats and folders."""
    rng = seeding.rng(0, "photographs")
    for number in range(num):
        path = folder / f"{number % 3}" / f"{number}.{('png', 'jpg', 'bmp')[number % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (9, 13, 3)) // 2 + rng.integers(0, 128, (1, 1, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    (folder / "readme.txt").write_text("no image")
    return folder


# Kept moments


def test_moments_from_the_file_are_those_that_were_measured_to_the_bit(kept, drawn):
    first = measured()
    assert drawn == [(32, SIZE, 0)]
    assert [path.name[:8] for path in kept.iterdir()] == ["default-"]
    teacher = bare()
    measure_reference(teacher, settings(), SIZE, keep=False)
    assert equal(first, teacher.reference), "the file changes nothing"
    drawn.clear()
    assert equal(measured(), first)
    assert drawn == [], "nothing is drawn or measured a second time"


def test_the_file_says_what_was_measured(kept):
    measured(bare(input_size=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))
    with safe_open(next(kept.iterdir()), "pt") as file:
        text = file.metadata()["settings"]
    for part in ('"images": "32 dead leaves, seed 0"', '"image_size": 12', '"input_size": 16',
                 '"mean": [0.5, 0.5, 0.5]', '"precision": "full"', '"torch.float32"'):  # fmt: skip
        assert part in text


@pytest.mark.parametrize(
    ("teacher", "values"),
    [
        ({"seed": 1}, {}),
        ({"activation": nn.GELU}, {}),
        ({"input_size": 16}, {}),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}, {}),
        ({}, {"size": 13}),
        ({}, {"reference_images": 33}),
        ({"precision": "bfloat16"}, {}),
        ({}, {"name": "pretrained", "checkpoint": "x"}),
    ],
)
def test_another_teacher_number_size_or_precision_has_a_file_of_its_own(
    kept, drawn, teacher, values
):
    measured()
    measured(bare(**teacher), **values)
    assert len(list(kept.iterdir())) == 2
    assert len(drawn) == 2


def test_another_dtype_and_number_of_threads_have_files_of_their_own(kept):
    measured()
    measured(bare().double())
    torch.set_num_threads(2)
    try:
        measured()
    finally:
        torch.set_num_threads(1)
    assert len(list(kept.iterdir())) == 3


@pytest.mark.parametrize("damage", ["bit", "end", "metadata"])
def test_a_damaged_file_is_measured_again_and_that_is_said(kept, drawn, caplog, damage):
    first = measured()
    (path,) = kept.iterdir()
    content = path.read_bytes()
    changed = {
        "bit": content[:-1] + bytes([content[-1] ^ 1]),
        "end": content[:-1],
        "metadata": content.replace(b"dead leaves", b"live leaves"),
    }
    path.write_bytes(changed[damage])
    assert equal(measured(), first)
    assert len(drawn) == 2
    reason = {"end": "cannot read the feature moments"}.get(damage, "are damaged: their sha256")
    assert reason in caplog.text
    assert "; they are measured again" in caplog.text
    assert equal(measured(), first)
    assert len(drawn) == 2, "mended"


def test_moments_of_other_settings_under_this_name_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    values = torch.arange(8.0, dtype=torch.float64).view(4, 2).unbind()
    moments = {"b": Moments(*values[:2]), "a": Moments(*values[2:])}
    write_moments(path, moments, {"x": 1})
    assert equal(read_moments(path, {"x": 1}), moments), "layers keep their order"
    with pytest.raises(TeacherError, match="were measured with other settings"):
        read_moments(path, {"x": 2})


def test_a_folder_that_cannot_be_written_costs_only_time(kept, drawn, caplog):
    kept.parent.write_text("a file where the folder of teachers should be")
    first = measured()
    assert f"cannot keep the feature moments at {kept}" in caplog.text
    assert "until FEDKD_TEACHERS names a folder that can be written" in caplog.text
    assert equal(measured(), first)
    assert len(drawn) == 2


def test_moments_are_measured_only_where_batchnorm_has_none(kept, drawn):
    default = open_teacher(TeacherConfig())
    measure_reference(default, settings(), SIZE)
    bn = default.backbone.get_submodule("bn1")
    assert torch.equal(default.reference["bn1"].mean, bn.running_mean)
    assert drawn == []
    assert not kept.exists()


def test_a_given_module_is_measured_in_memory(kept, opened):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    experiment = opened(teacher=network, objective={"name": "fopro"})
    assert experiment.teacher_of(0).has_reference
    assert not kept.exists()


# The user's own images


def test_a_folder_of_natural_images_replaces_the_procedural_ones(kept, drawn, tmp_path, caplog):
    folder = save_photographs(tmp_path / "photographs")
    with caplog.at_level(logging.INFO):
        own = measured(reference=str(folder), reference_images=256)
    assert drawn == []
    assert "teacher.reference has 40 images; all of them are used" in caplog.text
    files = [path for path in folder.rglob("*.*") if path.suffix != ".txt"]
    pixels = [np.asarray(Image.open(path).resize((SIZE, SIZE), 2)) for path in files]
    teacher = bare()
    teacher.measure_reference([torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255])
    for name, moments in teacher.reference.items():
        torch.testing.assert_close(own[name].mean, moments.mean, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(own[name].var, moments.var, rtol=1e-5, atol=1e-8)
    assert equal(measured(reference=str(folder), reference_images=256), own)
    assert len(list(kept.iterdir())) == 1


def test_the_moments_of_a_folder_hang_on_its_content_and_not_on_its_place(
    kept, tmp_path, monkeypatch
):
    first = save_photographs(tmp_path / "first")
    number = {"reference_images": 32}
    own = measured(reference=str(first), **number)
    monkeypatch.setenv("PHOTOGRAPHS", str(tmp_path))
    save_photographs(tmp_path / "second")
    assert equal(measured(reference="${PHOTOGRAPHS}/second", **number), own)
    assert len(list(kept.iterdir())) == 1
    for path in (tmp_path / "second").rglob("*.png"):
        Image.new("RGB", (9, 13)).save(path)
    assert not equal(measured(reference=str(tmp_path / "second"), **number), own)
    assert len(list(kept.iterdir())) == 2


def test_the_choice_among_many_images_is_always_the_same(kept, tmp_path, monkeypatch):
    folder = save_photographs(tmp_path / "photographs", num=60)
    chosen = []
    decode = reference.decode_files
    monkeypatch.setattr(
        reference, "decode_files", lambda files, size: chosen.append(files) or decode(files, size)
    )
    for _ in range(2):
        measure_reference(bare(), settings(reference=str(folder)), SIZE, keep=False)
    assert chosen[0] == chosen[1] == sorted(chosen[0])
    assert len(set(chosen[0])) == 32
    assert chosen[0] != sorted(path for path in folder.rglob("*.*") if path.suffix != ".txt")[:32]


def refusal(**values):
    with pytest.raises(DataError) as caught:
        measured(**values)
    return str(caught.value)


def test_a_folder_that_is_missing_or_has_few_images_is_refused(kept, tmp_path):
    assert refusal(reference=str(tmp_path / "none")) == (
        f"teacher.reference is {tmp_path / 'none'}, but there is no such folder; give one with "
        'natural images, or "" for procedural ones'
    )
    folder = save_photographs(tmp_path / "few", num=31)
    assert refusal(reference=str(folder)) == (
        f"teacher.reference is {folder}, which has 31 image files; it must have at least 32: put "
        'more there, or give "" for procedural images'
    )


def test_broken_images_are_named(kept, tmp_path):
    folder = save_photographs(tmp_path / "photographs", num=32)
    for name in ("0/0.png", "1/1.jpg"):
        (folder / name).write_bytes(b"no image")
    text = refusal(reference=str(folder))
    assert text.startswith("teacher.reference has 2 image(s) that cannot be read: ")
    assert f"{folder / '0/0.png'} (UnidentifiedImageError" in text
    assert f"{folder / '1/1.jpg'} (" in text
    assert text.endswith("; mend or remove them")
    assert not kept.exists()


def test_a_folder_that_nobody_needs_is_said(kept, tmp_path, caplog):
    folder = save_photographs(tmp_path / "photographs")
    measure_reference(open_teacher(TeacherConfig()), settings(reference=str(folder)), SIZE)
    assert (
        "teacher.reference is not used: teacher default has feature moments of its own data"
        in caplog.text
    )


# What measured moments are worth


@pytest.fixture(scope="module")
def two_priors():
    """The embedded teacher's own statistics, and moments measured on procedural images."""
    teacher = open_teacher(TeacherConfig())
    true = teacher.reference
    images = torch.from_numpy(dead_leaves(128, 32, seed=0)) / 255
    teacher.measure_reference(images.split(64))
    return teacher, true, teacher.reference


def held_out():
    return torch.from_numpy(dead_leaves(32, 32, seed=1)) / 255


@torch.no_grad()
def prior(teacher, moments, pixels):
    return moment_divergence(teacher.observe(pixels).moments, moments).item()


def test_with_measured_moments_natural_images_are_nearer_than_constant_grey(two_priors):
    teacher, true, own = two_priors
    assert any(not torch.equal(true[name].mean, own[name].mean.float()) for name in true)
    natural, grey = (
        prior(teacher, own, held_out()),
        prior(teacher, own, torch.full((8, 3, 32, 32), 0.5)),
    )
    assert natural < 0.05
    assert grey > 20 * natural


def test_measured_moments_rank_distorted_images_as_batchnorm_statistics_do(two_priors):
    teacher, true, own = two_priors
    rng = seeding.rng(0, "distortions")
    images, values = held_out(), []
    for _ in range(12):
        gain, shift = rng.uniform(0.2, 1.8), rng.uniform(-0.3, 0.3)
        noise = rng.uniform(0, 0.3) * torch.from_numpy(rng.standard_normal(images.shape)).float()
        pixels = ((images - 0.5) * gain + 0.5 + shift + noise).clamp(0, 1)
        values.append((prior(teacher, true, pixels), prior(teacher, own, pixels)))
    assert spearmanr(*zip(*values, strict=True)).statistic > 0.95


def test_a_vision_transformer_prompts_from_kept_moments(kept, make_recipe, hospitals, tmp_path):
    timm = pytest.importorskip("timm", reason="the extra timm is not installed")
    name = "vit_tiny_patch16_224"
    with seeding.isolated(0, "vit"):
        torch.save(timm.create_model(name, img_size=32).state_dict(), tmp_path / "vit.pth")
    recipe = make_recipe(
        teacher={
            "name": f"timm:{name}",
            "checkpoint": str(tmp_path / "vit.pth"),
            "input_size": 32,
            "reference_images": 32,
        },
        objective={"name": "fopro"},
        num_rounds=1,
    )
    first = simulate(recipe, **hospitals)
    assert first.rounds["prior"].notna().all()
    (file,) = kept.iterdir()
    assert file.name.startswith("timm_vit_tiny_patch16_224-")
    before = file.stat().st_mtime_ns
    second = simulate(recipe, **hospitals)
    assert file.stat().st_mtime_ns == before
    assert second.summary["student_sha256"] == first.summary["student_sha256"]
