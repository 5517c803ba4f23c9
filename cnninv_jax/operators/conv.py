"""The convolution matrix W of a CNN layer as a matrix-free operator: analysis W x, synthesis W^T z.

Gilbert et al. 2017, 2.2: row (i, j) of W is filter i shifted by j t, so that h = W x is a CNN's
cross-correlation and x = W^T z a sum of shifted filters. A `ConvOperator` is a pytree whose only leaf is the
filter bank: a new bank of the same shape never recompiles, and ``vmap`` over operators maps over banks.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Literal, Protocol, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cnninv_jax._numerics import Products, as_float, check_products, convolve, matmul, per_axis, rounded, wider
from cnninv_jax._typing import Array, Code, FilterBank, Float, Int, PerAxis, Signal
from cnninv_jax.operators._patches import fold, frame, unfold, unframe

Padding: TypeAlias = Literal["valid", "same", "circular"]
PADDINGS: tuple[Padding, ...] = get_args(Padding)
Method: TypeAlias = Literal["conv", "patches"]

#: ``method="auto"`` on a CPU takes patches up to so many multiply-adds of one analysis, or so many channels.
PATCHES_LIMIT, PATCHES_CHANNELS = 2**24, 16
#: No samples around x, for as many axes as there are.
_NONE = ((0, 0), (0, 0))


class SparseEntries(Protocol):
    """What `synthesis_sparse` reads of a code; `cnninv_jax.sparsity.SparseCode` is one."""

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Shape (K, *n) of the dense code."""
        ...

    @property
    def filter_indices(self) -> Int[Array, " k"]:
        """Filter of every entry."""
        ...

    @property
    def shifts(self) -> Int[Array, "k rank"]:
        """Shift of every entry, per spatial axis, in [0, n)."""
        ...

    @property
    def values(self) -> Float[Array, " k"]:
        """Value of every entry."""
        ...


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["filters"],
    meta_fields=["signal_shape", "stride", "padding", "method", "products"],
)
@dataclasses.dataclass(frozen=True)
class ConvOperator:
    """The matrix W of one convolutional layer; build it with `conv_operator`, which validates.

    Attributes:
        filters: filter bank w, [K, M, *ell]; the only leaf.
        signal_shape: spatial signal length D per axis (static).
        stride: t per axis (static).
        padding: ``"valid"`` (the theory's), ``"same"`` (zeros around x) or ``"circular"`` (x goes on from its
            beginning) (static).
        method: ``"conv"`` or ``"patches"``, how products are computed (static).
        products: ``"float32"``, ``"tf32"`` or ``"bfloat16"``, what their inputs are rounded to (static).
    """

    filters: FilterBank
    signal_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Padding
    method: Method
    products: Products = "float32"

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.signal_shape)

    @property
    def num_filters(self) -> int:
        """K."""
        return self.filters.shape[-self.rank - 2]

    @property
    def channels(self) -> int:
        """M."""
        return self.filters.shape[-self.rank - 1]

    @property
    def length(self) -> tuple[int, ...]:
        """Filter length ell per axis."""
        return self.filters.shape[-self.rank :]

    @property
    def shifts(self) -> tuple[int, ...]:
        """Shifts n per axis: (D - ell)/t + 1 for valid padding, ceil(D/t) for same, D/t for circular."""
        axes = zip(self.signal_shape, self.length, self.stride, strict=True)
        if self.padding != "valid":
            return tuple(-(-size // step) for size, _, step in axes)
        return tuple((size - ell) // step + 1 for size, ell, step in axes)

    @property
    def margins(self) -> tuple[tuple[int, int], ...]:
        """Samples put before and after x per axis so that it is exactly (n - 1) t + ell long.

        With same padding they are zeros, as many as TensorFlow's and JAX's; with circular padding the first ell - t
        samples of x come again after its last. The second number is negative where the last samples of x are seen
        by no shift (stride longer than the filter).
        """
        margins = []
        for size, ell, step, n in zip(self.signal_shape, self.length, self.stride, self.shifts, strict=True):
            total = (n - 1) * step + ell - size
            before = 0 if self.padding == "circular" else max(total, 0) // 2
            margins.append((before, total - before))
        return tuple(margins)

    @property
    def code_shape(self) -> tuple[int, ...]:
        """(K, *n), the shape of h = W x and of z."""
        return (self.num_filters, *self.shifts)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(M, *D), the shape of x."""
        return (self.channels, *self.signal_shape)

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the filters."""
        return self.filters.dtype


def conv_operator(
    filters: ArrayLike,
    signal_shape: PerAxis,
    *,
    stride: PerAxis = 1,
    padding: str = "valid",
    method: str = "auto",
    products: str = "float32",
) -> ConvOperator:
    """Build the operator W of a convolutional layer (Gilbert et al. 2017, 2.2).

    Args:
        filters: filter bank w, [K, M, ell] or [K, M, ell_1, ell_2]; may be traced.
        signal_shape: spatial length D, one integer or one per axis; channels not included.
        stride: t, one integer or one per axis.
        padding: ``"valid"`` needs an integer n = (D - ell)/t + 1; ``"same"`` surrounds x by zeros as JAX and
            TensorFlow do, n = ceil(D/t), and the adjoint crops; ``"circular"`` takes x as one period,
            h[i, j] = sum over m, s of w[i, m, s] x[m, (j t + s) mod D], and needs an integer n = D/t and ell <= D.
        method: ``"conv"`` (``lax.conv_general_dilated``), ``"patches"`` (slices of x times a matrix), or
            ``"auto"``: on a CPU patches for up to `PATCHES_LIMIT` multiply-adds or `PATCHES_CHANNELS`
            channels, conv otherwise.
        products: ``"float32"`` rounds nothing (float64 filters are multiplied in float64). ``"tf32"`` and
            ``"bfloat16"`` round filters, signals and codes to 10 and 7 mantissa bits on their way into a product,
            on every device, and multiply on tensor cores where there are any; sums are float32.

    Returns:
        The operator; its geometry is static, its filters are data.

    Raises:
        ValueError: filters of another rank or empty, a filter longer than the signal, a non-integer n (the
            message names the nearest valid D), an unknown padding, method or products, or rounded products of
            filters that are not float32.
    """
    bank = as_float(filters)
    if bank.ndim not in (3, 4):
        raise ValueError(
            f"expected filters of shape [K, M, ell] (1-D) or [K, M, ell_1, ell_2] (2-D), got {bank.shape}; "
            "from a Flax kernel use from_flax_kernel"
        )
    if 0 in bank.shape:
        raise ValueError(f"expected at least one filter, channel and tap, got filters of shape {bank.shape}")
    rank = bank.ndim - 2
    size = per_axis(signal_shape, rank, "signal_shape")
    step = per_axis(stride, rank, "stride")
    if padding not in PADDINGS:
        raise ValueError(f"expected padding to be 'valid', 'same' or 'circular', got {padding!r}")
    if method not in ("auto", "conv", "patches"):
        raise ValueError(f"expected method to be 'auto', 'conv' or 'patches', got {method!r}")
    if padding == "valid":
        _check_valid(size, bank.shape[2:], step)
    elif padding == "circular":
        _check_circular(size, bank.shape[2:], step)
    operator = ConvOperator(bank, size, step, padding, "conv", check_products(products, bank.dtype))
    chosen = _choose_method(operator) if method == "auto" else method
    return dataclasses.replace(operator, method=chosen)


def _check_valid(signal_shape: tuple[int, ...], length: tuple[int, ...], stride: tuple[int, ...]) -> None:
    """Refuse a filter longer than the signal and a number of shifts that is no integer."""
    for axis, (size, ell, step) in enumerate(zip(signal_shape, length, stride, strict=True)):
        if ell > size:
            raise ValueError(
                f"expected a signal at least as long as the filter, got D = {size} and l = {ell} on "
                f"spatial axis {axis}; use D >= {ell} or padding='same'"
            )
        rest = (size - ell) % step
        if rest:
            raise ValueError(
                f"expected an integer n = (D - l)/t + 1, got D = {size}, l = {ell}, t = {step} "
                f"on spatial axis {axis}; the nearest valid D are {size - rest} and "
                f"{size - rest + step}"
            )


def _check_circular(signal_shape: tuple[int, ...], length: tuple[int, ...], stride: tuple[int, ...]) -> None:
    """Refuse a filter that would wrap onto itself and shifts that do not close to a circle."""
    for axis, (size, ell, step) in enumerate(zip(signal_shape, length, stride, strict=True)):
        if size % step or ell > size:
            least = -(-ell // step) * step
            below = size - size % step
            nearest = sorted({max(below, least), max(below + step, least)})
            raise ValueError(
                f"expected D to be a multiple of t and at least l with circular padding, got D = {size}, l = {ell}, "
                f"t = {step} on spatial axis {axis}; the nearest valid D {'is' if len(nearest) == 1 else 'are'} "
                f"{' and '.join(map(str, nearest))}"
            )


def _choose_method(op: ConvOperator) -> Method:
    """Choose by backend and size; the batching around the operator is not known here.

    Measured with JAX 0.10.2 on a 2-core CPU, float32, ms per example, conv / patches; the synthesis of

        64 x 3 x 3 x 3, D 32 x 32      one bank per example  1.9 / 0.06    one shared bank  0.12 / 0.07
        96 x 3 x 11 x 11, D 227, t 4                         253 / 5.0                      4.0 / 5.6
        64 x 64 x 3 x 3, D 32 x 32                           2.5 / 3.1                      0.9 / 3.0
        256 x 256 x 3 x 3, D 14 x 14                         8.4 / 3.5                      2.4 / 2.6

    So patches for small layers and for few channels; conv for wide layers, whose filters are mostly shared (a
    Monte Carlo over wide banks gains from asking for patches).
    """
    if jax.default_backend() != "cpu":
        return "conv"
    work = math.prod(op.code_shape) * op.channels * math.prod(op.length)
    return "patches" if work <= PATCHES_LIMIT or op.channels <= PATCHES_CHANNELS else "conv"


def _check_shape(array: Array, expected: tuple[int, ...], name: str, axes: str) -> None:
    if array.shape != expected:
        raise ValueError(
            f"expected {name} of shape {axes} = {expected}, got {array.shape}; operators take one example, "
            "use jax.vmap for a batch"
        )


def _same_dtype(op: ConvOperator, array: ArrayLike) -> tuple[Array, Array]:
    """Return filters and array in one dtype: integers take the filters', mixed floats the wider one."""
    value = jnp.asarray(array)
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        value = value.astype(op.dtype)
    value = as_float(value)
    dtype = wider(value.dtype, op.dtype)
    check_products(op.products, dtype)
    return op.filters.astype(dtype), value.astype(dtype)


def analysis(op: ConvOperator, x: ArrayLike) -> Code:
    """Return h = W x, h[i, j] = sum over m, s of w[i, m, s] x[m, j t + s] (Gilbert et al. 2017, 2.2).

    Args:
        op: the layer, K filters of length ell over M channels.
        x: signal, [M, *D].

    Returns:
        Hidden units before pooling, [K, *n], in the wider dtype of filters and x.

    Raises:
        ValueError: x is not of shape (M, *D).
    """
    filters, signal = _same_dtype(op, x)
    _check_shape(signal, op.input_shape, "a signal", "(M, *D)")
    if op.method == "conv":
        framed, margins = (frame(signal, op), _NONE[: op.rank]) if op.padding == "circular" else (signal, op.margins)
        return convolve(framed[None], filters, op.products, window_strides=op.stride, padding=margins)[0]
    patches = unfold(frame(signal, op), op)
    matrix = filters.reshape(op.num_filters, -1)
    product = matmul(matrix, patches.reshape(matrix.shape[1], -1), op.products)
    return product.reshape(op.code_shape)


def synthesis(op: ConvOperator, z: ArrayLike) -> Signal:
    """Return x = W^T z, the exact adjoint of `analysis`: a sum of shifted filters (Gilbert et al. 2017, 2.2).

    Args:
        op: the layer, K filters of length ell over M channels.
        z: code, [K, *n].

    Returns:
        Signal, [M, *D], in the wider dtype of filters and z; with same padding the outside is cropped, with circular
        padding it is added to the beginning.

    Raises:
        ValueError: z is not of shape (K, *n).
    """
    filters, code = _same_dtype(op, z)
    _check_shape(code, op.code_shape, "a code", "(K, *n)")
    if op.method == "conv":
        flipped = jnp.flip(jnp.swapaxes(filters, 0, 1), axis=tuple(range(2, 2 + op.rank)))
        margins = _NONE[: op.rank] if op.padding == "circular" else op.margins
        padding = [(ell - 1 - before, ell - 1 - after) for ell, (before, after) in zip(op.length, margins, strict=True)]
        ones = (1,) * op.rank
        batch = convolve(code[None], flipped, op.products, window_strides=ones, padding=padding, lhs_dilation=op.stride)
        return unframe(batch[0], op) if op.padding == "circular" else batch[0]
    matrix = filters.reshape(op.num_filters, -1)
    patches = matmul(matrix.T, code.reshape(op.num_filters, -1), op.products)
    return unframe(fold(patches.reshape(op.channels, *op.length, *op.shifts), op), op)


def synthesis_sparse(op: ConvOperator, code: SparseEntries) -> Signal:
    """Return x = W^T z of a sparse z: the k shifted filters, scattered and added (Gilbert et al. 2017, 2.3).

    Args:
        op: the layer.
        code: entries (filter, shift, value) of z; entries of equal position add. An entry whose shift lies
            outside [0, n) adds nothing.

    Returns:
        Signal, [M, *D], equal to ``synthesis(op, code.to_dense())``.

    Raises:
        ValueError: the code belongs to another (K, *n).

    Cost: k M prod(ell) multiply-adds; the dense code never exists.
    """
    if tuple(code.code_shape) != op.code_shape:
        raise ValueError(
            f"expected a sparse code of shape (K, *n) = {op.code_shape}, got {tuple(code.code_shape)}; "
            "sample it with num_filters=op.num_filters and shifts=op.shifts"
        )
    filters, values = _same_dtype(op, code.values)
    chosen = rounded(filters[code.filter_indices], op.products)
    atoms = chosen * rounded(values, op.products).reshape(-1, *(1,) * (op.rank + 1))
    padded = tuple((n - 1) * step + ell for n, step, ell in zip(op.shifts, op.stride, op.length, strict=True))
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=tuple(range(1, op.rank + 2)),
        inserted_window_dims=(),
        scatter_dims_to_operand_dims=tuple(range(1, op.rank + 1)),
    )
    starts = code.shifts * jnp.asarray(op.stride, code.shifts.dtype).reshape(1, op.rank)
    signal = jax.lax.scatter_add(
        jnp.zeros((op.channels, *padded), atoms.dtype),
        starts,
        atoms,
        numbers,
        mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
    )
    return unframe(signal, op)


def as_matrix(op: ConvOperator) -> Float[Array, "rows columns"]:
    """Return the dense W, [K * prod(n), M * prod(D)], row (i, j) filter i shifted by j t; for small sizes."""
    size = math.prod(op.input_shape)
    basis = jnp.eye(size, dtype=op.dtype).reshape(size, *op.input_shape)
    columns = jax.vmap(lambda x: analysis(op, x).ravel())(basis)
    return columns.T


def from_flax_kernel(kernel: ArrayLike) -> FilterBank:
    """Return filters [K, M, *ell] from a Flax convolution kernel [*ell, M, K]; the same cross-correlation."""
    array = jnp.asarray(kernel)
    if array.ndim not in (3, 4):
        raise ValueError(f"expected a Flax kernel of shape [*ell, M, K] with 1 or 2 spatial axes, got {array.shape}")
    return jnp.moveaxis(array, (-1, -2), (0, 1))


def to_flax_kernel(filters: ArrayLike) -> Float[Array, "*ell M K"]:
    """Return a Flax convolution kernel [*ell, M, K] from filters [K, M, *ell]; undoes `from_flax_kernel`."""
    array = jnp.asarray(filters)
    if array.ndim not in (3, 4):
        raise ValueError(f"expected filters of shape [K, M, *ell] with 1 or 2 spatial axes, got {array.shape}")
    return jnp.moveaxis(array, (0, 1), (-1, -2))
