"""Compiled loops of the CRF on the CPU: splat, blur and slice on rows of class values, and the mean-field step.

All let go of the interpreter lock, so that threads can share an image. `lanes` is a tuple whose LENGTH is the width of
a row, the only way to tell Numba a constant by type: rows of 24 floats then stay in vector registers. Legend: n pixel,
k vertex of its simplex, r row of the lattice, c class, w width of a row.
"""

import functools

import numpy as np
from llvmlite import ir
from numba import float32, intp, njit, types
from numba.extending import intrinsic

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
# Sums keep their order; a product and a sum may become one instruction.
_FAST = {"contract", "nsz", "nnan", "ninf"}
LANES = 8  # floats in a register; rows are this wide, or a multiple of it, or 1


class _Rows:
    """Emits what the intrinsics share: rows as lists of vector registers, and loops that carry values in registers."""

    def __init__(self, builder, width: int) -> None:
        # Not one vector of the row's width: LLVM makes poor code of widths that are no power of two.
        self.builder, self.width = builder, width
        self.lanes = LANES if width % LANES == 0 else 1
        self.kind = ir.VectorType(_F32, self.lanes)

    def address(self, base, index):
        """Of row `index` of a C-contiguous float32 matrix."""
        return self.builder.add(base, self.builder.mul(self.builder.sext(index, _I64), _I64(4 * self.width)))

    def _places(self, address):
        steps = range(0, self.width, self.lanes)
        pointer = self.kind.as_pointer()
        return [self.builder.inttoptr(self.builder.add(address, _I64(4 * step)), pointer) for step in steps]

    def load(self, address) -> list:
        return [self.builder.load(place, align=4) for place in self._places(address)]

    def store(self, values: list, address) -> None:
        for value, place in zip(values, self._places(address), strict=True):
            self.builder.store(value, place, align=4)

    def entry(self, base, position, kind):
        """Entry `position` of a vector of 4-byte numbers."""
        address = self.builder.add(base, self.builder.mul(position, _I64(4)))
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=4)

    def spread(self, number):
        """The number in every lane of a register."""
        one = self.builder.insert_element(ir.Constant(self.kind, ir.Undefined), number, _I32(0))
        zeros = ir.Constant(ir.VectorType(_I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(one, ir.Constant(self.kind, ir.Undefined), zeros)

    def multiply_add(self, a, x: list, y: list) -> list:
        """a x + y for a register a and rows x and y."""
        products = [self.builder.fmul(a, one, flags=("contract",)) for one in x]
        return [self.builder.fadd(one, two, flags=("contract",)) for one, two in zip(products, y, strict=True)]

    def loop(self, count, carried: list, body) -> list:
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

        def body(k, values):
            row = at.load(at.address(rows, at.entry(index, k, _I32)))
            return at.multiply_add(at.spread(at.entry(weight, k, _F32)), row, values)

        at.store(at.loop(count, at.load(out), body), out)
        return context.get_dummy_value()

    return types.void(lanes, *[intp] * 5), codegen


@intrinsic
def _scatter(typingctx, lanes, x, rows, index, weight, count):
    """rows[index[k]] += weight[k] x for each k."""

    def codegen(context, builder, signature, args):
        _, x, rows, index, weight, count = args
        at = _Rows(builder, lanes.count)
        values = at.load(x)

        def body(k, _):
            place = at.address(rows, at.entry(index, k, _I32))
            at.store(at.multiply_add(at.spread(at.entry(weight, k, _F32)), values, at.load(place)), place)
            return []

        at.loop(count, [], body)
        return context.get_dummy_value()

    return types.void(lanes, *[intp] * 5), codegen


@intrinsic
def _blur(typingctx, lanes, rows, chain, count):
    """rows[v] += (row before + row after) / 2 along one chain of row numbers, in place: old values are in registers."""

    def codegen(context, builder, signature, args):
        _, rows, chain, count = args
        at = _Rows(builder, lanes.count)
        half, size = ir.Constant(at.kind, [0.5] * at.lanes), at.width // at.lanes
        zeros = [ir.Constant(at.kind, [0.0] * at.lanes)] * size

        def finish(address, before, now, after):
            both = [builder.fadd(one, two) for one, two in zip(before, after, strict=True)]
            at.store(at.multiply_add(half, both, now), address)

        def body(k, values):
            before, now, address = values[:size], values[size:-1], values[-1]
            following = at.address(rows, at.entry(chain, builder.add(k, _I64(1)), _I32))
            after = at.load(following)
            finish(address, before, now, after)
            return [*now, *after, following]

        first = at.address(rows, at.entry(chain, _I64(0), _I32))
        values = at.loop(builder.sub(count, _I64(1)), [*zeros, *at.load(first), first], body)
        finish(values[-1], values[:size], values[size:-1], zeros)
        return context.get_dummy_value()

    return types.void(lanes, *[intp] * 3), codegen


@intrinsic
def _top(typingctx, lanes, x):
    """The greatest number of a row; a loop over it would compare one by one."""

    def codegen(context, builder, signature, args):
        at = _Rows(builder, lanes.count)

        def greater(one, two):
            return builder.select(builder.fcmp_ordered(">", one, two), one, two)

        found = functools.reduce(greater, at.load(args[1]))
        return functools.reduce(greater, [builder.extract_element(found, _I32(i)) for i in range(at.lanes)])

    return float32(lanes, intp), codegen


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
def _exp(x):
    """e^x in float32 for x <= 0, relative error 2e-7, without a branch; 0 from -88 on, where the exponent ends."""
    x = x if x > np.float32(-88) else np.float32(-88)
    n = np.rint(x * np.float32(1.4426950408889634))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@njit(cache=True, nogil=True, fastmath={*_FAST, "reassoc"})
def _exps(lanes, x_w, top):
    """x to e^(x - top), in place; returns their sum, in the order that vector registers like."""
    total = np.float32(0)
    for w in range(len(lanes)):
        x_w[w] = _exp(x_w[w] - top)
        total += x_w[w]
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def _softmax(lanes, x_w):
    """In place."""
    inverse = np.float32(1) / _exps(lanes, x_w, _top(lanes, x_w.ctypes.data))
    for w in range(len(lanes)):
        x_w[w] *= inverse


@njit(cache=True, nogil=True)
def step(lanes, log_p_nw, q_nw, first, near, far, start, stop):
    """One mean-field update of pixels start..stop (Krähenbühl & Koltun 2011, algorithm 1), fused.

    near and far: (blurred rows, rows to splat into, vertex_nk, splat weight_nk, slice weight_nk) of the two kernels.
    The messages are skipped at the `first` step; the marginals go to q_nw if it has rows, else into the next splat.
    """
    width, last = len(lanes), q_nw.shape[0] > 0
    q_w = np.empty(width, np.float32)
    # Addresses, because an array that is unpacked in a loop costs an atomic count.
    q, near_old, near_new, near_depth = q_w.ctypes.data, near[0].ctypes.data, near[1].ctypes.data, near[2].shape[1]
    near_vertex, near_splat, near_slice = near[2].ctypes.data, near[3].ctypes.data, near[4].ctypes.data
    far_old, far_new, far_depth = far[0].ctypes.data, far[1].ctypes.data, far[2].shape[1]
    far_vertex, far_splat, far_slice = far[2].ctypes.data, far[3].ctypes.data, far[4].ctypes.data
    for n in range(start, stop):
        near_n, far_n = 4 * near_depth * n, 4 * far_depth * n
        for w in range(width):
            q_w[w] = log_p_nw[n, w]
        if not first:
            _gather(lanes, q, near_old, near_vertex + near_n, near_slice + near_n, near_depth)
            _gather(lanes, q, far_old, far_vertex + far_n, far_slice + far_n, far_depth)
        _softmax(lanes, q_w)
        if last:
            for w in range(width):
                q_nw[n, w] = q_w[w]
        else:
            _scatter(lanes, q, near_new, near_vertex + near_n, near_splat + near_n, near_depth)
            _scatter(lanes, q, far_new, far_vertex + far_n, far_splat + far_n, far_depth)
