"""Training clips out of a pool of video frames: gathered, cropped, coloured and normalised in one launch.

u = left W + (x + 1/2) width - 1/2      output pixel (x, y) reads the source at (u, v), bilinear, within the picture
v = top H + (y + 1/2) height - 1/2
p1 = brightness p                       p in [0, 1], and m the mean of the clip's frames before any change
p2 = m brightness + contrast (p1 - m brightness)
p3 = grey + saturation (p2 - grey)      grey: the mean of the three channels of p2
out = (clamp(p3, 0, 1) - mean) / std    ImageNet's

A thread has all three channels of its pixels: coordinates and shares are computed once for them, and grey asks no other
thread. With the channels in threads of their own, a program takes more than twice the instructions (`bench/LOG.md`).
Offsets within a frame are 32 bits wide, those of frames 64: a pool may have any size.
"""
# pyright: reportOperatorIssue=false
# (what Triton compiles has types that a checker of Python does not know)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from actdet_kernels.reference import IMAGENET_MEAN, IMAGENET_STD
from actdet_kernels.triton import launch
from actdet_kernels.triton.launch import compiler_options, tile_count

# Pixels of one program, and frames whose levels are added up at a time.
BLOCK_P = 512
BLOCK_T = 32

MEAN_R, MEAN_G, MEAN_B = map(tl.constexpr, IMAGENET_MEAN)
STD_R, STD_G, STD_B = map(tl.constexpr, IMAGENET_STD)


@triton.jit
def mean_level(levels, indices, length, frames, BLOCK_T: tl.constexpr):
    """The mean of a clip's levels, over those of its frames that there are."""
    total = tl.zeros([BLOCK_T], tl.float32)
    known = tl.zeros([BLOCK_T], tl.float32)
    for first in range(0, length, BLOCK_T):
        o_t = first + tl.arange(0, BLOCK_T)
        frame = tl.load(indices + o_t, mask=o_t < length, other=-1)
        m_t = (frame >= 0) & (frame < frames)
        total += tl.load(levels + frame, mask=m_t, other=0)
        known += m_t.to(tl.float32)
    return tl.sum(total, axis=0) / tl.sum(known, axis=0)


@triton.jit
def source_pixels(o, start, extent, size):
    """Where output pixels `o` of a side of `size` pixels read: the nearest two, and the share of the second."""
    place = start * size - 0.5 + (o + 0.5) * extent

    # Within the picture even where it is NaN.
    place = tl.minimum(tl.where(place > 0, place, 0.0), size - 1)
    first = place.to(tl.int32)
    return first, tl.minimum(first + 1, size - 1), place - first


@triton.jit
def load_pixels(frame, o_p):
    """The three channels, in [0, 255]."""
    frame += o_p * 3
    return tl.load(frame).to(tl.float32), tl.load(frame + 1).to(tl.float32), tl.load(frame + 2).to(tl.float32)


@triton.jit
def between(a, b, share):
    """a where share is 0, b where it is 1, of every channel."""
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1]), a[2] + share * (b[2] - a[2])


@triton.jit
def change_colour(p, level, brightness, contrast, saturation):
    level *= brightness
    p = between((level, level, level), (p[0] * brightness, p[1] * brightness, p[2] * brightness), contrast)
    grey = (p[0] + p[1] + p[2]) * (1 / 3)
    p = between((grey, grey, grey), p, saturation)
    return within_range(p[0]), within_range(p[1]), within_range(p[2])


@triton.jit
def within_range(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit(do_not_specialize=["frames", "length", "height", "width"])
def gather_clips_kernel(
    pool, indices, windows, colour, levels, out,
    frames, length, height, width,
    BLOCK_P: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """out (B * length, height, width, 3): one program writes BLOCK_P pixels of one frame.

    Nothing is masked, which would take instructions for every byte that is read: what would be past the last pixel is
    the last once more, and a frame of NaN reads frame 0.
    """
    pixels = height * width
    tiles = tl.cdiv(pixels, BLOCK_P)
    i_f = tl.program_id(0) // tiles
    i_b = (i_f // length).to(tl.int64)
    i_f = i_f.to(tl.int64)
    o_p = (tl.program_id(0) % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
    o_p = tl.minimum(o_p, pixels - 1)
    index = tl.load(indices + i_f)
    known = (index >= 0) & (index < frames)
    frame = pool + tl.where(known, index, 0) * pixels * 3

    # NaN, too, where one of the numbers below is not finite.
    flaw = tl.where(known, 0.0, float("nan"))

    if windows is None:
        p = load_pixels(frame, o_p)
    else:
        windows += i_b * 4
        left = tl.load(windows)
        top = tl.load(windows + 1)
        across = tl.load(windows + 2)
        down = tl.load(windows + 3)
        flaw += left * 0 + top * 0 + across * 0 + down * 0
        y = o_p // width
        x1, x2, share_x = source_pixels(o_p - y * width, left, across, width)
        y1, y2, share_y = source_pixels(y, top, down, height)
        above = between(load_pixels(frame, y1 * width + x1), load_pixels(frame, y1 * width + x2), share_x)
        below = between(load_pixels(frame, y2 * width + x1), load_pixels(frame, y2 * width + x2), share_x)
        p = between(above, below, share_y)
    p = (p[0] * (1 / 255), p[1] * (1 / 255), p[2] * (1 / 255))
    if colour is not None:
        colour += i_b * 3
        brightness = tl.load(colour)
        contrast = tl.load(colour + 1)
        saturation = tl.load(colour + 2)
        level = mean_level(levels, indices + i_b * length, length, frames, BLOCK_T)
        flaw += brightness * 0 + contrast * 0 + saturation * 0 + level * 0
        p = change_colour(p, level, brightness, contrast, saturation)

    out += i_f * pixels * 3 + o_p * 3
    tl.store(out, (p[0] - MEAN_R) * (1 / STD_R) + flaw)
    tl.store(out + 1, (p[1] - MEAN_G) * (1 / STD_G) + flaw)
    tl.store(out + 2, (p[2] - MEAN_B) * (1 / STD_B) + flaw)


def gather_clips(
    frames: Tensor,
    indices: Tensor,
    windows: Tensor | None,
    colour: Tensor | None,
    levels: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """(B, 3, T, H, W) of `dtype`, channels_last_3d."""
    batch, length = indices.shape
    count, height, width, channels = frames.shape
    out = launch.empty((batch, length, height, width, channels), dtype, frames.device)
    launch.launch(
        gather_clips_kernel,
        batch * length * tile_count(height * width, BLOCK_P),
        pool=frames,
        indices=indices.contiguous(),
        windows=None if windows is None else windows.contiguous(),
        colour=None if colour is None else colour.contiguous(),
        levels=None if levels is None else levels.contiguous(),
        out=out,
        frames=count,
        length=length,
        height=height,
        width=width,
        BLOCK_P=BLOCK_P,
        BLOCK_T=BLOCK_T,
        **compiler_options(fused=True),
    )
    return out.permute(0, 4, 1, 2, 3)
