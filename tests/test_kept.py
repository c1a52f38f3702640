"""A client's prompts on its own disk: written whole, read back, refused where they do not fit."""

import re

import pytest
import torch
from safetensors.torch import save_file

from clients.node import Folders, Node
from fedkd import seeding, wire
from fedkd.errors import DataError
from fedkd.fourier.config import PromptConfig
from fedkd.fourier.generators.factory import make_generator
from fedkd.fourier.kept import load_prompts, path_of, save_prompts
from fedkd.fourier.prompter import Prompter
from fedkd.models import states
from server.opened_run import PROMPTS

SIZE = (3, 16, 16)


def made(**changes):
    config = PromptConfig(latent_dim=6, **changes)
    with seeding.isolated(3, "test"):
        generator = make_generator(config, *SIZE)
    mean = torch.rand(3, 16, 9, dtype=torch.float64) if config.form == "mix" else None
    return config, Prompter(config, generator, mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("generator", "form"),
    [("conv", "gain"), ("conv", "mix"), ("jitter", "mix"), ("amplitude_mix", "gain")],
)
def test_prompts_come_back_as_they_were(tmp_path, generator, form, dtype):
    config, prompter = made(generator=generator, form=form)
    if prompter.generator is not None:
        prompter.generator.to(dtype)
    path = path_of(tmp_path / "new", 4)
    save_prompts(path, prompter, 7)
    again, round_number = load_prompts(path, config, *SIZE)
    assert (path.name, round_number) == ("client-4.safetensors", 7)
    pixels = torch.rand(2, *SIZE, dtype=dtype)
    first, second = (p(pixels, seeding.generator(0, "x")).pixels for p in (prompter, again))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("written", "read", "text"),
    [
        ({}, {"generator": "amplitude_mix"}, "it holds a generator, whose first tensor is"),
        ({"generator": "jitter"}, {}, "Missing key"),
        ({}, {"form": "mix"}, "it has no mean amplitude"),
    ],
)
def test_prompts_of_another_config_are_refused(tmp_path, written, read, text):
    path = tmp_path / "client-0.safetensors"
    save_prompts(path, made(**written)[1], 1)
    with pytest.raises(DataError, match=re.escape(text)) as caught:
        load_prompts(path, PromptConfig(latent_dim=6, **read), *SIZE)
    assert "give it the config of the run that wrote it" in str(caught.value)


def test_a_file_that_holds_no_prompts_is_refused(tmp_path):
    path = tmp_path / "client-0.safetensors"
    with pytest.raises(DataError, match="cannot read the prompts"):
        load_prompts(path, PromptConfig(), *SIZE)
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(DataError, match="has format None; expected 'fedkd-prompts-1'"):
        load_prompts(path, PromptConfig(), *SIZE)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="cannot write the prompts .*; make room there"):
        save_prompts(tmp_path / "file" / "client-0.safetensors", made()[1], 1)


@pytest.mark.parametrize("shared", ["no", "by_examples"])
def test_each_client_writes_the_generator_that_it_trained_with(opened, tmp_path, shared):
    """Also where generators travel: what is written is the client's own, not the next average."""
    prompts = {"latent_dim": 6, "shared": shared}
    node = Node(opened(prompts=prompts), folders=Folders(prompts=tmp_path))
    arrays = node.initial_arrays()
    for client in (0, 2):
        _, state = node.train(client, arrays, {}, 2)
        prompter, number = load_prompts(
            path_of(tmp_path, client), node.experiment.recipe.prompts, *SIZE
        )
        own = {k: t for k, t in state["objective"].items() if k.startswith("generator.")}
        read = {"generator." + k: t for k, t in prompter.generator.state_dict().items()}
        assert states.sha256(read) == states.sha256(own)
        assert number == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_of_the_prompts_travels_unless_they_are_shared(opened, tmp_path):
    node = Node(opened(), folders=Folders(prompts=tmp_path))
    reply, _ = node.train(0, node.initial_arrays(), {}, 1)
    assert not any(name.startswith(wire.PROMPTS) for name in reply.arrays)


def test_a_run_leaves_the_prompts_of_all_clients_and_other_methods_none(run, tmp_path):
    path = run(output=tmp_path, num_rounds=1).path
    names = sorted(file.name for file in (path / PROMPTS).iterdir())
    assert names == [f"client-{number}.safetensors" for number in range(3)]
    ekd = run(output=tmp_path, num_rounds=1, objective={"name": "ekd"}).path
    assert not (ekd / PROMPTS).exists()
