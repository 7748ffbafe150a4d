"""Tensors of the type BYTES in Triton's Python backend. Copied into the model repository; it imports nothing of ours.

The stub of the wheel was built for numpy 1. On numpy 2 it takes the strides and sizes of arrays from fields that have
moved: what it reads of an input of this type is its first byte again and again, on which it ends itself, and what it
sends is empty. Both are mended here from within the stub's process, before its first tensor: the stub is given numpy's
table of C functions with one changed, which puts strides of 0 right, and answers have a type in whose moved field
stands the size that the stub expects. On numpy 1, and with a stub that knows numpy 2, nothing is changed.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

# Of numpy's table of C functions: its length, which only grows, and where PyArray_NewFromDescr is in it.
_TABLE_LENGTH, _NEW_FROM_DESCR = 300, 94
# A flag of no consequence (how to pickle) in the field that was the size. It makes sizes even.
_PIECE_BYTES = 2
# Kept as long as the process: the stub holds their addresses.
_kept: list[Any] = []
_strides_were_wrong = False


def mend() -> None:
    """To be called when the runner is imported; once is enough."""
    if _kept or int(np.__version__.partition(".")[0]) < 2:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Where the stub looks for the table, by its former name.
        import numpy.core.multiarray as module
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    numbers = ctypes.POINTER(ctypes.c_ssize_t)
    pointer = ctypes.c_void_p
    # Of subtype, descr, nd, dims, strides, data, flags and obj.
    function = ctypes.PYFUNCTYPE(
        pointer, pointer, pointer, ctypes.c_int, numbers, numbers, pointer, ctypes.c_int, pointer
    )
    size = _TABLE_LENGTH * ctypes.sizeof(ctypes.c_void_p)
    table = (ctypes.c_void_p * _TABLE_LENGTH)()
    ctypes.memmove(table, address(module._ARRAY_API, None), size)
    original = function(table[_NEW_FROM_DESCR] or 0)

    def new_from_descr(subtype: Any, descr: Any, nd: int, dims: Any, strides: Any, *rest: Any) -> Any:
        global _strides_were_wrong
        if strides and nd and not any(strides[:nd]):
            # Without any numpy makes those of a contiguous array, which is all that the stub has.
            _strides_were_wrong = _strides_were_wrong or max(dims[:nd]) > 1
            strides = None
        return original(subtype, descr, nd, dims, strides, *rest)

    changed = function(new_from_descr)
    table[_NEW_FROM_DESCR] = ctypes.cast(changed, ctypes.c_void_p).value
    _kept.extend((table, original, changed))
    module._ARRAY_API = capsule(ctypes.cast(table, ctypes.c_void_p), None, None)
    pb_utils.serialize_byte_tensor = functools.partial(_serialize, pb_utils.serialize_byte_tensor)


def read(request: Any, name: str) -> list[bytes]:
    """The elements of an input of a request; none when the request does not have it."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return [] if tensor is None else [bytes(element) for element in tensor.as_numpy().reshape(-1)]


def make(name: str, texts: Sequence[bytes]) -> Any:
    """An output [n, 1] of JSON texts, in answer to an input that was read; a text may get a space at its end."""
    elements = np.empty((len(texts), 1), np.object_)
    for row, text in enumerate(texts):
        elements[row, 0] = text + b" " * (-len(text) % _PIECE_BYTES)
    return pb_utils.Tensor(name, elements)


def _serialize(original: Callable[[Any], Any], tensor: Any) -> Any:
    """As pb_utils does it, in the form that the stub takes the right number of bytes of."""
    raw = original(tensor)
    # An input comes before every output, and always has more than one byte.
    if not _strides_were_wrong or not raw:
        return raw
    kind = np.dtype([("byte", np.uint8)])
    kind.__setstate__((3, "|", None, ("byte",), {"byte": (np.dtype(np.uint8), 0)}, 1, 1, _PIECE_BYTES))  # type: ignore[attr-defined]
    return np.frombuffer(raw, kind)[: len(raw) // _PIECE_BYTES]
