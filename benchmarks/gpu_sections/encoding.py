"""Encoding of approximators on the device, byte for byte as the store encodes them."""

# K rows, P parameters, S scales

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from gpu_sections.bench import Bench
from pipeline.evaluation.throughput import seconds_of
from storage.encoding import ENCODINGS
from storage.quantization import encode


def encoding(bench: Bench) -> None:
    """Encode approximators on the device and on the CPU: the same bytes, at which rate."""
    width, num = (
        (10_000, 2) if bench.quick else (11_181_642, 8 if bench.device.type == "cuda" else 2)
    )
    generator = torch.Generator().manual_seed(4)
    rows_KP = (1e-3 * torch.randn(num, width, generator=generator)).to(bench.device)
    gigabytes = num * width * 4 / 1e9
    for name, encoder in (("int8", _int8), ("float16", _float16)):
        with bench.guard(f"encoding to {name}", form=bench.device.type):
            codes, scales = encoder(rows_KP)
            stored = encode(rows_KP[0].cpu().numpy(), name)
            same = np.array_equal(codes[0].cpu().numpy().view(np.uint8), stored.codes)
            same &= np.array_equal(scales[0].cpu().numpy().view(np.uint16), stored.scales)
            seconds = seconds_of(partial(encoder, rows_KP), bench.device, bench.turn)
            fetching = seconds_of(partial(_fetched, encoder, rows_KP), bench.device, bench.turn)
            bench.emit(
                f"encoding to {name}",
                form=f"torch on {bench.device.type}",
                K=num,
                ms=1e3 * seconds / num,
                note=f"a row; {gigabytes / seconds:.4g} GB/s of float32; with the copy "
                f"to the host {1e3 * fetching / num:.4g} ms; "
                f"bytes {'equal' if same else 'DIFFER from'} the store's",
            )
        with bench.guard(f"encoding to {name}", form="the store, CPU"):
            row = rows_KP[0].cpu().numpy()
            seconds = seconds_of(partial(encode, row, name), torch.device("cpu"), bench.turn)
            bench.emit(
                f"encoding to {name}",
                form="the store's own, one thread of the CPU",
                ms=1e3 * seconds,
                note=f"a row; {row.nbytes / seconds / 1e9:.4g} GB/s; it measures the error as well",
            )


def _fetched(encoder: Callable[[Tensor], tuple[Tensor, Tensor]], rows_KP: Tensor) -> list[Tensor]:
    return [part.cpu() for part in encoder(rows_KP)]


def _scales_above(bounds: Tensor) -> Tensor:
    """Return the bits of the smallest bfloat16 not below each bound, as int16."""
    least = torch.full_like(bounds, 2.0**-126)
    bits = torch.where(bounds > 0, torch.maximum(bounds, least), torch.zeros_like(bounds))
    return ((bits.view(torch.int32) + 0xFFFF) >> 16).to(torch.int16)


def _from_bits(scales: Tensor) -> Tensor:
    return (scales.to(torch.int32) << 16).view(torch.float32)


def _int8(rows_KP: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes (K, P) int8 and scales (K, S), the bits of bfloat16, as `storage` encodes."""
    block = ENCODINGS["int8"].scale_block
    num, width = rows_KP.shape
    blocks = nn.functional.pad(rows_KP, (0, -width % block)).view(num, -1, block)
    # Divided by a number on the CPU, a GPU would multiply by its rounded reciprocal.
    divisor = torch.tensor(127.0, device=rows_KP.device)
    scales = _scales_above(torch.div(blocks.abs().amax(2), divisor))
    factors = _from_bits(scales)[:, :, None]
    codes = torch.where(factors != 0, blocks / factors, torch.zeros_like(blocks))
    codes = codes.round_().clamp_(-127, 127).to(torch.int8)
    return codes.view(num, -1)[:, :width].contiguous(), scales


def _float16(rows_KP: Tensor) -> tuple[Tensor, Tensor]:
    """As `_int8`; one power of two per block, so that the peak lies in [2^14, 2^15]."""
    block = ENCODINGS["float16"].scale_block
    num, width = rows_KP.shape
    blocks = nn.functional.pad(rows_KP, (0, -width % block)).view(num, -1, block)
    exponents = torch.frexp(blocks.abs().amax(2))[1].sub(15).clamp(-125, 113)
    factors = torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), exponents)
    codes = (blocks / factors[:, :, None]).to(torch.float16)
    scales = (factors.view(torch.int32) >> 16).to(torch.int16)
    return codes.view(num, -1)[:, :width].contiguous(), scales
