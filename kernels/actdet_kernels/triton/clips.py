"""Makes training clips out of a pool of video frames: gathered, cropped, recolored and normalized in one launch.

u = left W + (x + 1/2) width - 1/2      output pixel (x, y) reads the source at (u, v), bilinear, within the picture
v = top H + (y + 1/2) height - 1/2
p1 = brightness p                       p in [0, 1], and m the mean of the clip's frames before any change
p2 = m brightness + contrast (p1 - m brightness)
p3 = gray + saturation (p2 - gray)      gray: the mean of the three channels of p2
out = (clamp(p3, 0, 1) - mean) / std    ImageNet's

Each thread computes all three channels of its pixels, so coordinates and shares are computed once for the three, and
gray needs no other thread. With one thread for each channel, a program takes more than twice the instructions
(`bench/LOG.md`). Offsets within a frame have 32 bits and offsets of frames 64, so a pool may have any size.
"""
# Pyright does not know the types of what Triton compiles.
# pyright: reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from actdet_kernels.reference import IMAGENET_MEAN, IMAGENET_STD
from actdet_kernels.triton import launch
from actdet_kernels.triton.launch import compiler_options, tile_count

# The pixels of one program, and the number of frames whose means are added up at a time.
BLOCK_P = 512
BLOCK_T = 32

MEAN_R, MEAN_G, MEAN_B = map(tl.constexpr, IMAGENET_MEAN)
STD_R, STD_G, STD_B = map(tl.constexpr, IMAGENET_STD)


@triton.jit
def clip_mean(frame_means, indices, length, frames, BLOCK_T: tl.constexpr):
    """Return the mean of a clip: the mean of `frame_means` over those of its frames that exist."""
    total = tl.zeros([BLOCK_T], tl.float32)
    known = tl.zeros([BLOCK_T], tl.float32)
    for first in range(0, length, BLOCK_T):
        o_t = first + tl.arange(0, BLOCK_T)
        frame = tl.load(indices + o_t, mask=o_t < length, other=-1)
        m_t = (frame >= 0) & (frame < frames)
        total += tl.load(frame_means + frame, mask=m_t, other=0)
        known += m_t.to(tl.float32)
    return tl.sum(total, axis=0) / tl.sum(known, axis=0)


@triton.jit
def source_pixels(o, start, extent, size):
    """Find where output pixels `o` along a side of `size` pixels read: the nearest two, and the second one's share."""
    place = start * size - 0.5 + (o + 0.5) * extent

    # Stay within the picture even if the place is NaN.
    place = tl.minimum(tl.where(place > 0, place, 0.0), size - 1)
    first = place.to(tl.int32)
    return first, tl.minimum(first + 1, size - 1), place - first


@triton.jit
def load_pixels(frame, o_p):
    """Load the three channels, in [0, 255]."""
    frame += o_p * 3
    return tl.load(frame).to(tl.float32), tl.load(frame + 1).to(tl.float32), tl.load(frame + 2).to(tl.float32)


@triton.jit
def between(a, b, share):
    """Interpolate every channel: `a` at a share of 0, `b` at a share of 1."""
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1]), a[2] + share * (b[2] - a[2])


@triton.jit
def change_color(p, mean, brightness, contrast, saturation):
    """Apply the three factors to pixels in [0, 1], given the mean of their clip."""
    mean *= brightness
    p = between((mean, mean, mean), (p[0] * brightness, p[1] * brightness, p[2] * brightness), contrast)
    gray = (p[0] + p[1] + p[2]) * (1 / 3)
    p = between((gray, gray, gray), p, saturation)
    return within_range(p[0]), within_range(p[1]), within_range(p[2])


@triton.jit
def within_range(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit(do_not_specialize=["frames", "length", "height", "width"])
def gather_clips_kernel(
    pool, indices, crops, color, frame_means, out,
    frames, length, height, width,
    BLOCK_P: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Write out (B * length, height, width, 3): each program writes BLOCK_P pixels of one frame.

    Nothing is masked, because a mask takes instructions for every byte that is read. Threads past the last pixel repeat
    the last pixel, and a frame that does not exist reads frame 0.
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

    # The flaw is added to the pixels. It is also NaN if one of the numbers below is not finite.
    flaw = tl.where(known, 0.0, float("nan"))

    if crops is None:
        p = load_pixels(frame, o_p)
    else:
        crops += i_b * 4
        left = tl.load(crops)
        top = tl.load(crops + 1)
        across = tl.load(crops + 2)
        down = tl.load(crops + 3)
        flaw += left * 0 + top * 0 + across * 0 + down * 0
        y = o_p // width
        x1, x2, share_x = source_pixels(o_p - y * width, left, across, width)
        y1, y2, share_y = source_pixels(y, top, down, height)
        above = between(load_pixels(frame, y1 * width + x1), load_pixels(frame, y1 * width + x2), share_x)
        below = between(load_pixels(frame, y2 * width + x1), load_pixels(frame, y2 * width + x2), share_x)
        p = between(above, below, share_y)
    p = (p[0] * (1 / 255), p[1] * (1 / 255), p[2] * (1 / 255))

    if color is not None:
        color += i_b * 3
        brightness = tl.load(color)
        contrast = tl.load(color + 1)
        saturation = tl.load(color + 2)
        mean = clip_mean(frame_means, indices + i_b * length, length, frames, BLOCK_T)
        flaw += brightness * 0 + contrast * 0 + saturation * 0 + mean * 0
        p = change_color(p, mean, brightness, contrast, saturation)

    out += i_f * pixels * 3 + o_p * 3
    tl.store(out, (p[0] - MEAN_R) * (1 / STD_R) + flaw)
    tl.store(out + 1, (p[1] - MEAN_G) * (1 / STD_G) + flaw)
    tl.store(out + 2, (p[2] - MEAN_B) * (1 / STD_B) + flaw)


def gather_clips(
    frames: Tensor,
    indices: Tensor,
    crops: Tensor | None,
    color: Tensor | None,
    frame_means: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return the clips, (B, 3, T, H, W) of `dtype`, channels_last_3d."""
    batch, length = indices.shape
    count, height, width, channels = frames.shape
    out = launch.empty((batch, length, height, width, channels), dtype, frames.device)
    launch.launch(
        gather_clips_kernel,
        batch * length * tile_count(height * width, BLOCK_P),
        pool=frames,
        indices=indices.contiguous(),
        crops=None if crops is None else crops.contiguous(),
        color=None if color is None else color.contiguous(),
        frame_means=None if frame_means is None else frame_means.contiguous(),
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
