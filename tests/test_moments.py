import gc
import math
import weakref

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.models.convnext import LayerNorm2d

from fedkd import seeding
from fedkd.models.small_resnet import SmallResNet
from fedkd.teachers import moments
from fedkd.teachers.moments import Moments


def images(num=8, size=16, seed=0, dtype=torch.float32):
    rng = seeding.generator(seed, "images")
    return torch.randn(num, 3, size, size, generator=rng).to(dtype)


def resnet(num=256):
    """A small residual network whose BatchNorm statistics are exactly those of ``images(num)``."""
    with seeding.isolated(0, "network"):
        network = SmallResNet((4, 8, 16))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network.train()(images(num))
    return network.eval()


def observe(network, x, dtype=None):
    with moments.record(network, dtype) as recording:
        network(x)
    return recording.moments


def num_hooks(network):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def test_moments_are_those_of_the_tensor_that_enters_each_layer():
    network, x = resnet(), images(seed=1)
    seen = observe(network, x)
    stem = network.conv1(x)
    torch.testing.assert_close(seen["bn1"].mean, stem.mean((0, 2, 3)))
    torch.testing.assert_close(seen["bn1"].var, stem.var((0, 2, 3), correction=0))
    block = network.layer2[0]
    entering = network.layer1(torch.relu(network.bn1(stem)))
    # The shortcut runs last, yet is not registered last in every network: names decide.
    for name, value in {
        "layer2.0.downsample.1": block.downsample[0](entering),
        "layer2.0.bn1": block.conv1(entering),
    }.items():
        torch.testing.assert_close(seen[name].mean, value.mean((0, 2, 3)), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(seen[name].var, value.var((0, 2, 3), correction=0))


def test_every_batchnorm_is_observed_under_its_own_name():
    network = resnet()
    seen = observe(network, images())
    assert seen.keys() == moments.running_moments(network).keys()
    assert {"bn1", "layer1.0.bn2", "layer3.0.downsample.1"} <= seen.keys()
    for name, layer in network.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert seen[name].mean.shape == seen[name].var.shape == (layer.num_features,)


def test_pairing_by_name_gives_zero_in_every_layer_where_call_order_does_not():
    # Oracle O8 for the data that the statistics were taken from, and what it is there to catch.
    class ShortcutFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.main = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=1.0))
            self.shortcut = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, momentum=1.0))

        def forward(self, x):
            return self.shortcut(x)[..., 1:-1, 1:-1] + self.main(x)

    with seeding.isolated(0, "network"):
        network = ShortcutFirst()
    x = images(256) * 2 + 1
    network(x)
    network.eval()
    seen, reference = observe(network, x), moments.running_moments(network)
    by_name = moments.layer_divergences(seen, reference)
    assert max(by_name.values()) < 1e-5
    assert list(seen) != list(reference)
    swapped = dict(zip(reference, seen.values(), strict=True))
    assert min(moments.layer_divergences(swapped, reference).values()) > 0.05


def test_layernorm_moments_are_per_channel_over_batch_and_tokens():
    with seeding.isolated(0, "network"):
        network = VisionTransformer(
            image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16
        ).eval()
    x = images(seed=1)
    seen = observe(network, x)
    assert "encoder.ln" in seen
    assert len(seen) == 5
    tokens = network._process_input(x)
    tokens = torch.cat([network.class_token.expand(8, -1, -1), tokens], dim=1)
    entering = tokens + network.encoder.pos_embedding
    first = seen["encoder.layers.encoder_layer_0.ln_1"]
    torch.testing.assert_close(first.mean, entering.mean((0, 1)), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(first.var, entering.var((0, 1), correction=0))


@pytest.mark.parametrize(
    ("layer", "shape", "others"),
    [
        (nn.BatchNorm1d(3), (5, 3), (0,)),
        (nn.BatchNorm1d(3), (5, 3, 7), (0, 2)),
        (nn.BatchNorm2d(3), (5, 3, 4, 2), (0, 2, 3)),
        (nn.GroupNorm(1, 3), (5, 3, 4, 2), (0, 2, 3)),
        (nn.LayerNorm(3), (5, 3), (0,)),
        (nn.LayerNorm(3), (5, 7, 3), (0, 1)),
        (LayerNorm2d(3), (5, 3, 4, 3), (0, 2, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_each_kind_of_normalisation_has_its_channels_found(layer, shape, others):
    x = torch.randn(shape, generator=seeding.generator(0, "x"))
    seen = observe(nn.Sequential(layer.eval()), x)["0"]
    torch.testing.assert_close(seen.mean, x.mean(others))
    torch.testing.assert_close(seen.var, x.var(others, correction=0))


def test_a_network_without_normalisation_is_observed_where_a_folded_one_stood():
    with seeding.isolated(0, "network"):
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(784, 5)
        )
    x = images(seed=1).requires_grad_()
    seen = observe(network, x)
    assert seen.keys() == {"0", "3"}
    torch.testing.assert_close(seen["0"].mean, network[0](x).mean((0, 2, 3)))
    assert seen["3"].var.shape == (5,)
    (seen["0"].var.sum() + seen["3"].mean.sum()).backward()  # ReLU in place does not break it
    assert x.grad.abs().sum() > 0


def test_a_layer_that_runs_twice_has_both_inputs_pooled():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.norm(x)[:2] * 0 + x[:2] * 3 + 1)

    network, x = Twice().eval(), images()
    seen = observe(network, x)["norm"]
    both = torch.cat([x, x[:2] * 3 + 1])
    torch.testing.assert_close(seen.mean, both.mean((0, 2, 3)))
    torch.testing.assert_close(seen.var, both.var((0, 2, 3), correction=0))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_to_the_input_are_those_of_finite_differences(memory_format):
    with seeding.isolated(0, "network"):
        network = SmallResNet((2, 3)).double().eval()

    def value(x):
        seen = observe(network, x.contiguous(memory_format=memory_format))
        return torch.stack([m.mean.sin().sum() + m.var.cos().sum() for m in seen.values()])

    x = images(2, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(value, x)


def test_half_precision_features_have_float32_moments():
    network = nn.Sequential(nn.BatchNorm2d(3)).to(torch.bfloat16).eval()
    assert observe(network, images(dtype=torch.bfloat16))["0"].var.dtype == torch.float32


def test_hooks_are_gone_after_the_block_and_after_an_exception():
    network = resnet()
    with moments.record(network):
        assert num_hooks(network) == 9
    assert num_hooks(network) == 0
    with pytest.raises(RuntimeError, match="channels"), moments.record(network):
        network(torch.zeros(1, 5, 16, 16))
    assert num_hooks(network) == 0


def test_nothing_is_kept_alive_by_the_network():
    network = resnet()
    with moments.record(network) as recording:
        network(images())
    kept = weakref.ref(recording.moments["bn1"].mean)
    assert kept() is not None
    del recording
    gc.collect()
    assert kept() is None


def test_passes_outside_the_block_are_not_recorded():
    network = resnet()
    with moments.record(network) as recording:
        pass
    network(images())
    assert recording.moments == {}


@pytest.mark.parametrize("cuts", [[8], [1, 7], [3, 3, 2], [1] * 8])
def test_measured_moments_do_not_depend_on_how_images_are_divided(cuts):
    network, x = resnet(), images()
    measured = moments.measure_moments(network, network, x.split(cuts))
    for name, expected in observe(network.double(), x.double(), torch.float64).items():
        assert measured[name].mean.dtype == torch.float64
        torch.testing.assert_close(measured[name].mean, expected.mean, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(measured[name].var, expected.var, atol=1e-6, rtol=1e-5)


def test_measuring_takes_images_of_several_sizes_and_records_no_gradient():
    network = nn.Sequential(nn.BatchNorm2d(3)).eval()
    x = [images(3, 16).requires_grad_(), images(2, 8, seed=1)]
    seen = moments.measure_moments(network, network, iter(x))["0"]
    together = torch.cat([part.transpose(0, 1).flatten(1) for part in x], dim=1).double()
    torch.testing.assert_close(seen.mean, together.mean(1))
    torch.testing.assert_close(seen.var, together.var(1, correction=0))
    assert not seen.mean.requires_grad


def test_usable_statistics_are_told_from_folded_untrained_and_missing_ones():
    assert moments.has_running_moments(resnet())
    assert not moments.has_running_moments(SmallResNet((4,)))  # all 0 and 1, as after folding
    assert not moments.has_running_moments(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)))
    assert not moments.has_running_moments(nn.BatchNorm2d(3, track_running_stats=False))
    one_moved = SmallResNet((4,))
    one_moved.layer1[0].bn2.running_var[2] = 1.5
    assert moments.has_running_moments(one_moved)


def test_kl_worked_by_hand():
    observed = {"a": Moments(torch.tensor([1.0, 0.0]), torch.tensor([4.0, 2.0]))}
    reference = {"a": Moments(torch.tensor([0.0, 0.0]), torch.tensor([2.0, 2.0]))}
    # The floor is 0.1 % of 2. Channel 1: 0.5 (log(v0/v) + (v + 1)/v0 - 1); channel 2: 0.
    expected = 0.5 * (math.log(2.002 / 4.002) + 5.002 / 2.002 - 1) / 2
    value = moments.moment_divergence(observed, reference)
    assert float(value) == pytest.approx(expected)


def test_kl_agrees_with_torch():
    rng = seeding.generator(0, "kl")
    m, v, m0, v0 = (torch.rand(20, generator=rng, dtype=torch.float64) + 0.2 for _ in range(4))
    floor = 1e-3 * v0.mean()
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(m, (v + floor).sqrt()),
        torch.distributions.Normal(m0, (v0 + floor).sqrt()),
    ).mean()
    value = moments.moment_divergence({"a": Moments(m, v)}, {"a": Moments(m0, v0)})
    assert float(value) == pytest.approx(float(expected))


def test_kl_is_a_mean_over_layers_and_l2_a_sum():
    one = Moments(torch.tensor([3.0]), torch.tensor([2.0]))
    other = Moments(torch.tensor([0.0] * 4), torch.tensor([2.0] * 4))
    reference = {
        "a": Moments(torch.zeros(1), torch.ones(1)),
        "b": Moments(torch.ones(4), torch.ones(4)),
    }
    observed = {"a": one, "b": other}
    kl = moments.layer_divergences(observed, reference)
    assert float(kl["a"]) == pytest.approx(0.5 * (10 - math.log(2)), rel=2e-3)
    assert float(kl["b"]) == pytest.approx(0.5 * (2 - math.log(2)), rel=2e-3)
    total = moments.moment_divergence(observed, reference)
    assert float(total) == pytest.approx(float(kl["a"] + kl["b"]) / 2)
    # L2 norms of the differences: 3 + 1 for a, 2 + 2 for b.
    assert float(moments.moment_divergence(observed, reference, "l2")) == pytest.approx(8)


def test_kl_does_not_depend_on_the_scale_of_the_features():
    network, x = resnet(), images(seed=1) * 2
    with torch.no_grad():
        seen, reference = observe(network, x), moments.running_moments(network)

    def scaled(given, factor):
        return {name: Moments(m * factor, v * factor**2) for name, (m, v) in given.items()}

    plain = moments.moment_divergence(seen, reference)
    small = moments.moment_divergence(scaled(seen, 1e-3), scaled(reference, 1e-3))
    assert float(small) == pytest.approx(float(plain), rel=1e-4)


@pytest.mark.parametrize("form", ["kl", "l2"])
def test_divergence_is_zero_for_equal_moments_only_with_finite_gradients(form):
    reference = moments.running_moments(resnet())
    leaves = {name: Moments(m.clone(), v.clone()) for name, (m, v) in reference.items()}
    for tensor in (t for pair in leaves.values() for t in pair):
        tensor.requires_grad_()
    value = moments.moment_divergence(leaves, reference, form)
    value.backward()
    assert abs(value.item()) < 1e-6
    assert all(torch.isfinite(t.grad).all() for pair in leaves.values() for t in pair)
    moved = {name: Moments(m + 0.1, v) for name, (m, v) in reference.items()}
    assert moments.moment_divergence(moved, reference, form) > 1e-4


def test_a_channel_that_is_dead_in_the_reference_does_not_decide_alone():
    alive, mean = torch.ones(32), torch.zeros(32)
    dead = alive.clone()
    dead[7] = 0
    awake = dead.clone()
    awake[7] = 1e-3  # a flicker against the layer's variance of 1
    value = moments.moment_divergence({"a": Moments(mean, awake)}, {"a": Moments(mean, dead)})
    assert 0 < value < 0.01


def test_dead_channels_give_a_finite_divergence():
    alive, dead = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0])
    mean = torch.zeros(2)
    for observed, reference in ((alive, dead), (dead, alive), (dead, dead), (0 * dead, 0 * dead)):
        pair = Moments(mean, observed), Moments(mean, reference)
        value = moments.moment_divergence({"a": pair[0]}, {"a": pair[1]})
        assert torch.isfinite(value)
        assert (value < 1e-6) == torch.equal(observed, reference)


def test_float64_reference_serves_a_float32_network():
    network = resnet()
    reference = moments.measure_moments(network, network, [images()])
    value = moments.moment_divergence(observe(network, images()), reference)
    assert value.dtype == torch.float32
    assert value < 1e-6


def test_a_layer_that_was_not_observed_is_named():
    reference = moments.running_moments(resnet())
    with pytest.raises(ValueError, match=r"not observed: bn1, layer1\.0\.bn1"):
        moments.moment_divergence({}, reference)
