"""The arithmetic of PTX that is no single NumPy function, and the names that generated code calls."""

from __future__ import annotations

import numpy as np

i1, i2, i4, i8 = (np.dtype(f"i{size}") for size in (1, 2, 4, 8))
u1, u2, u4, u8 = (np.dtype(f"u{size}") for size in (1, 2, 4, 8))
f2, f4, f8 = (np.dtype(f"f{size}") for size in (2, 4, 8))

# What a stretch of generated code returns instead of the number of the next one.
EXIT = -1
BARRIER = -2
DIVERGED = -3


def fma32(a, b, c, ftz=False):
    """Rounded twice, in float64 and float32: the last bit may differ where float64 falls on a tie."""
    result = (a.astype(f8) * b.astype(f8) + c).astype(f4)
    return flush(result) if ftz else result


def fma64(a, b, c, ftz=False):
    """With the product's rounding error, by Dekker: right but for the last rounding's rare ties."""
    p = a * b
    split = 134217729.0
    ah, bh = a * split, b * split
    ah, bh = ah - (ah - a), bh - (bh - b)
    al, bl = a - ah, b - bh
    e = ((ah * bh - p) + ah * bl + al * bh) + al * bl
    s = p + c
    t = s - p
    e2 = (p - (s - t)) + (c - t)
    exact = s + (e + e2)
    return np.where(np.isfinite(exact), exact, s)


def flush(x):
    return np.where(np.absolute(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)


def divide_approx(a, b, ftz):
    return a / b


def approximate(name, x, type, exact, ftz):
    if type == "f16":
        raise NotImplementedError(name)
    if name == "rcp" and type == "f64" and not exact:
        y = flush(1 / flush(x))
        return (y.view(u8) & u8.type(0xFFFFFFFF00000000)).view(f8)
    wide = x.astype(f8)
    y = {"ex2": np.exp2, "lg2": np.log2, "rcp": lambda v: 1 / v, "sqrt": np.sqrt, "rsqrt": lambda v: 1 / np.sqrt(v),
         "sin": np.sin, "cos": np.cos, "tanh": np.tanh}[name](wide).astype(x.dtype)  # fmt: skip
    return y


def int_div(a, b):
    a, b = a.astype(i8), np.where(b == 0, 1, b).astype(i8)
    q = np.absolute(a) // np.absolute(b)
    return np.where((a < 0) != (b < 0), -q, q)


def int_rem(a, b):
    return a.astype(i8) - int_div(a, b) * b.astype(i8)


def mul_hi(a, b):
    if a.dtype.itemsize == 4:
        wide = i8 if a.dtype.kind == "i" else u8
        return ((a.astype(wide) * b.astype(wide)) >> wide.type(32)).astype(a.dtype)
    full = a.astype(object) * b.astype(object)
    return np.array([int(v) >> 64 for v in np.atleast_1d(full)]).astype(a.dtype)


def shift_shl(a, b, width):
    return np.where(b < width, a << np.minimum(b, width - 1).astype(a.dtype), 0).astype(a.dtype)


def shift_shr(a, b, width):
    shifted = a >> np.minimum(b, width - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(b < width, shifted, 0).astype(a.dtype)


def bits_bfe(a, pos, length):
    pos, length = pos.astype(i8) & 255, length.astype(i8) & 255
    value = (a.astype(i8) & 0xFFFFFFFF) >> np.minimum(pos, 63)
    field = value & ((i8.type(1) << np.minimum(length, 32)) - 1)
    if a.dtype.kind == "i":
        sign = np.where(length == 0, 0, ((a.astype(i8) & 0xFFFFFFFF) >> np.minimum(pos + length - 1, 31)) & 1)
        field = np.where((sign == 1) & (length < 32), field - (i8.type(1) << np.minimum(length, 32)), field)
    return field.astype(a.dtype)


def bits_bfi(a, b, pos, length):
    pos, length = pos.astype(i8) & 255, length.astype(i8) & 255
    mask = ((i8.type(1) << np.minimum(length, 32)) - 1) << np.minimum(pos, 32)
    return ((b.astype(i8) & ~mask) | ((a.astype(i8) << np.minimum(pos, 32)) & mask)).astype(u4)


def bits_popc(a):
    return np.bitwise_count(a).astype(u4)


def bits_prmt(a, b, selector):
    pool = np.stack([(x >> u4.type(8 * k)) & u4.type(255) for x in (a, b) for k in range(4)])
    out = np.zeros(a.shape, u4)
    for k in range(4):
        s = ((selector >> u4.type(4 * k)) & u4.type(15)).astype(i8)
        byte = pool[s & 7, np.arange(len(a))]
        byte = np.where(s & 8, np.where(byte & 128, 255, 0), byte).astype(u4)
        out |= byte << u4.type(8 * k)
    return out


def float_to_int(x, kind, rounding):
    x = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[rounding](x.astype(f8))
    info = np.iinfo(kind)
    clipped = np.where(np.isnan(x), 0, np.clip(x, float(info.min), float(info.max)))
    out = np.where(clipped >= float(info.max), info.max, np.where(clipped <= float(info.min), info.min, 0)).astype(kind)
    inside = (clipped < float(info.max)) & (clipped > float(info.min))
    return np.where(inside, np.where(inside, clipped, 0).astype(kind), out)


def half_to_f4(bits):
    return bits.view(f2).astype(f4)


def f4_to_half(x):
    return x.astype(f2).view(u2)


def brain_to_f4(bits):
    return (bits.astype(u4) << u4.type(16)).view(f4)


def f4_to_brain(x):
    bits = x.astype(f4).view(u4)
    rounded = (bits + u4.type(0x7FFF) + ((bits >> u4.type(16)) & u4.type(1))) >> u4.type(16)
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(u2)


def half_op(ufunc, *bits):
    return ufunc(*(b.view(f2) for b in bits)).view(u2)


# The ufuncs that generated code calls by their own names.
UFUNCS = [
    "copyto", "add", "subtract", "multiply", "minimum", "maximum", "fmin", "fmax", "invert", "absolute", "negative",
    "less", "greater", "less_equal", "greater_equal", "equal", "not_equal", "left_shift", "right_shift", "isnan",
    "rint", "trunc", "floor", "ceil", "clip", "copysign",
]  # fmt: skip
NAMES = {name: value for name, value in globals().items() if callable(value) or isinstance(value, (np.dtype, int))}
NAMES.update({name: getattr(np, name) for name in UFUNCS})
NAMES.update(
    bitand=np.bitwise_and,
    bitor=np.bitwise_or,
    bitxor=np.bitwise_xor,
    choose=np.where,
    count=np.count_nonzero,
    divide_exact=lambda a, b, ftz: a / b,
    ku4_10_=u4.type(16),
    ku8_20_=u8.type(32),
)
