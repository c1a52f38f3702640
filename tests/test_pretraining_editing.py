"""Source editing in a pre-training: config, images, card and checkpoint."""

import json
import logging

import numpy as np
import pytest

from fedkd import config
from fedkd.data.dead_leaves import dead_leaves
from fedkd.data.pixels import Selection
from fedkd.errors import ConfigError, DataError, TeacherError
from fedkd.fourier import editing
from fedkd.pretraining.config import EditConfig, PretrainConfig
from fedkd.pretraining.editing import edit_images
from fedkd.pretraining.images import content_hash
from fedkd.pretraining.pretrain import pretrain
from server.cli import main

TINY = {
    "name": "tiny", "seed": 5, "num_images": 16, "source_size": 16, "view_size": 8,
    "reading_size": 16, "steps": 3, "warm_up_steps": 1, "batch_size": 8, "num_hidden": 6,
    "num_outputs": 4, "statistics_batches": 2, "checkpoint_minutes": 0,
}  # fmt: skip
LESIONS = {
    "name": "lesions", "size": 16, "num_train": 60, "imbalance_factor": 4, "num_val_per_class": 2,
    "num_test_per_class": 1,
}  # fmt: skip
NOTCH = {"name": "notch", "centre": 0.5, "width": 0.1}
MATCH = {"name": "match", "data": LESIONS}


def recipe(**changes):
    return config.build(PretrainConfig, TINY | changes)


@pytest.fixture(scope="module")
def leaves():
    return dead_leaves(300, 16, 0)


def test_without_an_edit_images_and_record_are_as_they_were(leaves):
    images, found = edit_images(leaves, EditConfig())
    assert images is leaves
    assert found == {}
    assert "edit" not in recipe().record()
    assert recipe(edit={"name": "none"}).record() == recipe().record()


def test_record_holds_what_the_edit_uses_and_no_place():
    assert recipe(edit=NOTCH).record()["edit"] == {**NOTCH, "depth": 1.0}
    data = {"name": "folder", "images": "secret", "csv": "secret", "size": 16}
    edit = recipe(edit={"name": "match", "data": data}).record()["edit"]
    assert edit["name"] == "match"
    assert edit["data"]["size"] == 16
    assert "secret" not in str(edit)
    assert "centre" not in edit


@pytest.mark.parametrize("lazy", [False, True])
def test_a_notch_edits_all_images_batch_by_batch_as_it_does_at_once(leaves, lazy, caplog):
    images = Selection(leaves, np.arange(len(leaves))) if lazy else leaves
    with caplog.at_level(logging.INFO):
        edited, found = edit_images(images, config.build(EditConfig, NOTCH))
    transfer = editing.notch(16, 16, centre=0.5, spread=0.1, depth=1.0)
    np.testing.assert_array_equal(edited, editing.edit_bytes(leaves, transfer)[0])
    assert found["band_share_after"] < found["band_share_before"] / 3
    assert "edit: notch at radius 0.5, width 0.1, depth 1" in caplog.text
    assert "on a sample of 300 images: band_share_before" in caplog.text


def test_matching_uses_the_training_images_of_the_data_and_comes_closer(leaves):
    edited, found = edit_images(leaves, config.build(EditConfig, MATCH))
    assert found["psd_distance_after"] < found["psd_distance_before"] / 5
    assert content_hash(edited) != content_hash(leaves)
    more_val = {**MATCH, "data": {**LESIONS, "num_val_per_class": 3}}
    assert edit_images(leaves, config.build(EditConfig, more_val))[1] == found


def test_flat_images_are_refused(leaves):
    flat = np.full((4, 3, 16, 16), 200, np.uint8)
    text = "^the images of the pre-training are flat: their radial power spectrum is empty"
    with pytest.raises(DataError, match=text):
        edit_images(flat, config.build(EditConfig, NOTCH))


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        ({"name": "match"}, r"edit\.name is 'match', which needs \[edit\.data\]"),
        ({"data": LESIONS}, "edit.data is given but edit.name is 'none', which does not use it"),
        (MATCH | {"depth": 1.0}, "edit.depth is given but edit.name is 'match'"),
        (NOTCH | {"depth": 1.5}, r"edit\.depth is 1\.5"),
    ],
)
def test_what_does_not_fit_is_refused(edit, text):
    with pytest.raises(ConfigError, match=text):
        recipe(edit=edit)


def test_errors_of_the_command_are_one_line(tmp_path, capsys):
    path = tmp_path / "p.toml"
    path.write_text('name = "mine"\n')
    assert main(["pretrain", str(path), "edit.name=match"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "edit.name is 'match', which needs [edit.data]" in error


def test_an_edited_pre_training_says_so_in_its_card_and_goes_on_only_as_it_began(tmp_path):
    def stop(done, *_):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe(edit=NOTCH), tmp_path, stop)
    with pytest.raises(TeacherError, match=r"edit\.centre was 0\.5, is 0\.7.*images \(their conte"):
        pretrain(recipe(edit=NOTCH | {"centre": 0.7}), tmp_path)
    with pytest.raises(TeacherError, match=r"edit\.name was notch, is default"):
        pretrain(recipe(), tmp_path)
    told = []
    path = pretrain(recipe(edit=NOTCH), tmp_path, lambda *args: told.append(args[0]))
    assert told == [3]
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert card["data"].endswith("; edited: notch at radius 0.5, width 0.1, depth 1")
    assert set(card["edit"]) == {"band_share_before", "band_share_after", "clipped_share"}
    assert card["config"]["edit"] == {**NOTCH, "depth": 1.0}
    plain = pretrain(recipe(name="plain"), tmp_path)
    assert path.read_bytes() != plain.read_bytes()
