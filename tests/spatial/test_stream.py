"""Streaming: any network band by band, equal to the whole-scene call, in memory that does not grow with height."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, QUICK, build, scene
from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPPPooling
from timm.layers import DropPath
from torch import nn

from rsseglab.spatial import SpatialError, lazy, schedule, stream
from rsseglab.spatial.lazy import Input, Node, Ref


def streamed(plan, image, **options):
    """The output, whole; and that each row of the image is read once, and bands come from top to bottom."""
    reads, bands = [], []

    def read(row0, row1):
        reads.append((row0, row1))
        return image[:, :, row0:row1]

    for first, end, band in plan.run(read, **options):
        assert first == (bands[-1][1] if bands else plan.outputs[0][0])
        bands.append((first, end, band))
    rows = [row for row0, row1 in reads for row in range(row0, row1)]
    assert len(rows) == len(set(rows))
    return torch.cat([band for *_, band in bands], 2)


def difference(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


def check(decoder, encoder, size):
    model, image = build(decoder, encoder).eval(), scene(size, 1)
    with torch.no_grad():
        whole = model(image)
    plan = stream.plan(model, *size, 3, rows=24)
    assert difference(streamed(plan, image), whole) < 1e-10
    short = stream.plan(model, *size, 3, rows=24, memory_mib=plan.peak_bytes / 2**21)
    assert short.written_bytes and short.peak_bytes < plan.peak_bytes
    assert difference(streamed(short, image), whole) < 1e-10
    model.to(memory_format=torch.channels_last)  # bands lie in the middle of their rooms; and a plan holds no values
    image = image.to(memory_format=torch.channels_last)
    assert difference(streamed(plan, image), whole) < 1e-10
    assert difference(streamed(short, image), whole) < 1e-10


@pytest.mark.parametrize(("decoder", "encoder", "size"), QUICK)
def test_quick_networks(decoder, encoder, size):
    check(decoder, encoder, size)


@pytest.mark.slow
@pytest.mark.parametrize(("decoder", "encoder", "size"), [n for n in NETWORKS if n not in QUICK])
def test_networks(decoder, encoder, size):
    check(decoder, encoder, size)


class Rooms(nn.Module):
    """Bands under windows of many sizes, in memory that others write to, or want for themselves."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.down, self.narrow = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        y = F.relu(self.norm(self.conv(x)))
        a, b = self.wide(y), F.interpolate(self.down(y), size=y.shape[2:])
        z = torch.cat([a, F.max_pool2d(y, 3, 1, 1)], 1)
        y.mul_(2)  # after windows over it were read, and before others are
        c, d = self.wide(y + a), F.pad(self.narrow(y.relu_()), (1, 1, 1, 1))
        return torch.cat([F.relu(F.relu(z)), F.avg_pool2d(z, 5, 1, 2), F.relu(c), d.roll(1, 2) + b], 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("memory_mib", [None, 0.02])
def test_bands_in_rooms(dtype, memory_mib, monkeypatch):
    model, image = Rooms().to(dtype, memory_format=torch.channels_last).eval(), scene((70, 24), 1).to(dtype)
    image = image.to(memory_format=torch.channels_last)
    with torch.no_grad():
        whole = model(image)
    joined, beside = [], lazy.beside

    def counted(pieces, own):
        window = beside(pieces, own)
        joined.append(window.untyped_storage().data_ptr() == pieces[own].untyped_storage().data_ptr())
        return window

    monkeypatch.setattr(lazy, "beside", counted)
    plan = stream.plan(model, 70, 24, 3, rows=7, dtype=dtype, memory_mib=memory_mib)
    assert difference(streamed(plan, image), whole) < (1e-10 if dtype == torch.float64 else 1e-5)
    assert len(joined) > 40 and (memory_mib or all(joined))  # what comes back from disk has no room


BESIDE = {
    "two means": lambda y, p: torch.cat([y.mean(2, True), y], 2) - torch.cat([y.amax(2, True), y], 2),
    "channels": lambda y, p: torch.cat([torch.cat([p, y], 2), torch.cat([2 * p, y], 2)], 1),
    "where": lambda y, p: torch.where(torch.cat([p, y], 2) > 0, torch.cat([2 * p, y], 2), torch.cat([3 * p, y], 2)),
    "two kinds": lambda y, p: F.avg_pool2d(torch.cat([p, y.float()], 2), 1),
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_band_beside_other_rows_in_one_operation(name):
    """Each of the windows that it reads over one band has its own rows around it, of their own kind."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, padding=1).double().to(memory_format=torch.channels_last)
    rows = torch.randn(1, 8, 1, 24, dtype=torch.float64)
    model = Refused(lambda x: BESIDE[name](F.relu(conv(x)), rows)).eval()
    image = scene((70, 24), 1).to(memory_format=torch.channels_last)
    with torch.no_grad():
        whole = model(image)
    plan = stream.plan(model, 70, 24, 3, rows=7, dtype=torch.float64)
    assert difference(streamed(plan, image), whole) < 1e-12


def test_a_room_is_of_the_results_kind():
    """Not of the first operand's, to which sums would be rounded."""

    def sums(x):
        return F.avg_pool2d(x.half() + x, 3, 1, 1)

    image = scene((40, 20), 1).float().to(memory_format=torch.channels_last)
    plan = stream.plan(Refused(sums).eval(), 40, 20, 3, rows=8, dtype=torch.float32)
    assert torch.equal(streamed(plan, image), sums(image))


class Plain(nn.Module):
    """Convolutions, a stride, a resize, in place: as reachable as real networks, and small."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.head = nn.Conv2d(11, 4, 3, padding=1)

    def forward(self, x):
        y = self.second(self.first(x))
        return self.head(torch.cat([x, F.interpolate(y, size=x.shape[2:], mode="bilinear")], 1))


class Shared(nn.Module):
    """What activations overwrite is read by others too, or is not the network's: the image itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(7, 2, 1)

    def forward(self, x):
        y = self.norm(self.first(F.relu(x)))
        z = F.relu(y) - 2 * y + F.relu(-y)
        return self.last(torch.cat([F.relu(F.relu(z)), F.relu(x)], 1))


def test_an_activation_overwrites_nothing_that_is_read_again():
    model, image = Shared().double().eval(), scene((40, 9), 1)
    kept = image.clone()
    with torch.no_grad():
        whole = model(image)
    plan = stream.plan(model, 40, 9, 3, rows=8)
    assert any(step.overwrites for step in plan.steps) and not all(
        step.overwrites for step in plan.steps if step.node.operand is not None
    )
    for _ in range(2):
        assert difference(streamed(plan, image), whole) < 1e-12
        assert torch.equal(image, kept)


def test_an_activation_overwrites_nothing_that_was_given_away():
    """A result is asked for, and an activation of it, which comes later."""
    aten, two = torch.ops.aten, [torch.empty(2)]
    image = Node(lambda image: image, (Input("image"),), {}, "", 0, 0, two)
    minus = Node(aten.neg.default, (Ref(image),), {}, "", 0, 1, two)
    relu = Node(aten.relu.default, (Ref(minus),), {}, "", 0, 2, two)
    played = schedule.Schedule([image, minus, relu], [Ref(minus), Ref(relu)], None)
    given = dict(played.play({"image": torch.tensor([1.0, -2.0])}, None, None))
    assert given[0].tolist() == [-1, 2] and given[1].tolist() == [0, 2]


@pytest.mark.parametrize("size", [(131, 50), (64, 33), (17, 8), (1, 9)])
def test_odd_sizes(size):
    model, image = Plain().double().eval(), scene(size, 1)
    with torch.no_grad():
        whole = model(image)
    for rows in (1, 7, 32, 500):
        assert difference(streamed(stream.plan(model, *size, 3, rows=rows), image), whole) < 1e-12


def test_float32_gives_the_labels_wherever_they_are_clear():
    """Where the best class leads by more than the plain call's own error; elsewhere, few and counted."""
    model, image = build("Unet", "resnet18").eval(), scene((256, 192), 1)
    with torch.no_grad():
        exact = model(image)
        model, image = model.float(), image.float()
        plain = model(image)
    ours = streamed(stream.plan(model, 256, 192, 3, rows=32), image)
    first, second = exact.topk(2, dim=1)[0].unbind(1)
    clear = first - second > 2 * (plain - exact).abs().max()
    differs = ours.argmax(1) != plain.argmax(1)
    assert not (differs & clear).any() and clear.double().mean() > 0.99
    assert differs.sum() <= (~clear).sum() and (ours - exact).abs().max() < 3 * (plain - exact).abs().max()


def test_memory_does_not_grow_with_height():
    model = Plain().eval()
    low, high = (stream.plan(model, height, 64, 3, rows=16) for height in (512, 4096))
    assert low.peak_bytes == high.peak_bytes and low.passes == high.passes == 1
    assert 0 < low.reach == high.reach < 80
    width = stream.plan(model, 512, 128, 3, rows=16)
    assert 1.9 < width.peak_bytes / low.peak_bytes < 2.1


def test_an_operation_over_all_is_a_pass_and_goes_to_disk():
    class Pooled(Plain):
        def forward(self, x):
            y = super().forward(x)
            return y * torch.sigmoid(y.mean((2, 3), keepdim=True))

    model, image = Pooled().double().eval(), scene((512, 40), 1)
    free = stream.plan(model, 512, 40, 3, rows=16)
    assert free.passes == 2 and free.written_bytes == 0
    bound = stream.plan(model, 512, 40, 3, rows=16, memory_mib=0.5)
    tall = stream.plan(model, 2048, 40, 3, rows=16, memory_mib=0.5)
    assert max(bound.peak_bytes, tall.peak_bytes) <= 2**19 < free.peak_bytes
    assert tall.written_bytes > 3.5 * bound.written_bytes and bound.disk_bytes <= bound.written_bytes
    with torch.no_grad():
        assert difference(streamed(bound, image), model(image)) < 1e-12


def test_from_a_row_on():
    model, image = Plain().double().eval(), scene((400, 40), 1)
    with torch.no_grad():
        whole = model(image)
    plan = stream.plan(model, 400, 40, 3, rows=16, start=320)
    first = plan.outputs[0][0]
    assert 300 < first <= 320 and difference(streamed(plan, image), whole[:, :, first:]) < 1e-12
    rows = []
    list(plan.run(lambda row0, row1: rows.append(row0) or image[:, :, row0:row1]))
    assert min(rows) > 250  # no more than the network's reach above it


def test_the_plan_as_table_and_picture():
    plan = stream.plan(Plain().eval(), 512, 64, 3, rows=16)
    said = str(plan).splitlines()
    assert said[0].startswith("512 x 64 px in 32 bands of about 16 rows, 1 pass; ")
    most = {layer: most for layer, (most, _) in plan.buffers().items()}
    assert set(most) >= {"first.0", "second.0", "head", ""} and any(line.startswith("(the image)") for line in said)
    assert sum(worst for _, worst in plan.buffers().values()) == plan.peak_bytes
    axes = plan.plot().axes[0]
    assert "(the image)" in [label.get_text() for label in axes.get_yticklabels()]
    assert axes.get_xlabel() == "row of the scene, px"


def test_gradients_and_coins_of_the_caller_are_left_alone():
    model, image = Plain().double().eval(), scene((64, 40), 1)
    plan = stream.plan(model, 64, 40, 3)
    for _, _, band in plan.run(lambda a, b: image[:, :, a:b]):
        assert torch.is_grad_enabled() and not band.requires_grad


class Refused(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x * 2 if x.mean() > 0 else x, "asks for values"),
        (lambda x: torch.fft.fft2(x).real, "has no rule"),
        (lambda x: x.mean(), "not a map"),
        (lambda x: x.sort(2)[0], "has no rule"),
        (lambda x: torch.zeros(1, 3, 1, 1).copy_(x.mean((2, 3), keepdim=True)) + x, "that does not; build the new"),
        (lambda x: x * torch.tensor(x.mean((2, 3)).tolist()), "asks for values"),
        (
            lambda x: x + torch.add(m := x.mean((2, 3), keepdim=True), 1, out=torch.empty_like(m)),
            "take what it returns",
        ),
        (lambda x: x + x.mean((2, 3)).unsqueeze_(-1).unsqueeze_(-1), "another shape in place"),
        (lambda x: (x * (p := torch.ones(1)), p.mul_(2))[0], "overwritten after it was used"),
        (lambda x: x * torch.empty(1).bernoulli_(0.5), "random numbers that do not wait"),
    ],
)
def test_what_is_refused_before_a_pixel_is_read(function, message):
    with pytest.raises(SpatialError, match=message):
        stream.plan(Refused(function).eval(), 64, 32, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"rows": 0}, "rows is 0"),
        ({"rows": 0.5}, "rows is 0.5"),
        ({"memory_mib": -1}, "no memory"),
        ({"start": 64}, "no row 64"),
    ],
)
def test_sizes_that_are_none(options, message):
    with pytest.raises(SpatialError, match=message):
        stream.plan(Plain().eval(), **{"height": 64, "width": 32, "bands": 3} | options)


@pytest.mark.parametrize(
    "read",
    [
        lambda a, b: torch.zeros(1, 3, b - a + 2, 32),
        lambda a, b: torch.zeros(1, 3, b - a, 32, dtype=torch.uint8),
        lambda a, b: torch.zeros(1, 3, b - a, 32).numpy(),
    ],
)
def test_what_a_reader_gives_is_checked(read):
    with pytest.raises(SpatialError, match=r"read\(0, 64\) gives .*; it must be torch.float32 \[1, 3, 64, 32\]"):
        list(stream.plan(Plain().eval(), 64, 32, 3).run(read))


def test_a_network_is_as_it_was_after_planning():
    """Caches, counters, integers: nothing of a call without values stays."""

    class Caching(Plain):
        def __init__(self):
            super().__init__()
            self.cache, self.calls = {}, 0
            self.register_buffer("count", torch.zeros((), dtype=torch.long))

        def forward(self, x):
            self.calls += 1
            self.seen = self.cache.setdefault("weight", self.head.weight * 2)
            return super().forward(x) * self.seen.sum()

    model, image = Caching().double().eval(), scene((64, 40), 1)
    with torch.no_grad():
        whole = model(image)
    model.cache.clear()
    plan = stream.plan(model, 64, 40, 3)
    assert not model.cache and model.calls == 1 and type(model.seen) is torch.Tensor and not model._forward_hooks
    assert difference(streamed(plan, image), whole) < 1e-12
    model.forward = lambda x: Plain.forward(model, x) * (1 + model.count.add_(1))
    with pytest.raises(SpatialError, match="changes its buffer count"):
        stream.plan_gradients(model, 64, 40, 3)
    assert model.count == 0


@pytest.mark.parametrize("rows", [4, 16, 50])
@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m(x)[:, :, 3:],
        lambda m, x: m(F.pad(x, (8, 8, 8, 8), mode="reflect"))[:, :, 8:-8, 8:-8],
        lambda m, x: m(F.pad(x, (0, -x.shape[3] % 32, 0, -x.shape[2] % 32)))[:, :, : x.shape[2], : x.shape[3]],
        lambda m, x: F.interpolate(m(x), scale_factor=2)[:, :, 5:-7],
    ],
)
def test_what_is_cropped_comes_from_top_to_bottom(function, rows):
    model, image = Plain().double().eval(), scene((100, 40), 1)
    calls = Refused(lambda x: function(model, x)).eval()
    with torch.no_grad():
        whole = calls(image)
    assert difference(streamed(stream.plan(calls, 100, 40, 3, rows=rows, dtype=image.dtype), image), whole) < 1e-12


def test_what_is_held_and_written_is_what_the_plan_says(tmp_path, monkeypatch):
    """Bytes of the results that are there in each step, and of the files; the reader hands out slices of the image."""

    class Gated(nn.Conv2d):
        def forward(self, x):
            return x * super().forward(x).mean((2, 3), keepdim=True)[:, :3]

    torch.manual_seed(0)
    model, image = Gated(3, 64, 3, padding=1).double().eval(), scene((512, 40), 1)
    plan = stream.plan(model, 512, 40, 3, rows=16, memory_mib=0.6)
    held, disk, bands = [], [], []

    class Seen(schedule._Disk):
        def drop(self, node):
            held.append(sum(each.nbytes for each in self.values))
            super().drop(node)

    monkeypatch.setattr(schedule, "_Disk", Seen)
    for *_, band in plan.run(lambda a, b: image[:, :, a:b], tmp_path):
        disk.append(sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()))
        bands.append(band)
    with torch.no_grad():
        assert difference(torch.cat(bands, 2), model(image)) < 1e-12
    assert plan.written_bytes and max(held) == plan.peak_bytes <= 0.6 * 2**20
    assert max(disk) < 1.2 * plan.disk_bytes + 2**16  # and the files' own headers


def test_two_runs_of_a_plan_at_a_time():
    model, images = Plain().double().eval(), scene((100, 40), 2).split(1)
    plan = stream.plan(model, 100, 40, 3, rows=16)
    runs = [plan.run(lambda a, b, image=image: image[:, :, a:b]) for image in images]
    pairs = [(one[2], two[2]) for one, two in zip(*runs, strict=True)]
    with torch.no_grad():
        for image, bands in zip(images, zip(*pairs, strict=True), strict=True):
            assert difference(torch.cat(bands, 2), model(image)) < 1e-12


def test_an_extreme_over_all_is_a_pass():
    plan = stream.plan(Refused(lambda x: x * x.amax((2, 3), keepdim=True)).eval(), 64, 32, 3, rows=16)
    assert plan.passes == 2


def test_autocast_around_a_run_changes_nothing():
    weight, image = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), scene((64, 40), 1).float()
    model = Refused(lambda x: F.linear(x.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2)).eval()
    plan = stream.plan(model, 64, 40, 3, rows=16)
    with torch.autocast("cpu", torch.bfloat16):
        ours = streamed(plan, image)
    assert difference(ours, model(image)) < 1e-6


def test_memory_that_cannot_be_met_and_constants_are_said():
    model = Refused(lambda x: x * torch.ones(x.shape[2], 64)).eval()
    said = str(stream.plan(model, 8192, 64, 3, memory_mib=0.001))
    assert "more than the 0.001 MiB asked for" in said and "constants: 2 MiB" in said


def test_a_full_disk_is_named_and_left_clean(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    class Pooled(Plain):
        def forward(self, x):
            y = super().forward(x)
            return y * y.mean((2, 3), keepdim=True)

    monkeypatch.setattr(torch, "save", full)
    plan = stream.plan(Pooled().eval(), 512, 64, 3, rows=16, memory_mib=0.25)
    with pytest.raises(SpatialError, match="cannot take what does not fit in memory"):
        list(plan.run(lambda a, b: torch.zeros(1, 3, b - a, 64), tmp_path))
    assert not list(tmp_path.iterdir())


def all_of_it(x):
    y = x * 2
    seen = y.flatten(2)
    y += 1
    return y + seen.reshape(y.shape)


def after_a_resize(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear").relu_()


def in_the_sums(x):
    """A small tensor, in parts, by its transpose, and in another dtype."""
    sums = x.mean((2, 3))
    sums[:, 1] = 3
    sums.t().mul_(2)
    sums += torch.ones(3, dtype=torch.float64)
    return x * sums[:, :, None, None]


@pytest.mark.parametrize("function", [all_of_it, after_a_resize, in_the_sums])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_written_in_place_is_seen_by_all(function, dtype):
    image = scene((64, 8), 1).to(dtype)
    plan = stream.plan(Refused(function).eval(), 64, 8, 3, rows=16, dtype=dtype)
    ours, whole = streamed(plan, image), function(image.clone())
    assert ours.dtype == whole.dtype and difference(ours, whole) < (1e-14 if dtype == torch.float64 else 1e-6)


# ------------------------------------------------------------------------------------------------ training


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_gradients(model, size, **options):
    """Loss, gradients and running statistics of the whole scene."""
    image, twin = scene(size, 1), copy.deepcopy(model)
    label = torch.randint(0, 3, (1, *size), generator=torch.Generator().manual_seed(2))
    label[:, : size[0] // 5] = 255

    def loss(scores, label):
        return F.cross_entropy(scores, label, ignore_index=255)

    plan = stream.plan_gradients(model, *size, 3, loss, rows=24, **options)
    for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs)  # planning has changed nothing
    torch.manual_seed(3)
    whole = loss(twin(image), label)
    whole.backward()
    torch.manual_seed(3)
    ours = plan.backward(lambda a, b: image[:, :, a:b], lambda a, b: label[:, a:b])
    assert abs(ours - whole) < 1e-12
    theirs = gradients(twin)
    floor = 1e-4 * torch.stack([g.norm() for g in theirs.values()]).norm()
    for name, grad in gradients(model).items():
        assert (grad - theirs[name]).norm() <= 1e-10 * max(theirs[name].norm(), floor), name
    assert gradients(model).keys() == theirs.keys()
    for (name, ours), theirs in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max().clamp_min(1), name
    return plan


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("decoder", "encoder"), [("Unet", "resnet18"), ("FPN", "mobilenet_v2")])
def test_gradients(decoder, encoder, train):
    check_gradients(build(decoder, encoder).train(train), (96, 64))


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("decoder", ["Unet", "FPN", "DeepLabV3Plus"])
@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet-b0"])
def test_gradients_of_networks(decoder, encoder, train):
    def model():
        its = build(decoder, encoder).train(train)
        for module in its.modules():
            if isinstance(module, ASPPPooling):
                module.eval()  # a mean of one image is a single value, of which torch takes no batch statistics
        return its

    plan = check_gradients(model(), (96, 64))
    short = check_gradients(model(), (96, 64), memory_mib=plan.peak_bytes / 2**20 * 0.9)
    assert short.written_bytes


def test_gradients_add_up_and_a_plan_can_be_used_again():
    model = Plain().double().eval()
    image, label = scene((64, 40), 1), torch.randint(0, 4, (1, 64, 40))
    plan = stream.plan_gradients(model, 64, 40, 3)
    for _ in range(2):
        plan.backward(lambda a, b: image[:, :, a:b], lambda a, b: label[:, a:b])
    F.cross_entropy((twin := copy.deepcopy(model))(image), label).backward()
    for name, grad in gradients(twin).items():
        assert torch.allclose(2 * grad, gradients(model)[name], rtol=1e-12, atol=1e-14)


def test_coins_are_tossed_anew_in_each_run():
    """Dropout, of values and of channels, and drop-path; forward and backward toss the same."""

    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 3, 1, 1, dtype=torch.float64))
            self.drop = nn.Sequential(nn.Dropout(0.4), nn.Dropout2d(0.3), DropPath(0.2))

        def forward(self, x):
            return self.drop(x * self.weight) * torch.rand(len(x), 1, 1, 1)

    model, image = Dropped().train(), torch.ones(1, 3, 96, 50, dtype=torch.float64)
    plan = stream.plan_gradients(model, 96, 50, 3, lambda scores, label: scores.mean(), rows=16)
    losses, read = [], (lambda a, b: image[:, :, a:b], lambda a, b: torch.zeros(1, b - a, 50, dtype=torch.long))
    for seed in (0, 0, 1, 2, 3, 4):
        torch.manual_seed(seed)
        model.weight.grad = None
        losses.append(float(plan.backward(*read)))
        assert float(model.weight.grad.sum()) == pytest.approx(losses[-1], abs=1e-12)  # linear in the weight
    assert losses[0] == losses[1] and len(set(losses)) > 3


def test_a_norm_that_is_used_twice_and_a_label_that_is_overwritten():
    class Twice(Plain):
        def forward(self, x):
            y = self.first[0](x)
            return self.head(torch.cat([x, F.interpolate(self.first[1](self.first[1](y)), size=x.shape[2:])], 1))

    def loss(scores, label):
        label = label.masked_fill_(label == 255, 0)
        return F.cross_entropy(scores, label)

    model, image = Twice().double().train(), scene((64, 40), 1)
    twin, label = copy.deepcopy(model), torch.randint(0, 4, (1, 64, 40))
    label[:, :9] = 255
    plan = stream.plan_gradients(model, 64, 40, 3, loss, rows=16)
    ours = plan.backward(lambda a, b: image[:, :, a:b], lambda a, b: label[:, a:b])
    assert abs(ours - loss(twin(image), label.clone())) < 1e-12
    for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12)


def test_a_value_that_is_written_is_the_one_that_is_read():
    """A buffer that follows the image, and is used at once."""

    class Following(Plain):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.ones(1, 4, 1, 1))

        def forward(self, x):
            y = super().forward(x)
            with torch.no_grad():
                self.mean.lerp_(y.mean((2, 3), keepdim=True), 0.5)
            return y * self.mean

    check_gradients(Following().double().eval(), (64, 40))


def test_a_loss_with_parameters_of_its_own_is_refused():
    model, weight = Plain().eval(), nn.Parameter(torch.ones(()))
    for wrong in (lambda s, y: F.cross_entropy(s, y) * weight,
                  lambda s, y: F.cross_entropy(s, y) + model.head.weight.square().sum()):  # fmt: skip
        with pytest.raises(SpatialError, match="the loss has a parameter"):
            stream.plan_gradients(model, 64, 40, 3, wrong)
    with pytest.raises(SpatialError, match="the loss gives tuple"):
        stream.plan_gradients(model, 64, 40, 3, lambda s, y: (F.cross_entropy(s, y),))
    with pytest.raises(SpatialError, match="nothing can be learned"):
        stream.plan_gradients(model.requires_grad_(False), 64, 40, 3)


def test_a_plan_outlives_other_weights_and_statistics():
    """Of a frozen batch norm too; those that are assigned, not copied."""

    class Frozen(Plain):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.full((4, 1, 1), 2.0))

        def forward(self, x):
            return super().forward(x) * (self.scale * 2)

    model, image = Frozen().double().eval(), scene((64, 1), 1)
    plan = stream.plan(model, 64, 1, 3, rows=16)
    state = {n: v + torch.rand(v.shape) if v.is_floating_point() else v for n, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    with torch.no_grad():
        assert difference(streamed(plan, image), model(image)) < 1e-12


def test_a_plan_outlives_a_step():
    """What a network makes of its weights (here: standardised ones) is made anew in each run."""

    class Standardised(nn.Conv2d):
        def forward(self, x):
            var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
            return F.conv2d(x, (self.weight - mean) * torch.rsqrt(var + 1e-5), self.bias, padding=self.padding)

    torch.manual_seed(0)
    model = nn.Sequential(Standardised(3, 8, 3, padding=1), nn.ReLU(), Standardised(8, 4, 3, padding=1)).double().eval()
    image, label = scene((64, 40), 1), torch.randint(0, 4, (1, 64, 40))
    labelling, learning = stream.plan(model, 64, 40, 3), stream.plan_gradients(model, 64, 40, 3)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn_like(p)
        assert difference(streamed(labelling, image), model(image)) < 1e-12
    F.cross_entropy((twin := copy.deepcopy(model))(image), label).backward()
    learning.backward(lambda a, b: image[:, :, a:b], lambda a, b: label[:, a:b])
    for name, grad in gradients(twin).items():
        assert difference(gradients(model)[name], grad) < 1e-10


def test_memory_of_training_does_not_grow_with_height():
    low, high = (stream.plan_gradients(Plain().eval(), height, 64, 3, rows=16) for height in (512, 4096))
    assert high.peak_bytes <= 1.02 * low.peak_bytes
    train = [stream.plan_gradients(Plain().train(), height, 64, 3, rows=16) for height in (512, 1024)]
    assert train[0].passes > low.passes and train[1].peak_bytes > 1.8 * train[0].peak_bytes
    assert "passes" in str(train[0])
