"""Compiled loops of the CRF on the CPU: lattice building, and splat, blur and slice on rows of class values.

All let go of the interpreter lock, so that threads can share an image. `lanes` is a tuple whose LENGTH is the width of a
row, the only way to tell Numba a constant by type: rows of 24 floats then stay in vector registers. Legend: n pixel,
k vertex of its simplex, r row of the lattice, c class, w width of a row.
"""

import numpy as np
from llvmlite import ir
from numba import intp, njit, types
from numba.extending import intrinsic

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
# Sums keep their order; a product and a sum may become one instruction.
_FAST = {"contract", "nsz", "nnan", "ninf"}
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
EMPTY = np.int64(-1)


class _Rows:
    """Emits what the intrinsics share: addresses of rows and entries, and loops with values carried in registers."""

    def __init__(self, builder, width: int) -> None:
        self.builder, self.width, self.kind = builder, width, ir.VectorType(_F32, width)

    def row(self, base, index):
        """Address of row `index` of a C-contiguous float32 matrix."""
        offset = self.builder.mul(self.builder.sext(index, _I64), _I64(4 * self.width))
        return self.builder.inttoptr(self.builder.add(base, offset), self.kind.as_pointer())

    def entry(self, base, position, kind):
        """Entry `position` of a vector of 4-byte numbers."""
        address = self.builder.add(base, self.builder.mul(position, _I64(4)))
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=4)

    def spread(self, number):
        """The number in every lane."""
        one = self.builder.insert_element(ir.Constant(self.kind, ir.Undefined), number, _I32(0))
        zeros = ir.Constant(ir.VectorType(_I32, self.width), [0] * self.width)
        return self.builder.shuffle_vector(one, ir.Constant(self.kind, ir.Undefined), zeros)

    def multiply_add(self, a, b, c):
        product = self.builder.fmul(a, b, flags=("contract",))
        return self.builder.fadd(product, c, flags=("contract",))

    def loop(self, count, carried, body):
        """Run body(position, values) -> values `count` times; returns the last values."""
        b, entry = self.builder, self.builder.block
        head, inside, done = (b.append_basic_block(name) for name in ("head", "body", "done"))
        b.branch(head)
        b.position_at_end(head)
        position, values = b.phi(_I64), [b.phi(value.type) for value in carried]
        position.add_incoming(_I64(0), entry)
        for value, first in zip(values, carried, strict=True):
            value.add_incoming(first, entry)
        b.cbranch(b.icmp_signed("<", position, count), inside, done)
        b.position_at_end(inside)
        news = body(position, values)
        position.add_incoming(b.add(position, _I64(1)), b.block)
        for value, new in zip(values, news, strict=True):
            value.add_incoming(new, b.block)
        b.branch(head)
        b.position_at_end(done)
        return values


@intrinsic
def _gather(typingctx, lanes, out, rows, index, weight, count):
    """out += sum over k of weight[k] rows[index[k]]; all but lanes and count are byte addresses."""

    def codegen(context, builder, signature, args):
        _, out, rows, index, weight, count = args
        at = _Rows(builder, lanes.count)
        place = builder.inttoptr(out, at.kind.as_pointer())

        def body(k, values):
            row = builder.load(at.row(rows, at.entry(index, k, _I32)), align=4)
            return [at.multiply_add(at.spread(at.entry(weight, k, _F32)), row, values[0])]

        builder.store(at.loop(count, [builder.load(place, align=4)], body)[0], place, align=4)
        return context.get_dummy_value()

    return types.void(lanes, *[intp] * 5), codegen


@intrinsic
def _scatter(typingctx, lanes, x, rows, index, weight, count):
    """rows[index[k]] += weight[k] x for each k."""

    def codegen(context, builder, signature, args):
        _, x, rows, index, weight, count = args
        at = _Rows(builder, lanes.count)
        x = builder.load(builder.inttoptr(x, at.kind.as_pointer()), align=4)

        def body(k, values):
            place = at.row(rows, at.entry(index, k, _I32))
            old = builder.load(place, align=4)
            builder.store(at.multiply_add(at.spread(at.entry(weight, k, _F32)), x, old), place, align=4)
            return []

        at.loop(count, [], body)
        return context.get_dummy_value()

    return types.void(lanes, *[intp] * 5), codegen


@intrinsic
def _blur(typingctx, lanes, rows, chain, count):
    """rows[v] += (row before + row after) / 2 along one chain of row numbers, in place: old values stay in registers."""

    def codegen(context, builder, signature, args):
        _, rows, chain, count = args
        at = _Rows(builder, lanes.count)
        half = ir.Constant(at.kind, [0.5] * lanes.count)
        zero = ir.Constant(at.kind, [0.0] * lanes.count)

        def finish(place, before, now, after):
            builder.store(at.multiply_add(half, builder.fadd(before, after), now), place, align=4)

        def body(k, values):
            before, now, address = values
            following = at.row(rows, at.entry(chain, builder.add(k, _I64(1)), _I32))
            after = builder.load(following, align=4)
            finish(builder.inttoptr(address, at.kind.as_pointer()), before, now, after)
            return [now, after, builder.ptrtoint(following, _I64)]

        first = at.row(rows, at.entry(chain, _I64(0), _I32))
        carried = [zero, builder.load(first, align=4), builder.ptrtoint(first, _I64)]
        before, now, address = at.loop(builder.sub(count, _I64(1)), carried, body)
        finish(builder.inttoptr(address, at.kind.as_pointer()), before, now, zero)
        return context.get_dummy_value()

    return types.void(lanes, *[intp] * 3), codegen


@njit(cache=True, nogil=True)
def splat(lanes, x_nw, rows_rw, vertex_nk, weight_nk, start, stop):
    """rows[vertex] += weight x of pixels start..stop."""
    depth = vertex_nk.shape[1]
    x, rows, width = x_nw.ctypes.data, rows_rw.ctypes.data, len(lanes)
    vertex, weight = vertex_nk.ctypes.data, weight_nk.ctypes.data
    for n in range(start, stop):
        _scatter(lanes, x + 4 * width * n, rows, vertex + 4 * depth * n, weight + 4 * depth * n, depth)


@njit(cache=True, nogil=True)
def slice_(lanes, rows_rw, out_nw, vertex_nk, weight_nk, start, stop):
    """out += weight rows[vertex] of pixels start..stop."""
    depth = vertex_nk.shape[1]
    out, rows, width = out_nw.ctypes.data, rows_rw.ctypes.data, len(lanes)
    vertex, weight = vertex_nk.ctypes.data, weight_nk.ctypes.data
    for n in range(start, stop):
        _gather(lanes, out + 4 * width * n, rows, vertex + 4 * depth * n, weight + 4 * depth * n, depth)


@njit(cache=True, nogil=True)
def blur(lanes, rows_rw, chains, starts, first, last):
    """Blur chains first..last of one direction in place; `starts` holds where each begins in `chains`."""
    rows, chain = rows_rw.ctypes.data, chains.ctypes.data
    for i in range(first, last):
        _blur(lanes, rows, chain + 4 * starts[i], starts[i + 1] - starts[i])


@njit(cache=True, nogil=True)
def add_ghosts(rows_rw, ghosts, owners):
    """Bring what was splatted into ghost rows to the rows that own their vertices."""
    for i in range(ghosts.size):
        for w in range(rows_rw.shape[1]):
            rows_rw[owners[i], w] += rows_rw[ghosts[i], w]


@njit(cache=True, nogil=True)
def copy_ghosts(rows_rw, ghosts, owners):
    """Give ghost rows the values of their vertices."""
    for i in range(ghosts.size):
        for w in range(rows_rw.shape[1]):
            rows_rw[ghosts[i], w] = rows_rw[owners[i], w]


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _softmax(lanes, x_w):
    """In place; classes e^80 times less likely than the likeliest get 0. Relative error of e^x: 2e-7."""
    width = len(lanes)
    top, total = x_w[0], np.float32(0)
    for w in range(width):
        top = x_w[w] if x_w[w] > top else top
    for w in range(width):
        x = x_w[w] - top
        x = x if x > np.float32(-80) else np.float32(-81)
        n = np.rint(x * np.float32(1.4426950408889634))
        r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
        p = np.float32(1.9875691500e-4)
        p = p * r + np.float32(1.3981999507e-3)
        p = p * r + np.float32(8.3334519073e-3)
        p = p * r + np.float32(4.1665795894e-2)
        p = p * r + np.float32(1.6666665459e-1)
        p = p * r + np.float32(5.0000001201e-1)
        p = p * r * r + r + np.float32(1)
        power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
        x_w[w] = p * power if x > np.float32(-80.5) else np.float32(0)
    for w in range(width):
        total += x_w[w]
    for w in range(width):
        x_w[w] = x_w[w] / total


@njit(cache=True, nogil=True)
def step(lanes, log_p_nw, q_nw, first, near, far, start, stop):
    """One mean-field update of pixels start..stop (Krähenbühl & Koltun 2011, algorithm 1), fused.

    near and far: (blurred rows, rows to splat into, vertex_nk, splat weight_nk, slice weight_nk) of the two kernels.
    The messages are skipped at the `first` step; the marginals go to q_nw if it has rows, else into the next splat.
    """
    width, last = len(lanes), q_nw.shape[0] > 0
    log_p, q = log_p_nw.ctypes.data, np.empty(width, np.float32)
    for n in range(start, stop):
        for w in range(width):
            q[w] = log_p_nw[n, w]
        for old, _, vertex_nk, _, slice_nk in (near, far):
            depth = vertex_nk.shape[1]
            if not first:
                index, weight = vertex_nk.ctypes.data + 4 * depth * n, slice_nk.ctypes.data + 4 * depth * n
                _gather(lanes, q.ctypes.data, old.ctypes.data, index, weight, depth)
        _softmax(lanes, q)
        if last:
            for w in range(width):
                q_nw[n, w] = q[w]
        else:
            for _, new, vertex_nk, splat_nk, _ in (near, far):
                depth = vertex_nk.shape[1]
                index, weight = vertex_nk.ctypes.data + 4 * depth * n, splat_nk.ctypes.data + 4 * depth * n
                _scatter(lanes, q.ctypes.data, new.ctypes.data, index, weight, depth)
    return log_p
