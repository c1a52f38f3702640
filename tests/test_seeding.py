import numpy as np
import pytest
import torch

from fedkd import seeding


def draws(*arguments):
    return seeding.rng(*arguments).integers(2**63, size=4).tolist()


def test_equal_arguments_give_equal_streams():
    assert draws(1, "sample", 2, 3) == draws(1, "sample", 2, 3)
    assert seeding.torch_seed(1, "sample", 2) == seeding.torch_seed(1, "sample", 2)


def test_streams_stand_still_over_processes_and_releases():
    # Recorded once. A change here changes the numbers of every run ever made.
    assert seeding.rng(0, "sample", 3).integers(2**32) == 995110070
    assert seeding.torch_seed(0, "sample", 3) == 3711180700368720468


@pytest.mark.parametrize(
    "other",
    [
        (2, "sample", 2, 3),
        (1, "augment", 2, 3),
        (1, "sample", 3, 3),
        (1, "sample", 2, 4),
        (1, "sample", 3, 2),
        (1, "sample", 2),
        (1, "sample"),
    ],
)
def test_any_other_argument_gives_another_stream(other):
    assert draws(*other) != draws(1, "sample", 2, 3)
    assert seeding.torch_seed(*other) != seeding.torch_seed(1, "sample", 2, 3)


def test_streams_of_neighbouring_keys_are_not_correlated():
    table = np.array([seeding.rng(0, "noise", key).standard_normal(2000) for key in range(10)])
    correlation = np.corrcoef(table) - np.eye(10)
    assert np.abs(correlation).max() < 0.1


def test_torch_seed_fits_63_bits_and_uses_them():
    seeds = [seeding.torch_seed(0, "student", key) for key in range(50)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**61


def test_generator_is_the_stream_of_torch_seed():
    expected = torch.Generator().manual_seed(seeding.torch_seed(4, "prompt", 1))
    drawn = torch.randn(5, generator=seeding.generator(4, "prompt", 1))
    assert torch.equal(drawn, torch.randn(5, generator=expected))
    assert seeding.generator(4, "prompt").device.type == "cpu"


def test_isolated_initialises_alike_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    with seeding.isolated(0, "student"):
        first = torch.nn.Linear(3, 3).weight.detach()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    with seeding.isolated(0, "student"):
        second = torch.nn.Linear(3, 3).weight.detach()
    with seeding.isolated(1, "student"):
        third = torch.nn.Linear(3, 3).weight.detach()
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_isolated_restores_the_global_generator_after_an_error():
    def draw_and_fail():
        with seeding.isolated(0, "student"):
            torch.rand(3)
            raise RuntimeError("stop")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="stop"):
        draw_and_fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_numpy_streams_leave_the_global_generator_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - looks at the state, draws nothing
    draws(0, "sample")
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_negative_coordinates_are_refused():
    with pytest.raises(ValueError, match="non-negative"):
        seeding.rng(0, "sample", -1)


def test_isolated_numpy_draws_alike_and_puts_the_global_generator_back_even_after_an_error():
    def draw(*keys):
        with seeding.isolated_numpy(0, "noise", *keys):
            return np.random.normal(size=3).tolist()  # noqa: NPY002

    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert draw(1) == draw(1) != draw(2)
    with pytest.raises(ZeroDivisionError), seeding.isolated_numpy(0, "noise"):
        raise ZeroDivisionError
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
