"""Compiled 3 x 3 convolutions with a tanh, and their derivatives, for LANES images side by side.

torch has no fast float64 convolution of a few channels: with these a gradient takes a fifth of its time, on one thread.
A vector register holds the same pixel of many images, so that eight channels fill it as well as eighty would.
Legend: C inputs, O outputs (an even number), H x W pixels, L = LANES images. Maps going in are `padded`:
(C, H + 2, S, R * L), with a border of zeros, their columns dealt out to S = stride phases: column x lies at phase
x % S, place x // S, so that a strided convolution reads neighbours. Maps coming out are (O, H, W * L); their slopes
(O, H, (W + 4) * L) have two columns of zeros on each side. Products are added to what is there.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
_FAST = {"cache": True, "nogil": True, "fastmath": True, "error_model": "numpy"}
_COEFFICIENTS = 1 / np.cumprod(np.r_[1.0, np.arange(1, 14)])  # of e^x


@intrinsic
def _nearest(typingctx, x):
    """x rounded to a whole number."""

    def codegen(context, builder, signature, args):
        name = "llvm.rint.f32" if signature.args[0] == types.float32 else "llvm.rint.f64"
        kind = args[0].type
        return builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), name), args)

    return x(x), codegen


@intrinsic
def _power_of_two(typingctx, n):
    """2^n for a whole n, put together from its bits."""

    def codegen(context, builder, signature, args):
        bits, bias, place = (32, 127, 23) if signature.args[0] == types.float32 else (64, 1023, 52)
        whole = ir.IntType(bits)
        exponent = builder.add(builder.fptosi(args[0], whole), whole(bias))
        return builder.bitcast(builder.shl(exponent, whole(place)), args[0].type)

    return n(n), codegen


@njit(**_FAST, inline="always")
def _tanh(x, one):
    """tanh to a rounding or two, without a branch, so that loops over it vectorise; `one` has the precision wanted."""
    size = abs(x)
    y = one * 2 * (size if size < one * 20 else one * 20)
    n = _nearest(y * (one * 1.4426950408889634))
    r = y - n * (one * 0.693359375) + n * (one * 2.1219444005469057e-4)
    p = one * _COEFFICIENTS[13]
    for k in range(12, -1, -1):
        p = p * r + one * _COEFFICIENTS[k]
    t = one - one * 2 / (p * _power_of_two(n) + one)
    return t if x >= 0 else -t


@njit(**_FAST)
def tanh_(values_n, one):
    """In place."""
    for i in range(values_n.size):
        values_n[i] = _tanh(values_n[i], one)


@njit(**_FAST)
def convolve(padded, weight, out):
    """out += the convolution of `padded` with `weight` (O, C, 3, 3)."""
    stride, width = padded.shape[2], out.shape[2]
    second, third = 1 % stride, 2 % stride
    for y in range(out.shape[1]):
        for o in range(0, out.shape[0], 2):
            here, there = out[o, y], out[o + 1, y]
            for c in range(weight.shape[1]):
                for k in range(3):
                    row = padded[c, y * stride + k]
                    first_n, second_n = row[0], row[second][(1 // stride) * LANES :]
                    third_n = row[third][(2 // stride) * LANES :]
                    u, v, w = weight[o, c, k, 0], weight[o, c, k, 1], weight[o, c, k, 2]
                    f, g, h = weight[o + 1, c, k, 0], weight[o + 1, c, k, 1], weight[o + 1, c, k, 2]
                    for i in range(width):
                        here[i] += u * first_n[i] + v * second_n[i] + w * third_n[i]
                        there[i] += f * first_n[i] + g * second_n[i] + h * third_n[i]


@njit(**_FAST)
def convolve_back(slope, weight, padded):
    """padded += the slopes in the maps that went in, for `slope` in those that came out; its border is left alone."""
    stride, high = padded.shape[2], slope.shape[1]
    columns = slope.shape[2] // LANES - 4
    for row in range(1, padded.shape[1] - 1):
        for k in range(3):
            y = (row - k) // stride
            if (row - k) % stride or y < 0 or y >= high:
                continue
            for o in range(0, slope.shape[0], 2):
                here, there = slope[o, y], slope[o + 1, y]
                for c in range(weight.shape[1]):
                    u, v, w = weight[o, c, k, 0], weight[o, c, k, 1], weight[o, c, k, 2]
                    f, g, h = weight[o + 1, c, k, 0], weight[o + 1, c, k, 1], weight[o + 1, c, k, 2]
                    out = padded[c, row, 0]
                    if stride == 1:
                        for i in range((columns + 2) * LANES):
                            out[i] += (
                                u * here[i + 2 * LANES] + v * here[i + LANES] + w * here[i]
                                + f * there[i + 2 * LANES] + g * there[i + LANES] + h * there[i]
                            )  # fmt: skip
                    else:
                        for i in range((columns + 1) * LANES):
                            out[i] += (
                                u * here[i + 2 * LANES] + w * here[i + LANES]
                                + f * there[i + 2 * LANES] + h * there[i + LANES]
                            )  # fmt: skip
                        out = padded[c, row, 1]
                        for i in range(columns * LANES):
                            out[i] += v * here[i + 2 * LANES] + g * there[i + 2 * LANES]


@njit(**_FAST)
def weight_slopes(padded, slope, found):
    """found (O, C, 3, 3) += the slopes in the weight, summed over the lanes."""
    stride, width = padded.shape[2], slope.shape[2] - 4 * LANES
    second, third = 1 % stride, 2 % stride
    for y in range(slope.shape[1]):
        for o in range(0, slope.shape[0], 2):
            here, there = slope[o, y, 2 * LANES :], slope[o + 1, y, 2 * LANES :]
            for c in range(found.shape[1]):
                for k in range(3):
                    row = padded[c, y * stride + k]
                    first_n, second_n = row[0], row[second][(1 // stride) * LANES :]
                    third_n = row[third][(2 // stride) * LANES :]
                    u = v = w = f = g = h = slope[0, 0, 0]  # a zero of the precision
                    for i in range(width):
                        u += first_n[i] * here[i]
                        v += second_n[i] * here[i]
                        w += third_n[i] * here[i]
                        f += first_n[i] * there[i]
                        g += second_n[i] * there[i]
                        h += third_n[i] * there[i]
                    found[o, c, k, 0] += u
                    found[o, c, k, 1] += v
                    found[o, c, k, 2] += w
                    found[o + 1, c, k, 0] += f
                    found[o + 1, c, k, 1] += g
                    found[o + 1, c, k, 2] += h


@njit(**_FAST)
def weight_slopes_each(padded, slope, found):
    """found (O, C, 3, 3, L) += the same of each image."""
    stride, columns = padded.shape[2], slope.shape[2] // LANES - 4
    for y in range(slope.shape[1]):
        for c in range(found.shape[1]):
            for k in range(3):
                row = padded[c, y * stride + k]
                for o in range(slope.shape[0]):
                    out_u, out_v, out_w = found[o, c, k, 0], found[o, c, k, 1], found[o, c, k, 2]
                    for x in range(columns):
                        here = slope[o, y, (x + 2) * LANES : (x + 3) * LANES]
                        u = row[0, x * LANES : (x + 1) * LANES]
                        a, b = x + 1 // stride, x + 2 // stride
                        v = row[1 % stride, a * LANES : (a + 1) * LANES]
                        w = row[2 % stride, b * LANES : (b + 1) * LANES]
                        for i in range(LANES):
                            out_u[i] += u[i] * here[i]
                            out_v[i] += v[i] * here[i]
                            out_w[i] += w[i] * here[i]


@njit(**_FAST)
def activate(maps, bias, padded):
    """The next layer's padded maps: tanh(maps + bias)."""
    border, stride, one = (padded.shape[1] - maps.shape[1]) // 2, padded.shape[2], maps.dtype.type(1)
    for o in range(maps.shape[0]):
        for y in range(maps.shape[1]):
            for x in range(maps.shape[2] // LANES):
                column = x + border
                out = padded[o, y + border, column % stride, column // stride * LANES :]
                given = maps[o, y, x * LANES :]
                for i in range(LANES):
                    out[i] = _tanh(given[i] + bias[o], one)


@njit(**_FAST)
def slopes_before(after, padded, slope):
    """slope: of the maps before the tanh, for `after`, those of what it gave, which is `padded`."""
    border, stride = (padded.shape[1] - slope.shape[1]) // 2, padded.shape[2]
    for o in range(slope.shape[0]):
        for y in range(slope.shape[1]):
            for x in range(slope.shape[2] // LANES - 4):
                column = x + border
                phase, start = column % stride, column // stride * LANES
                t, g = padded[o, y + border, phase, start:], after[o, y + border, phase, start:]
                out = slope[o, y, (x + 2) * LANES :]
                for i in range(LANES):
                    out[i] = g[i] * (1 - t[i] * t[i])


@njit(**_FAST)
def turn_activations(turn, bias, padded, padded_turn):
    """How tanh's results turn when the maps before it turn by `turn` + bias."""
    border, stride = (padded.shape[1] - turn.shape[1]) // 2, padded.shape[2]
    for o in range(turn.shape[0]):
        for y in range(turn.shape[1]):
            for x in range(turn.shape[2] // LANES):
                column = x + border
                phase, start = column % stride, column // stride * LANES
                t, out = padded[o, y + border, phase, start:], padded_turn[o, y + border, phase, start:]
                given = turn[o, y, x * LANES :]
                for i in range(LANES):
                    out[i] = (given[i] + bias[o]) * (1 - t[i] * t[i])


@njit(**_FAST)
def turn_slopes(after, after_turn, padded, padded_turn, slope_turn):
    """How `slopes_before` turns with the slopes after the tanh and with what it gave."""
    border, stride = (padded.shape[1] - slope_turn.shape[1]) // 2, padded.shape[2]
    for o in range(slope_turn.shape[0]):
        for y in range(slope_turn.shape[1]):
            for x in range(slope_turn.shape[2] // LANES - 4):
                column = x + border
                phase, start = column % stride, column // stride * LANES
                t, d = padded[o, y + border, phase, start:], padded_turn[o, y + border, phase, start:]
                g, e = after[o, y + border, phase, start:], after_turn[o, y + border, phase, start:]
                out = slope_turn[o, y, (x + 2) * LANES :]
                for i in range(LANES):
                    out[i] = e[i] * (1 - t[i] * t[i]) - 2 * t[i] * d[i] * g[i]
