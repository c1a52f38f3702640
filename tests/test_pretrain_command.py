from pathlib import Path

import pytest

from server.cli import main
from server.commands import pretrain as pretrain_command

CONFIG = """
name = "mine"
num_images = 8
steps = 3
warm_up_steps = 1
batch_size = 4
source_size = 16
view_size = 8
reading_size = 16
statistics_batches = 1
method = "moco_v2"
"""


@pytest.mark.parametrize(
    ("last", "text"),
    [
        (2, "stopped; the same command goes on from teachers/mine.checkpoint.pt"),
        (0, "stopped before the first checkpoint; the same command starts anew"),
    ],
)
def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys, last, text):
    monkeypatch.chdir(tmp_path)
    Path("p.toml").write_text(CONFIG)
    real = pretrain_command.pretrain_teacher

    def interrupted(settings, folder, progress):
        def stop(step, total, values):
            progress(step, total, values)
            if step == last:
                raise KeyboardInterrupt

        if not last:  # while the images are read
            raise KeyboardInterrupt
        return real(settings, folder, stop)

    monkeypatch.setattr(pretrain_command, "pretrain_teacher", interrupted)
    assert main(["pretrain", "p.toml"]) == 130
    assert text in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "p.toml"]) == 0
    assert capsys.readouterr().out.strip() == "teachers/mine.safetensors"
    assert not Path("teachers/mine.checkpoint.pt").exists()
