import pytest
import torch
from torchvision.models.resnet import BasicBlock as TorchvisionBlock

from fedkd import seeding
from fedkd.models.small_resnet import BasicBlock, SmallResNet, resnet8, resnet10


def images(num=2, size=32):
    return torch.randn(num, 3, size, size, generator=seeding.generator(0, "images"))


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_sizes_are_those_of_the_docstrings():
    assert resnet8().num_features == 64
    # Stem 464 and blocks 4,672 + 14,528 + 57,728: weights without bias, BatchNorm's two, shortcuts.
    assert num_parameters(resnet8()) == 77_392
    assert resnet10().num_features == 480
    assert num_parameters(resnet10()) == pytest.approx(1.2e6, rel=0.05)


@pytest.mark.parametrize("size", [28, 31, 32, 64])
@pytest.mark.parametrize("make", [resnet8, resnet10])
def test_features_have_the_promised_width_at_any_size(make, size):
    model = make()
    assert model(images(size=size)).shape == (2, model.num_features)


def test_all_stages_concatenates_what_the_last_stage_ends():
    model = SmallResNet((4, 8, 16), all_stages=True).eval()
    stages = model.pooled_stages(images())
    assert [stage.shape[1] for stage in stages] == [4, 8, 16]
    features = model(images())
    assert torch.equal(features, torch.cat(stages, dim=1))
    model.all_stages = False
    assert torch.equal(model(images()), features[:, -16:])


def test_each_stage_after_the_first_halves_the_resolution():
    model, shapes = resnet10().eval(), []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda _, __, out: shapes.append(out.shape[2]))
    model(images(size=64))
    assert shapes == [64, 32, 16, 8]


@pytest.mark.parametrize(("channels", "stride"), [((8, 8), 1), ((8, 16), 2), ((8, 16), 1)])
def test_block_computes_what_torchvisions_block_does(channels, stride):
    block = BasicBlock(*channels, stride).eval()
    shortcut = block.downsample if len(block.downsample.state_dict()) else None
    oracle = TorchvisionBlock(*channels, stride, shortcut).eval()
    oracle.load_state_dict(block.state_dict())  # the names agree, too
    x = torch.randn(2, channels[0], 9, 9, generator=seeding.generator(1, "images"))
    torch.testing.assert_close(block(x), oracle(x))


def test_initialisation_follows_the_seed_only():
    def weights(seed):
        with seeding.isolated(seed, "student"):
            return torch.cat([value.flatten() for value in resnet8().state_dict().values()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_convolutions_start_with_the_spread_of_he_et_al():
    with seeding.isolated(0, "student"):
        model = resnet10()
    # BatchNorm hides the scale from the features, but not from the optimiser.
    for name, weight in model.named_parameters():
        if weight.ndim == 4:
            fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
            assert float(weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), (
                name
            )


def test_every_parameter_receives_a_gradient():
    model = resnet8().train()
    model(images(num=4)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_evaluation_treats_each_image_alone():
    model = resnet8().eval()
    x = images(num=4)
    torch.testing.assert_close(model(x)[:1], model(x[:1]))
