"""Codecs: what a latent loses on its way through bytes, and what is refused."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lclm_rag import StoreError
from lclm_rag.store import quantization
from lclm_rag.store.codecs import CODECS, CodecName, decode, encode, latent_bytes
from lclm_rag.store.quantization import LEVELS

QUANTIZED: tuple[CodecName, ...] = ("int8", "int4")

# The largest error of a latent, as a share of its norm. int4: of 6,000 Gaussian latents of width 48, the
# worst loses 0.23, those of other widths less.
WORST_ERROR = {"bf16": 2**-8, "fp16": 2**-11, "int8": 0.02, "int4": 0.27}
# Its square's mean over many latents of width 32 and more: for int4, a Gaussian's 0.0095.
MEAN_SQUARED_ERROR = {"bf16": 4e-6, "fp16": 3e-7, "int8": 1e-4, "int4": 0.011}

codecs = st.sampled_from(CODECS)
widths = st.one_of(st.integers(1, 70), st.sampled_from([192, 1000, 1024]))
seeds = st.integers(0, 2**32)


def gaussian(n: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def uneven(n: int, width: int, seed: int) -> torch.Tensor:
    """As trained encoders make them: coordinates of very different size, some with a large mean."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.exp(1.5 * torch.randn(width, generator=generator))
    mean = 30.0 * (torch.rand(width, generator=generator) < 0.02)
    return (torch.randn(n, width, generator=generator) + mean) * size


def error(latents: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """[n]: the norm of what was lost, as a share of the latent's."""
    lost = (decoded.double() - latents.double()).norm(dim=1)
    share: torch.Tensor = lost / latents.double().norm(dim=1).clamp_min(1e-300)
    return share


@settings(deadline=None, max_examples=60)
@given(codec=codecs, width=widths, n=st.integers(1, 9), seed=seeds, make=st.sampled_from([0, 1]))
def test_a_latent_comes_back_within_the_codecs_error(
    codec: CodecName, width: int, n: int, seed: int, make: int
) -> None:
    latents = (gaussian, uneven)[make](n, width, seed)
    stored = encode(latents, codec)
    assert stored.dtype == np.uint8
    assert stored.shape == (n, latent_bytes(codec, width))
    decoded = decode(stored, codec, width)
    assert decoded.shape == (n, width)
    # fp16 loses more of numbers below 6e-5, where its steps stop shrinking.
    assert (error(latents, decoded) <= WORST_ERROR[codec] + 1e-6).all()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("make", [gaussian, uneven])
@pytest.mark.parametrize("width", [48, 192, 997, 1024])
def test_the_error_of_many_is_small_however_uneven_they_are(
    codec: CodecName, make: object, width: int
) -> None:
    latents = make(2000, width, 1)  # type: ignore[operator]
    decoded = decode(encode(latents, codec), codec, width)
    assert error(latents, decoded).square().mean() < MEAN_SQUARED_ERROR[codec]


@pytest.mark.parametrize(
    ("codec", "width", "size"),
    [
        ("bf16", 7, 14),
        ("fp16", 64, 128),
        ("int8", 7, 9),
        ("int8", 1024, 1026),
        ("int4", 7, 6),
        ("int4", 1024, 514),
    ],
)
def test_bytes_of_a_latent(codec: CodecName, width: int, size: int) -> None:
    assert latent_bytes(codec, width) == size


@settings(deadline=None, max_examples=60)
@given(
    codec=st.sampled_from(QUANTIZED),
    width=st.sampled_from([1, 2, 7, 48, 192, 1024]),
    exponent=st.integers(-45, 33),
    kind=st.sampled_from(["zeros", "one", "outlier", "equal", "all"]),
    seed=seeds,
)
def test_extreme_latents_stay_finite(
    codec: CodecName, width: int, exponent: int, kind: str, seed: int
) -> None:
    latents = torch.zeros(1, width, dtype=torch.float64)
    at = seed % width
    if kind in ("outlier", "all"):
        latents += gaussian(1, width, seed)
    if kind == "one":
        latents[0, at] = 1
    if kind == "outlier":
        latents[0, at] = 1e4
    if kind == "equal":
        latents += 1
    latents = (latents * 10.0**exponent).float()
    decoded = decode(encode(latents, codec), codec, width)
    assert torch.isfinite(decoded).all()
    if kind == "zeros":
        assert not decoded.any()
    elif exponent > -34:
        assert error(latents, decoded) <= WORST_ERROR[codec]


@settings(deadline=None, max_examples=20)
@given(codec=codecs, width=widths, n=st.integers(1, 600), seed=seeds, data=st.data())
def test_a_latent_does_not_depend_on_its_neighbours(
    codec: CodecName, width: int, n: int, seed: int, data: st.DataObject
) -> None:
    latents = uneven(n, width, seed)
    stored = encode(latents, codec)
    start = data.draw(st.integers(0, n - 1))
    end = data.draw(st.integers(start + 1, n))
    assert np.array_equal(encode(latents[start:end], codec), stored[start:end])
    part = decode(stored[start:end], codec, width)
    assert torch.equal(part, decode(stored, codec, width)[start:end])


@pytest.mark.parametrize("codec", CODECS)
def test_equal_latents_give_equal_bytes(codec: CodecName) -> None:
    latents = uneven(300, 192, 5)
    assert np.array_equal(encode(latents, codec), encode(latents.clone(), codec))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_latents_of_any_float_are_taken_and_given(codec: CodecName, dtype: torch.dtype) -> None:
    latents = gaussian(20, 48, 3)
    stored = encode(latents.to(dtype), codec)
    decoded = decode(stored, codec, 48, dtype)
    assert decoded.dtype == dtype
    assert torch.equal(decoded, decode(stored, codec, 48).to(dtype))
    assert (error(latents, decoded) < WORST_ERROR[codec] + 2**-7).all()


@pytest.mark.parametrize(("codec", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_floats_share_the_memory_of_what_is_stored(codec: CodecName, dtype: torch.dtype) -> None:
    stored = encode(gaussian(5, 7, 0), codec)
    for wanted in (None, dtype):
        decoded = decode(stored, codec, 7, wanted)
        assert decoded.dtype == dtype
        assert decoded.data_ptr() == stored.ctypes.data


@pytest.mark.parametrize("codec", QUANTIZED)
def test_without_a_dtype_integers_are_decoded_in_float32(codec: CodecName) -> None:
    assert decode(encode(gaussian(5, 7, 0), codec), codec, 7).dtype == torch.float32


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(codec: CodecName, value: float) -> None:
    latents = gaussian(3, 8, 0)
    latents[1, 2] = value
    with pytest.raises(StoreError, match=r"^Latents are not finite\.$"):
        encode(latents, codec)


@pytest.mark.parametrize(
    ("codec", "value", "message"),
    [
        ("bf16", 1e39, "do not fit into bf16."),
        ("fp16", 1e6, "do not fit into fp16; use bf16."),
        ("int8", 2e38, "do not fit into int8; use bf16."),
        ("int4", 2e38, "do not fit into int4; use bf16."),
    ],
)
def test_what_is_too_large_is_refused(codec: CodecName, value: float, message: str) -> None:
    latents = gaussian(3, 8, 0).double()
    latents[1, 2] = value
    with pytest.raises(StoreError, match=f"^Latents {message}$"):
        encode(latents, codec)


@pytest.mark.parametrize("codec", QUANTIZED)
@pytest.mark.parametrize("width", [1, 6, 7, 192])
def test_another_program_reads_it_from_the_description(codec: CodecName, width: int) -> None:
    stored = encode(uneven(3, width, 2), codec)
    decoded = decode(stored, codec, width).numpy()
    for row, expected in zip(stored, decoded, strict=True):
        assert np.allclose(
            as_described(row.tobytes(), codec, width), expected, rtol=1e-4, atol=1e-4
        )


def as_described(row: bytes, codec: CodecName, width: int) -> np.ndarray:
    """One latent, read in plain steps as the docstring of `lclm_rag.store.codecs` says."""
    codes, scale_bits = row[:-2], int.from_bytes(row[-2:], "little")
    scale = np.array([scale_bits << 16], np.uint32).view(np.float32)[0]
    if codec == "int8":
        levels = [float(np.int8(byte - 256 if byte > 127 else byte)) for byte in codes]
    else:
        levels = [LEVELS[half] for byte in codes for half in (byte % 16, byte // 16)][:width]
    rotated = [scale * level for level in levels]
    parts, spectrum = rotated[1:], [complex(rotated[0])]
    for k in range(1, width // 2 + 1):
        if 2 * k == width:
            spectrum.append(complex(parts.pop(0)))
        else:
            spectrum.append(complex(parts.pop(0), parts.pop(0)) / 2**0.5)
    digest = hashlib.shake_128(b"lclm_rag").digest(1000)
    signs = [-1 if digest[i // 8] >> (7 - i % 8) & 1 else 1 for i in range(width)]
    return np.fft.irfft(spectrum, n=width, norm="ortho") * signs


class Watched(TorchDispatchMode):
    """The tensors made from numbers of Python, and the rows of each Fourier transform."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0
        self.rows = list[int]()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.made += "lift_fresh" in str(op)
        if "fft" in str(op):
            self.rows.append(len(args[0]))
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("codec", QUANTIZED)
def test_on_a_gpu_each_batch_uses_the_constants_and_the_plan_of_the_first(
    codec: CodecName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here in blocks on a CPU: of 64, whatever the number of latents."""
    counts = (1, 64, 150)
    plain = {n: encode(uneven(n, 65, seed=n), codec) for n in counts}
    monkeypatch.setitem(quantization._BLOCKS, "cpu", 64)
    with Watched() as watched:
        blocks = {n: encode(uneven(n, 65, seed=n), codec) for n in counts}
    for n in counts:
        assert (blocks[n] == plain[n]).all()
    assert watched.rows == [64] * 5
    latents = uneven(150, 65, seed=1)
    with Watched() as watched:
        encode(latents, codec)
    assert watched.made == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("codec", CODECS)
def test_latents_on_another_gpu_than_the_current_one_are_stored_as_they_are(
    codec: CodecName,
) -> None:
    latents = gaussian(200_000, 64, seed=0).to("cuda:1")
    with torch.cuda.device(1):
        there = encode(latents, codec)
    with torch.cuda.device(0):
        elsewhere = encode(latents, codec)
    assert (elsewhere == there).all()
