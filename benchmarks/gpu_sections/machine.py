"""The machine itself: products, memory, transfers."""

from __future__ import annotations

import platform

import torch

from gpu_sections.bench import Bench
from pipeline.evaluation.throughput import PRECISIONS, seconds_of


def machine(bench: Bench) -> None:
    """Measure what everything else is compared with: products, memory, transfers."""
    device = bench.device
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        cudnn = torch.backends.cudnn.version()
        note = f"{about.total_memory / 2**30:.0f} GiB, {about.multi_processor_count} SMs, cuDNN {cudnn}"
        bench.emit(about.name, note=note)
    else:
        bench.emit(platform.processor() or "CPU", note=f"{torch.get_num_threads()} threads")
    for name in ("float64", *PRECISIONS):
        with bench.guard("matrix product", precision=name):
            bench.emit("matrix product", precision=name, tflops=bench.rate(name) / 1e12)
    num_bytes = (1 << 20) if bench.quick else (1 << 30 if device.type == "cuda" else 1 << 27)
    with bench.guard("copy in memory"):
        source = torch.empty(num_bytes // 4, device=device)
        target = torch.empty_like(source)
        seconds = seconds_of(lambda: target.copy_(source), device, bench.turn)
        bench.emit("copy in memory", note=f"{2 * num_bytes / seconds / 1e9:.4g} GB/s, both ways")
        host = torch.empty(num_bytes // 4, pin_memory=device.type == "cuda")
        seconds = seconds_of(lambda: host.copy_(source), device, bench.turn)
        bench.emit("copy to the host", note=f"{num_bytes / seconds / 1e9:.4g} GB/s, pinned memory")
