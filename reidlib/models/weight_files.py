"""Files of weights, which come from strangers: checked first, then read without running anything.

`torch.load(weights_only=True)` runs no code of the file, but it believes what the file says of itself: it allocates the
sizes that a pickle names, inflates compressed entries, and reads bytes whose checksum is wrong. So the structure is
checked before: `_Pickle` follows the opcodes of a pickle and only describes what they ask for, and every tensor must
lie in a storage that the file holds, at its full length, uncompressed and (in zip files) with the right checksum.
Memory is bounded by the size of the file. Of a TorchScript program, as OpenAI publishes CLIP, the tensors of modules
are read in the same way, and nothing else. Formats without checksums (torch's legacy format, safetensors) are known to
be whole only by the hash that `weights` records.
"""

import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import islice
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from pickletools import genops
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy._core.multiarray import scalar  # type: ignore[attr-defined]  # numpy's own, which its stubs leave out
from safetensors import SafetensorError
from safetensors.torch import load_file

MAX_PICKLE = 1 << 25  # bytes of a pickle; published checkpoints with optimizer have less than a hundredth
MAX_STEPS = 1_000_000  # opcodes of all pickles of a file
MAX_ENTRIES = 100_000  # of a zip archive
MAX_DIMS = 64  # of a tensor, as in torch

# What a pickle of tensors and plain data may name; a checkpoint holds no other object.
_ALLOWED = re.compile(
    r"torch\._utils\._rebuild_(tensor|tensor_v2|parameter)|torch\.nn\.parameter\.Parameter|torch\.\w+Tensor"
    r"|torch(\.cuda|\.storage)?\.\w+Storage|torch\.(Size|device|bool|uint8|int\d+|b?float\d+)"
    r"|collections\.(OrderedDict|Counter)|_codecs\.encode|numpy\.(dtype|_?core\.multiarray\.scalar)"
)
_SCRIPT = re.compile(r"__torch__\.[\w.]+|torch\.jit\._pickle\.build_\w+list")  # and a TorchScript program beside those
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {"Bool": torch.bool, "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Half": torch.float16}
_DTYPES |= {"BFloat16": torch.bfloat16, "Int": torch.int32, "Float": torch.float32, "Long": torch.int64}
_DTYPES |= {"Double": torch.float64, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128}
_DTYPES |= {"Untyped": torch.uint8}
# numpy's scalars: torchreid's files keep the score of their epoch as one. Plain data, no code.
_NUMPY_SCALARS = [
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
]


class CheckpointError(ValueError):
    """A file that cannot be read as weights, or weights that do not fit the model."""


def read_file(path: Path) -> object:
    """Read a file of torch (zip or legacy format) or safetensors, told apart by content.

    Args:
        path: The file.

    Returns:
        What was saved: a dict of tensors, as a rule under "state_dict" or another wrapper.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: The file is damaged, no file of weights, or holds more than plain data and tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: {'it is a folder' if path.is_dir() else 'no such file'}")
    try:
        with path.open("rb") as file:
            head = file.read(512)
            file.seek(0)
            if not head:  # these sentences get the file's name in front
                raise CheckpointError("is empty; download it again")
            if head.lstrip().startswith(b"<"):
                raise CheckpointError("is a web page, not weights; download the file itself, past the page before it")
            if head[8:9] == b"{":  # safetensors: 8 bytes of length, then JSON
                return load_file(path)
            if head[257:262] == b"ustar":
                raise CheckpointError(
                    "is a tar archive: unpack it and load what is in it; or, if torch before 0.1.10 wrote it, save it "
                    "again with a torch of that time, as reading it would run code"
                )
            if head[:2] != b"PK":
                _check_legacy(file)
            elif (tensors := _check_zip(file)) is not None:
                return tensors
        with torch.serialization.safe_globals(_NUMPY_SCALARS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch doubts `encoding`, which Python-2 files need
            return torch.load(path, map_location="cpu", weights_only=True, encoding="latin1")
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} is cut off or damaged ({_readable(error)}); download it again") from error
    except Exception as error:  # zipfile and torch have errors of many types for damaged files
        if isinstance(error, OSError) and error.filename:
            raise
        raise CheckpointError(
            f"{path} cannot be read as weights ({type(error).__name__}); is it whole, and a state dict?"
        ) from error


def _check_zip(file: BinaryIO) -> dict[str, torch.Tensor] | None:
    """Raise CheckpointError unless `file` is a zip archive as torch writes them, every byte of it as it was written.

    Returns:
        The tensors of a TorchScript program, which torch.load would run; None for other files, which it may read now.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - 22))
    end = file.read()
    if end[:4] != b"PK\5\6" or end[-2:] != b"\0\0":  # the table of contents comes last
        raise CheckpointError(f"is cut off or damaged ({size:,} bytes); download it again")
    with mmap(file.fileno(), 0, access=ACCESS_READ) as view:
        if sum(1 for _ in islice(re.finditer(rb"PK\x01\x02", view), MAX_ENTRIES + 1)) > MAX_ENTRIES:
            raise CheckpointError(f"is refused: it holds more than {MAX_ENTRIES:,} entries")
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        inside = [name.rpartition("/")[2] for name in entries]
        script = "constants.pkl" in inside
        if script:  # its code is compressed, and is not read
            used = re.compile(r"[^/]+/data(\.pkl|/\w+)")
            entries = {name: entry for name, entry in entries.items() if used.fullmatch(name)}
        if "data.pkl" not in inside:
            names = ", ".join(map(_readable, list(entries)[:3])) or "nothing"
            raise CheckpointError(f"is a zip archive of {names}: unpack it and load the weights in it")
        if any(entry.compress_type or entry.compress_size != entry.file_size for entry in entries.values()):
            raise CheckpointError("holds compressed entries, which torch never writes; load the original file")
        folder = next(iter(entries)).partition("/")[0]
        first = min(entry.header_offset for entry in entries.values())
        length = sum(entry.file_size for entry in entries.values())
        whole = length <= size and (script or (first == 0 and len(entries) == len(archive.infolist())))
        whole = whole and all(name.startswith(f"{folder}/") for name in entries)
        if not whole or not (script or archive.testzip() is None):
            raise CheckpointError("is damaged: its checksums are not those of its content; download it again")
        if entries[f"{folder}/data.pkl"].file_size > MAX_PICKLE:
            raise CheckpointError(f"is refused: its pickle has more than {MAX_PICKLE >> 20} MiB")
        pickle = _Pickle(script)
        content = pickle.follow(BytesIO(archive.read(f"{folder}/data.pkl")))
        for storage in pickle.storages.values():
            if entries[f"{folder}/data/{storage.key}"].file_size != storage.numel * storage.dtype.itemsize:
                raise CheckpointError("is damaged: a tensor and its storage differ in size; download it again")
        if not script:
            return None
        views = dict(pickle.views(content))
        read = {
            view.storage.key: bytearray(archive.read(f"{folder}/data/{view.storage.key}")) for view in views.values()
        }
    return {name: view.tensor(read[view.storage.key]) for name, view in views.items()}


def _check_legacy(file: BinaryIO) -> None:
    """Raise CheckpointError unless `file` is five pickles and the storages that they name, and ends there."""
    size, pickle = file.seek(0, 2), _Pickle()
    file.seek(0)
    pickles = BytesIO(file.read(min(size, MAX_PICKLE)))
    if not pickles.getvalue().startswith(b"\x80"):
        raise CheckpointError("cannot be read as weights: it is a file of another kind")
    magic, *_, keys = [pickle.follow(pickles) for _ in range(5)]
    if magic != _LEGACY_MAGIC or not isinstance(keys, list) or sorted(keys) != sorted(pickle.storages):
        raise CheckpointError("cannot be read as weights: it is a pickle, but not as torch writes them")
    at = pickles.tell()
    for key in keys:
        file.seek(at)
        storage = pickle.storages[key]
        if int.from_bytes(file.read(8), "little") != storage.numel:
            raise CheckpointError("is cut off or damaged; download it again")
        at += 8 + storage.numel * storage.dtype.itemsize
    if at != size:
        raise CheckpointError(f"is cut off or damaged ({size:,} bytes, {at:,} expected); download it again")


def _readable(text: object) -> str:
    """A name or message that a file has a part in, short and on one line."""
    return ascii(" ".join(str(text).split())[:150])[1:-1]


class _Name(str):
    """A global that a pickle asks for, by its dotted name."""

    __slots__ = ()


class _Storage(NamedTuple):
    key: str
    numel: int
    dtype: torch.dtype


class _Module(dict):
    """What a module of a TorchScript program holds, by name."""


class _View(NamedTuple):
    """A tensor of a TorchScript program."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self, content: bytearray) -> torch.Tensor:
        if not prod(self.size):
            return torch.empty(self.size, dtype=self.storage.dtype)
        return (
            torch.frombuffer(content, dtype=self.storage.dtype).as_strided(self.size, self.stride, self.offset).clone()
        )


# Stand for what a pickle builds. torch before 0.2 wrote empty tensors and parameters, and filled them by attributes.
_TENSOR, _PARAMETER, _DTYPE, _DATA = object(), object(), object(), object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}


class _Pickle:
    """Follows pickles without running them: what they ask for is described, or refused.

    Args:
        script: The pickle is that of a TorchScript program, which also holds modules.

    Attributes:
        storages: Every storage that the pickles name, by its key.
        steps: Opcodes followed and items copied, at most MAX_STEPS.
    """

    def __init__(self, script: bool = False) -> None:
        self.script = script
        self.storages: dict[str, _Storage] = {}
        self.steps = 0

    def follow(self, stream: BinaryIO) -> object:
        """The dicts, lists, tuples and scalars of the pickle that begins here, with marks in place of tensors."""
        stack: list[Any] = []
        marks: list[list[Any]] = []
        memo: dict[Any, Any] = {}
        for opcode, argument, _ in genops(stream):
            self._count(1)
            match opcode.name:
                case "PROTO" | "STOP":
                    pass
                case name if name in _VALUES:
                    stack.append(argument)
                case name if name in _CONSTANTS:
                    stack.append(_CONSTANTS[name])
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "MARK":
                    marks.append(stack)
                    stack = []
                case "TUPLE":
                    stack, items = marks.pop(), stack
                    stack.append(tuple(items))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    length = int(opcode.name[5:])
                    stack[-length:] = [tuple(stack[-length:])]
                case "APPEND":
                    item = stack.pop()
                    _typed(stack[-1], list).append(item)
                case "APPENDS":
                    stack, items = marks.pop(), stack
                    _typed(stack[-1], list).extend(items)
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    _fill(stack[-1], [(key, value)])
                case "SETITEMS":
                    stack, items = marks.pop(), stack
                    _fill(stack[-1], zip(items[::2], items[1::2], strict=True))
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(_Name(argument.replace(" ", ".")))
                    if not (_ALLOWED.fullmatch(stack[-1]) or (self.script and _SCRIPT.fullmatch(stack[-1]))):
                        name = _readable(stack[-1])
                        raise CheckpointError(
                            f"is refused: it holds the Python object {name}, weights are tensors only"
                        )
                case "REDUCE" | "NEWOBJ":
                    arguments, function = stack.pop(), stack.pop()
                    stack.append(self._call(function, arguments))
                case "BUILD":
                    state = stack.pop()
                    _check_attributes(stack[-1], state)
                case "BINPERSID":
                    stack.append(self._storage(stack.pop()))
                case name:
                    raise CheckpointError(f"cannot be read as weights: torch writes no {name} into its pickles")
        return stack.pop()

    def _count(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise CheckpointError(f"is refused: it holds more than {MAX_STEPS:,} objects")

    def _call(self, function: object, arguments: object) -> object:
        """What a call would give; only calls that build tensors and plain data are let through."""
        match function, arguments:
            case "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor", (
                _Storage() as storage,
                int(offset),
                tuple(size),
                tuple(stride),
                *rest,
            ) if not any(item for item in rest[1:]):  # after requires_grad: hooks, metadata
                mark = _check_bounds(storage, offset, size, stride)
                return _View(storage, offset, size, stride) if self.script else mark
            case str(name), () if name.startswith("__torch__."):
                return _Module()
            case str(name), (list(items),) if name.startswith("torch.jit._pickle."):
                return items
            case "torch._utils._rebuild_parameter", (tensor, bool(), hooks) if tensor is _TENSOR and not hooks:
                return _PARAMETER
            case "torch.nn.parameter.Parameter", tuple() if all(a is _TENSOR or isinstance(a, bool) for a in arguments):
                return _PARAMETER
            case str(name), () if re.fullmatch(r"torch\.\w*Tensor", name):
                return _TENSOR
            case "collections.OrderedDict", ():
                return {}
            case "collections.OrderedDict", (list(items),):  # as Python 2 wrote it
                self._count(len(items))
                return _fill({}, items)
            case "collections.Counter", (dict(items),):  # of a learning-rate schedule
                self._count(len(items))
                return _DATA
            case "torch.Size", (tuple(size),) if len(size) <= MAX_DIMS:
                return _DATA
            case "torch.device", (str(), *rest) if all(isinstance(item, int) for item in rest):
                return _DATA
            case "_codecs.encode", (str(text), "latin1"):
                self._count(len(text))
                return text.encode("latin1")
            case "numpy.dtype", (str(code), *_) if re.fullmatch(r"[fiub]\d", code):
                return _DTYPE
            case "numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar", (kind, bytes() | str()) if (
                kind is _DTYPE
            ):
                return _DATA
        raise CheckpointError("is refused: it calls what no tensor needs")

    def views(self, module: object, prefix: str = "") -> Iterator[tuple[str, _View]]:
        """The tensors of a module and of those within it, by name, as in a state dict."""
        for name, value in _typed(module, _Module).items():
            self._count(1)
            if isinstance(value, _View):
                yield f"{prefix}{name}", value
            elif isinstance(value, _Module):
                yield from self.views(value, f"{prefix}{name}.")

    def _storage(self, saved: Any) -> _Storage:
        match saved:
            case ("storage", _Name() as kind, str(key), str(), int(numel), *view) if numel >= 0:
                name = re.fullmatch(r"torch(?:\.cuda|\.storage)?\.(\w+?)Storage", kind)
                if not name:
                    raise CheckpointError("is damaged: a tensor has no storage of its own type")
                storage = _Storage(key, numel, _DTYPES[name[1]])
                if self.storages.setdefault(key, storage) != storage:
                    raise CheckpointError("is damaged: a tensor has no storage of its own type")
                for part in view:  # torch before 0.4: (key, offset, length) of a part, or None
                    if part is not None:
                        _, offset, length = part
                        if not 0 <= offset <= offset + length <= numel:
                            raise CheckpointError("is damaged: a tensor lies outside its storage")
                        storage = storage._replace(numel=length)
                return storage
        raise CheckpointError("is damaged: it names no storage where one must be")


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise CheckpointError(f"is damaged: it fills something that is no {kind.__name__}")
    return value


def _fill(target: Any, items: Iterable[Any]) -> dict:
    """`target` with `items`, pairs of key and value; only keys whose hashes cannot be made to take for ever."""
    for key, value in items:
        if not (key is None or type(key) is str or (isinstance(key, int) and abs(key) < 2**60)):
            raise CheckpointError(f"is refused: it holds a dict with a {type(key).__name__} for a key")
        _typed(target, dict)[key] = value
    return target


def _check_attributes(target: object, state: Any) -> None:
    """Raise CheckpointError unless `state` are the attributes that torch and numpy give to what `target` stands for."""
    match target, state:
        case _Module(), dict():
            target.update(state)
            return
        case dict(), dict() if set(state) <= {"_metadata"}:
            return
        case object(), tuple() if target is _DTYPE and all(isinstance(item, str | int | None) for item in state):
            return
        case object(), (_Storage(), int(), tuple(), tuple()) if target is _TENSOR:
            _check_bounds(*state)
            return
        case object(), (bool(), bool(), hooks) if target is _PARAMETER and not hooks:
            return
        case object(), (tensor, _, hooks, bool(), bool()) if target is _PARAMETER and tensor is _TENSOR and not hooks:
            return
    raise CheckpointError("is refused: it sets attributes of an object")


def _check_bounds(storage: _Storage, offset: int, size: tuple, stride: tuple) -> object:
    """The mark of a tensor, which must lie in its storage and hold each value of it at most once."""
    whole = len(size) == len(stride) <= MAX_DIMS
    whole = whole and all(isinstance(item, int) and item >= 0 for item in (offset, *size, *stride))
    if whole and prod(size):
        last = 0
        for step, length in sorted(zip(stride, size, strict=True)):
            whole = whole and (length == 1 or step > last)
            last += (length - 1) * step
        whole = whole and offset + last < storage.numel
    if not whole:
        raise CheckpointError("is damaged: a tensor lies outside its storage")
    return _TENSOR
