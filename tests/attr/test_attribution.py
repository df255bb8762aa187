"""The contract of a Captum attribution: what holds for all methods is tested on all."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from captum.attr import GradientAttribution, LayerGradCam, NoiseTunnel
from captum.attr import visualization as viz
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor, nn

from advcam_attr import CAM, AdvCAM, AdvCAMError, GradCAM
from advcam_attr.attr.advcam import BASES
from advcam_attr.attr.attribution import resize
from attribution_methods import Counting, Failing, hooks_of, same, tensors_alive


def test_the_interface_is_captums(method, small_net):
    attribution = method(small_net)
    assert isinstance(attribution, GradientAttribution)
    assert attribution.forward_func is small_net
    assert attribution.get_name() == type(attribution).__name__
    names = list(inspect.signature(attribution.attribute).parameters)
    assert names[:3] == ["inputs", "target", "additional_forward_args"]
    assert hasattr(type(attribution).attribute, "__wrapped__")
    assert not attribution.has_convergence_delta()
    for absent in (lambda: attribution.compute_convergence_delta(1, 2, 3), attribution.attribute_future):
        with pytest.raises(NotImplementedError):
            absent()


def test_tuples_come_back_as_tuples(method, small_net, images):
    plain = method(small_net).attribute(images, target=1)
    boxed = method(small_net).attribute((images,), target=1)
    assert isinstance(plain, Tensor)
    assert isinstance(boxed, tuple)
    assert len(boxed) == 1
    assert torch.equal(plain, boxed[0])


def test_the_input_is_left_as_it_is(method, small_net, images):
    class InPlaceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(F.relu(x.mul_(1.5), inplace=True))

    for model in (small_net, InPlaceFirst()):
        for requires_grad in (False, True):
            x = images.clone().requires_grad_(requires_grad)
            method(model).attribute(x, target=1)
            with pytest.raises(AdvCAMError):
                method(model).attribute(x, target=99)
            assert torch.equal(x, images)
            assert x.requires_grad == requires_grad
            assert x.grad is None


def test_runs_in_eval_and_each_module_keeps_its_mode(method, small_net, images):
    expected = method(small_net).attribute(images, target=1)
    buffers = {name: buffer.clone() for name, buffer in small_net.named_buffers()}
    small_net.train()
    small_net[1].eval()
    before = [m.training for m in small_net.modules()]
    assert torch.equal(method(small_net).attribute(images, target=1), expected)
    assert [m.training for m in small_net.modules()] == before
    small_net[1].train()
    before = [m.training for m in small_net.modules()]
    failing = Failing(small_net, RuntimeError, 2)
    with pytest.raises((RuntimeError, AdvCAMError)):
        method(failing).attribute(images, target=99 if isinstance(method(failing), (CAM, GradCAM)) else 1)
    assert [m.training for m in small_net.modules()] == before
    assert all(torch.equal(buffers[name], buffer) for name, buffer in small_net.named_buffers())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_no_hook_is_left_and_the_users_stay(method, small_net, images, error, at):
    calls = []
    handle = small_net[3].register_forward_hook(lambda *_: calls.append(1))
    before = hooks_of(small_net)
    failing = Failing(small_net, error, at)

    def three_calls() -> None:
        for _ in range(3):
            method(failing).attribute(images, target=1)

    with pytest.raises(error):
        three_calls()
    with pytest.raises(AdvCAMError):
        method(small_net).attribute(images, target=77)
    assert hooks_of(small_net) == before
    assert not nn.modules.module._global_forward_hooks
    calls.clear()
    counted = Counting(small_net)
    method(counted).attribute(images, target=1)
    assert len(calls) == counted.count
    handle.remove()


def test_the_result_is_detached_and_nothing_stays_alive(method, small_net, images):
    attribution = method(small_net)
    attribution.attribute(images, target=1)
    before = {id(t) for t in tensors_alive()}
    result = attribution.attribute(images, target=1)
    assert not result.requires_grad
    assert result.grad_fn is None
    assert [t.shape for t in tensors_alive() if id(t) not in before and t is not result] == []


def test_live_memory_does_not_grow_with_steps(small_net, images):
    def live(steps: int) -> int:
        peak = 0

        def count(_: object) -> None:
            nonlocal peak
            peak = max(peak, sum(t.numel() for t in tensors_alive()))

        AdvCAM(small_net, steps=steps).attribute(images, target=1, on_step=count)
        return peak

    live(2)
    gc.freeze()  # what other tests left is not looked through at every step
    try:
        assert live(30) <= live(3) + 30_000  # the last step of the samples that have stopped: 22 000
    finally:
        gc.unfreeze()


def test_parameters_are_left_alone(method, small_net, images):
    expected = method(small_net).attribute(images, target=1)
    small_net.requires_grad_(False)
    small_net[3].weight.requires_grad_(True).grad = torch.ones_like(small_net[3].weight)
    before = [(p.requires_grad, p.clone()) for p in small_net.parameters()]
    assert same(method(small_net).attribute(images, target=1), expected)
    for (flag, value), parameter in zip(before, small_net.parameters(), strict=True):
        assert parameter.requires_grad == flag
        assert torch.equal(parameter, value)
    assert torch.equal(small_net[3].weight.grad, torch.ones_like(small_net[3].weight))
    assert small_net[0].weight.grad is None
    small_net.requires_grad_(False)
    assert same(method(small_net).attribute(images, target=1), expected)


def test_the_gradient_of_a_cam_base_is_exact(small_net, images):
    """The restricting term's gradient to the image against finite differences, float64."""
    from advcam_attr import heads

    view = heads.view(small_net.double())
    x = images[:1].double()
    start = CAM.maps(view(x), torch.tensor([2])).detach()

    def change(x: Tensor) -> Tensor:
        return (CAM.maps(view(x), torch.tensor([2])) - 0.9 * start).square().sum()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(change(leaf), leaf)
    for place in [(0, 0, 3, 4), (0, 2, 17, 30), (0, 1, 9, 9)]:
        step = torch.zeros_like(x)
        step[place] = 1e-6
        slope = (change(x + step) - change(x - step)).detach() / 2e-6
        assert slope == pytest.approx(float(gradient[place]), rel=1e-5, abs=1e-8)


def test_zero_steps_give_the_base(small_net, images):
    for base, kind in BASES.items():
        for output in ("image", "native", "input"):
            zero = AdvCAM(small_net, base=base).attribute(images, target=2, steps=0, output=output)
            assert torch.equal(zero, kind(small_net).attribute(images, target=2, output=output))


def test_cam_is_the_grids_size_times_captums_grad_cam(small_net, images):
    cam = CAM(small_net).attribute(images, target=[0, 3, 4], output="native")
    captum = LayerGradCam(small_net, small_net[4]).attribute(images, target=[0, 3, 4])
    assert same(cam, captum * 8 * 8)


def test_a_head_without_the_identity_is_refused(images):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 900, 5))
    for kind in (CAM, AdvCAM):
        with pytest.raises(AdvCAMError, match='base="grad_cam"'):
            kind(net).attribute(images, target=1)
    assert AdvCAM(net, base="grad_cam", steps=2).attribute(images, target=1).shape == (3, 1, 32, 32)


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel(method, small_net, images, kind):
    torch.manual_seed(0)
    tunnel = NoiseTunnel(method(small_net))
    assert tunnel.attribute(images, nt_type=kind, nt_samples=3, target=[0, 1, 2]).shape == (3, 1, 32, 32)


@pytest.mark.parametrize("count", [1, 2])
def test_infidelity_and_sensitivity(method, small_net, images, count):
    x, attribution = images[:count], method(small_net)

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.01 * torch.randn(inputs.shape)
        return noise, inputs - noise

    maps = attribution.attribute(x, target=1, output="input")
    assert infidelity(small_net, perturb, x, maps, target=1).isfinite().all()
    assert sensitivity_max(attribution.attribute, x, target=1, n_perturb_samples=2).isfinite().all()


@pytest.mark.parametrize("how", ["heat_map", "blended_heat_map", "original_image", "masked_image", "alpha_scaling"])
def test_captum_visualizes_the_maps(method, small_net, images, how):
    import matplotlib.figure

    maps = method(small_net).attribute(images[:1], target=2)
    figure = matplotlib.figure.Figure()
    image = images[0].permute(1, 2, 0).sigmoid().numpy()
    signed = "positive" if how in ("masked_image", "alpha_scaling") else "all"
    attr = maps[0].abs().add(1e-3).permute(1, 2, 0).numpy()
    viz.visualize_image_attr(attr, image, how, signed, plt_fig_axis=(figure, figure.subplots()), use_pyplot=False)


def test_progress(small_net, images, capsys):
    AdvCAM(small_net, steps=4).attribute(images, target=1)
    assert capsys.readouterr() == ("", "")
    AdvCAM(small_net, steps=4).attribute(images, target=1, show_progress=True)
    assert "5/5" in capsys.readouterr().err
    with pytest.raises(RuntimeError):
        AdvCAM(Failing(small_net, RuntimeError, 4), steps=4, stop=None).attribute(images, target=1, show_progress=True)
    from tqdm import tqdm

    assert not getattr(tqdm, "_instances", [])


def test_deterministic_without_warnings_or_random_numbers(method, small_net, images):
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = method(small_net).attribute(images, target=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(method(small_net).attribute(images, target=1), first)


def test_no_state_of_a_call_and_copies_work(method, small_net, images):
    attribution = method(small_net)
    first = attribution.attribute(images, target=1)
    state = {k: v for k, v in vars(attribution).items() if isinstance(v, Tensor)}
    assert not state
    for twin in (copy.deepcopy(attribution), pickle.loads(pickle.dumps(attribution))):
        assert torch.equal(twin.attribute(images, target=1), first)


def test_eight_threads_share_one(method, small_net, images):
    small_net.train()
    attribution = method(small_net)
    expected = [attribution.attribute(images + i, target=1) for i in range(8)]
    found: list[Tensor | None] = [None] * 8

    def work(i: int) -> None:
        found[i] = attribution.attribute(images + i, target=1)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(f is not None and same(f, e) for f, e in zip(found, expected, strict=True))
    assert all(m.training for m in small_net.modules())


def test_data_parallel(method, small_net, images):
    expected = method(small_net).attribute(images, target=1)
    assert torch.equal(method(nn.DataParallel(small_net)).attribute(images, target=1), expected)


@pytest.mark.parametrize(("size", "stride"), [(500, 32), (375, 16), (480, 32), (63, 4)])
@pytest.mark.parametrize("up", [True, False], ids=["rounded up", "rounded down"])
def test_cells_stay_over_their_pixels(size, stride, up):
    """A ramp over the cells is a ramp over the pixels, constant beyond the outermost centres (ConvNeXt rounds down)."""
    count = -(-size // stride) if up else size // stride
    ramp = torch.arange(count, dtype=torch.float64).expand(1, 1, count, count)
    found = resize(ramp, (size, size))[0, 0]
    expected = ((torch.arange(size, dtype=torch.float64) + 0.5) / stride - 0.5).clamp(0, count - 1)
    torch.testing.assert_close(found, expected.expand(size, size))
