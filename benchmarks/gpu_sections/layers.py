"""The convolutions of a product one by one, and the kernels in which it spends its time."""

# K tangents

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpu_sections.bench import Bench, whole_pass
from pipeline.evaluation.throughput import Subject, precision, seconds_of, synchronise


def layers(bench: Bench) -> None:
    """Time the convolutions of a product one by one, in both memory layouts, and its kernels."""
    case = bench.case("resnet18")
    num = 2 if bench.quick else (8 if bench.device.type == "cpu" else 32)
    subject = Subject.of(case, bench.device)
    shapes = list(_convolutions(subject).items())
    for label, at in shapes[:2] if bench.quick else shapes:
        if bench.left < 5 * bench.turn:
            bench.emit(label, note="skipped: time")
            continue
        for name in ("bfloat16", "tf32"):
            for layout in ("contiguous", "channels-last"):
                if bench.left < 0:
                    break
                with bench.guard(label, form=layout, precision=name), precision(name):
                    _layer(bench, label, at, case.batch, num, name, layout)
    with bench.guard("kernels of a product"):
        _kernels(bench, subject, num)


@dataclass(frozen=True)
class _Layer:
    """A convolution and the size of the maps that it meets."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    side: int


def _convolutions(subject: Subject) -> dict[str, _Layer]:
    """Return the different convolutions of a network, named by what they do."""
    found: dict[str, _Layer] = {}

    def seen(module: nn.Module, passed: tuple[Tensor, ...], output: Tensor) -> None:
        side = passed[0].shape[-1]
        at = _Layer(
            module.in_channels, module.out_channels, module.kernel_size[0], module.stride[0],
            module.padding[0], side,
        )  # fmt: skip
        name = f"conv {at.kernel}x{at.kernel} {at.inputs}-{at.outputs}, {side}x{side}"
        found[f"{name}, stride {at.stride}"] = at

    handles = [
        module.register_forward_hook(seen)
        for module in subject.module.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        subject.module(subject.batch.inputs[:1])
    for handle in handles:
        handle.remove()
    return found


def _layer(
    bench: Bench, label: str, at: _Layer, batch: int, num: int, name: str, layout: str
) -> None:
    """Time four kinds of products of a layer, as `ConvolutionTape` takes them."""
    dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
    memory = torch.channels_last if layout == "channels-last" else torch.contiguous_format

    def made(*shape: int) -> Tensor:
        values = torch.randn(*shape, device=bench.device, dtype=dtype)
        return values.contiguous(memory_format=memory)

    kernel = (at.kernel, at.kernel)
    shared, folded = (
        made(batch, at.inputs, at.side, at.side),
        made(batch * num, at.inputs, at.side, at.side),
    )
    weight, wide = made(at.outputs, at.inputs, *kernel), made(num * at.outputs, at.inputs, *kernel)
    settings = ([at.stride] * 2, [at.padding] * 2, [1, 1])

    def forward(inputs: Tensor, weights: Tensor) -> Tensor:
        return nn.functional.conv2d(inputs, weights, None, *settings)

    def backward(delta: Tensor, inputs: Tensor, weights: Tensor, place: int) -> Tensor:
        mask = [place == 0, place == 1, False]
        return torch.ops.aten.convolution_backward(
            delta, inputs, weights, None, *settings, False, [0, 0], 1, mask
        )[place]

    delta_wide, delta_folded = forward(shared, wide), forward(folded, weight)
    out_side = delta_folded.shape[-1]
    operations = 2 * batch * num * at.outputs * at.inputs * at.kernel**2 * out_side**2
    runs = {
        "x * dW": lambda: forward(shared, wide),
        "Rx * W": lambda: forward(folded, weight),
        "Rdelta, x": lambda: backward(delta_wide, shared, wide, 1),
        "Rdelta *^T W": lambda: backward(delta_folded, folded, weight, 0),
    }
    spent = 0.0
    for kind, run in runs.items():
        seconds = seconds_of(run, bench.device, bench.turn / 4)
        spent += seconds
        bench.emit(
            label,
            form=f"{kind}, {layout}",
            **bench.timing(name, num, operations, seconds),
            shown=False,
        )
    bench.emit(
        label,
        form=f"convolution, {layout}",
        **bench.timing(name, num, len(runs) * operations, spent),
        note=f"{', '.join(runs)}: one call each for all K; taps on padding counted",
    )


def _kernels(bench: Bench, subject: Subject, num: int) -> None:
    """Say which kernels a product spends its time in."""
    cuda = bench.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for name in ("bfloat16",) if bench.quick else ("bfloat16", "tf32"):
        run = whole_pass(subject, subject.batch, num, name)
        with precision(name):
            run()
            with torch.profiler.profile(activities=activities) as profile:
                run()
                synchronise(bench.device)
        timed = "self_device_time_total" if cuda else "self_cpu_time_total"
        events = [event for event in profile.key_averages() if getattr(event, timed) > 0]
        total = sum(getattr(event, timed) for event in events)
        events.sort(key=lambda event: -getattr(event, timed))
        for event in events[:8]:
            spent = getattr(event, timed)
            bench.emit(
                event.key[:60],
                form="kernels of a product",
                precision=name,
                K=num,
                ms=spent / 1e3,
                note=f"{spent / total:.1%} of a pass with K products; {event.count} calls",
            )
