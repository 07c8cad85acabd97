"""How a block lies over rows and columns, and how it is read.

A block holds BN rows; T threads share a row and take W columns at a time: tiles are [BN, T, W]. A
short row has T = 1 and never leaves its thread. Rows past N read row N - 1 again, so that every
value in flight is a real one. Strides are compile-time constants, in elements: the compiler sees
how wide a load may be. A stride of 0 is a value that all rows share.
"""

import triton
import triton.language as tl


@triton.jit
def rows(N, BN: tl.constexpr):
    """Row indices [BN] in int64, clamped, and which of them exist."""
    i_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    return tl.minimum(i_n, N - 1), i_n < N


@triton.jit
def columns(j, T: tl.constexpr, W: tl.constexpr):
    """Column indices [1, T, W] of the chunk that starts at j."""
    return j + (tl.arange(0, T) * W)[None, :, None] + tl.arange(0, W)[None, None, :]


@triton.jit
def offset(i, stride: tl.constexpr, COUNT: tl.constexpr):
    """Where the i-th of COUNT lies: in 64 bits where 32 are too few."""
    if stride * COUNT >= 2**31:
        return (tl.full([], 0, tl.int64) + i) * stride
    else:
        return i * stride


@triton.jit
def inside(i_d, END: tl.constexpr, T: tl.constexpr, W: tl.constexpr):
    """Which columns lie before END; all do where whole tiles end there."""
    if END % (T * W) == 0:
        return tl.full([1, T, W], True, tl.int1)
    else:
        return i_d < END


@triton.jit
def load(pointer, valid, other):
    """A tile in float32."""
    return tl.load(pointer, mask=valid, other=other).to(tl.float32)


@triton.jit
def row_value(pointer, i_n, stride: tl.constexpr):
    """One value per row [BN], or one for all [], in float32."""
    if stride == 0:
        return tl.load(pointer).to(tl.float32)
    else:
        return tl.load(pointer + i_n * stride).to(tl.float32)


@triton.jit
def counting(live, mask, i_n, stride: tl.constexpr):
    """Which rows [BN] exist and are not masked out."""
    if mask is None:
        return live
    else:
        # Of a mask that all rows share too: the interpreter makes a number of a single bool.
        return live & (tl.load(mask + i_n * stride) != 0)


@triton.jit
def store_counting(pointer, tile, live, b_counts, valid, mask, D: tl.constexpr):
    """A tile of the rows that count; zeros of those that `mask` leaves out, which may hold NaN."""
    if mask is None:
        tl.store(pointer, tile, mask=spread(live) & valid)
    elif D % 2 == 0:
        # Stores are wide: two, of which a row takes one, cost less than selecting every element.
        tl.store(pointer, tile, mask=spread(b_counts) & valid)
        tl.store(pointer, tl.zeros_like(tile), mask=spread(live & ~b_counts) & valid)
    else:
        tl.store(pointer, tl.where(spread(b_counts), tile, 0.0), mask=spread(live) & valid)


@triton.jit
def number(x):
    """A hyper-parameter: a float, or a pointer to one that may move between launches."""
    if isinstance(x, float):
        # The interpreter passes floats as they are.
        return x
    elif x.dtype.is_ptr():
        return tl.load(x).to(tl.float32)
    else:
        return x


@triton.jit
def row_sum(tile):
    """Sums [BN] over the rows of a tile."""
    return tl.sum(tl.sum(tile, 2), 1)


@triton.jit
def row_max(tile):
    """Maxima [BN], likewise."""
    return tl.max(tl.max(tile, 2), 1)


@triton.jit
def spread(x):
    """Row values [BN] over a tile."""
    return x[:, None, None]


@triton.jit
def block_sums(terms):
    """Sums over the block of several [BN] at once, in a fixed order."""
    return tl.reduce(terms, 0, add)


# One by one: Triton takes no `*x` before 3.8. samples.py sums 14 values at most.
# fmt: off
@triton.jit
def add(
    x0, x1, x2=None, x3=None, x4=None, x5=None, x6=None, x7=None, x8=None, x9=None, x10=None,
    x11=None, x12=None, x13=None, x14=None, x15=None, x16=None, x17=None, x18=None, x19=None,
    x20=None, x21=None, x22=None, x23=None, x24=None, x25=None, x26=None, x27=None,
):
    """The first half of the values plus the second: how `tl.reduce` joins two of several sums."""
    every = (
        x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15, x16, x17, x18, x19,
        x20, x21, x22, x23, x24, x25, x26, x27,
    )
    # fmt: on
    x = ()
    for k in tl.static_range(28):
        if every[k] is not None:
            x = x + (every[k],)
    half: tl.constexpr = len(x) // 2
    out = ()
    for k in tl.static_range(half):
        out = out + (x[k] + x[half + k],)
    return out


@triton.jit
def plus(x, y):
    """Sums of two tuples, entry by entry."""
    out = ()
    for k in tl.static_range(len(x)):
        out = out + (x[k] + y[k],)
    return out
