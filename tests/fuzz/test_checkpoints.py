"""Hostile and damaged files of weights: bytes, zip entries, pickles, headers and dicts that Hypothesis makes up.

Whatever is tried, loading must run no code, take no memory beyond the file's own, and end in one of two ways: the
weights as they were saved, or one sentence (CheckpointError) and a model that is as it was, bit for bit. A finding
becomes a plain case in `tests/test_checkpoints.py`.
"""

import io
import json
import os
import pickle
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickletools import genops

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from reidlib.models.checkpoints import CheckpointError, load, read_state_dict

HEADROOM = 64 << 20  # bytes that reading a small file may take
HOSTILE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
FORBIDDEN = ("compile", "exec", "os.", "pickle.", "shutil.", "socket.", "subprocess.", "tempfile.")

armed: list[str] | None = None  # the forbidden audit events since `watched` began; None outside of it


def watch(event: str, arguments: tuple) -> None:
    if armed is not None and event.startswith(FORBIDDEN) and event not in ("os.listdir", "os.scandir"):
        armed.append(f"{event}{arguments}")


sys.addaudithook(watch)


@contextmanager
def watched() -> Iterator[None]:
    """Fail if the block runs, opens or makes anything, or takes more memory than HEADROOM (address space, on Linux)."""
    global armed
    limits = None
    if sys.platform == "linux":
        import resource

        limits = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + HEADROOM, limits[1]))
    armed = []
    try:
        yield
    finally:
        events, armed = armed, None
        if limits:
            resource.setrlimit(resource.RLIMIT_AS, limits)
    assert not events


class Tiny(nn.Module):
    """A model with a weight of each kind: convolution, norm with a counter, classifier."""

    name, family = "tiny", "torchreid"

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.ModuleDict({"backbone": nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))})
        self.network["head"] = nn.ModuleDict({"classifier": nn.Linear(4, 3)})


def tiny(seed: int) -> Tiny:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Tiny()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(torch.rand_like(tensor) if tensor.is_floating_point() else 7)
    return model


GOOD, BEFORE = tiny(1).state_dict(), tiny(2).state_dict()
MODEL = tiny(2)


def saved(kind: str) -> bytes:
    """GOOD as a file; the same bytes in every process."""
    if kind == "safetensors":
        return save(GOOD, {"format": "pt"})
    file = io.BytesIO()
    content = {"state_dict": GOOD, "epoch": 3, "rank1": 0.9, "optimizer": {"param_groups": [{"betas": (0.9, 0.99)}]}}
    torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    return file.getvalue()


def end_of_pickles(content: bytes) -> int:
    stream = io.BytesIO(content)
    for _ in range(5):
        list(genops(stream))
    return stream.tell()


FILES = {kind: saved(kind) for kind in ("zip", "legacy", "safetensors")}
# What a change is found in: a zip has checksums; the other formats have none, and a changed value looks like any other.
STRUCTURE = {
    "zip": len(FILES["zip"]),
    "legacy": end_of_pickles(FILES["legacy"]),
    "safetensors": 8 + struct.unpack("<Q", FILES["safetensors"][:8])[0],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for files; every format has been read once, so that nothing is imported while `watched`."""
    folder = tmp_path_factory.mktemp("fuzz")
    for kind, content in FILES.items():
        (folder / kind).write_bytes(content)
        load(tiny(2), folder / kind)
    for codec in ("cp437", "raw_unicode_escape", "unicode_escape", "latin1", "ascii"):  # of names and texts
        b"a".decode(codec)
    return folder


def attempt(source: object, *, exact: bool) -> None:
    """Load `source` into a model, watched; with `exact` it gives GOOD or an error, otherwise anything finite."""
    MODEL.load_state_dict(BEFORE)
    error = None
    with watched(), warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            report = load(MODEL, source)
        except CheckpointError as caught:
            error = caught
    after = MODEL.state_dict()
    if error is None:
        assert all(tensor.isfinite().all() for tensor in after.values())
        if exact:
            assert all(torch.equal(tensor, GOOD[key]) for key, tensor in after.items() if key not in report.missing)
    else:
        assert all(torch.equal(tensor, BEFORE[key]) for key, tensor in after.items())
        assert str(error).isprintable(), repr(str(error))
        assert not isinstance(source, Path) or str(source) in str(error)
        cause = repr(error.__cause__)
        assert "weights_only" not in str(error)
        assert "MemoryError" not in cause, cause
        assert "alloc" not in cause, cause


def attempt_bytes(folder: Path, content: bytes, *, exact: bool = True) -> None:
    path = folder / "weights"
    path.write_bytes(content)
    attempt(path, exact=exact)


# Bytes

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "insert", "delete", "copy"]),
        st.floats(0, 1, exclude_max=True),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, edits: list, end: int) -> bytes:
    """`content` with edits before byte `end`."""
    whole = bytearray(content[:end])
    for kind, where, other, value in edits:
        at, source = int(where * len(whole)), int(other * len(whole))
        if kind == "flip":
            whole[at : at + 1] = bytes(byte ^ (1 << value % 8) for byte in whole[at : at + 1])
        elif kind == "set":
            whole[at : at + 1] = bytes([value])
        elif kind == "insert":
            whole[at:at] = bytes([value]) * (1 + value % 9)
        elif kind == "delete":
            del whole[at : at + 1 + value]
        else:
            whole[at : at + 1 + value] = whole[source : source + 1 + value]
    return bytes(whole) + content[end:]


@pytest.mark.parametrize("kind", FILES)
@HOSTILE
@given(st.data())
def test_one_flipped_bit(folder: Path, kind: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, STRUCTURE[kind] - 1))
    whole = bytearray(FILES[kind])
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    attempt_bytes(folder, bytes(whole))


@pytest.mark.parametrize("kind", FILES)
@HOSTILE
@given(st.data())
def test_a_cut(folder: Path, kind: str, data: st.DataObject) -> None:
    attempt_bytes(folder, FILES[kind][: data.draw(st.integers(0, len(FILES[kind])))])


@pytest.mark.parametrize("kind", FILES)
@HOSTILE
@given(edits=EDITS)
def test_edited_bytes(folder: Path, kind: str, edits: list) -> None:
    attempt_bytes(folder, edited(FILES[kind], edits, STRUCTURE[kind]), exact=kind == "zip")


@HOSTILE
@given(st.sampled_from(sorted(FILES)), st.sampled_from(sorted(FILES)), st.floats(0, 1), st.floats(0, 1))
def test_two_files_in_one(folder: Path, first: str, second: str, cut: float, start: float) -> None:
    one, other = FILES[first], FILES[second]
    attempt_bytes(folder, one[: int(cut * len(one))] + other[int(start * len(other)) :], exact=False)


HEADS = [b"", b"PK\3\4", b"\x80\x02", FILES["legacy"][:60], b"\0\1" + bytes(6) + b"{"]


@HOSTILE
@given(st.binary(max_size=300), st.sampled_from(HEADS))
def test_any_bytes(folder: Path, content: bytes, head: bytes) -> None:
    attempt_bytes(folder, head + content)


# Zip files with right checksums


@HOSTILE
@given(st.data())
def test_zip_surgery(folder: Path, data: st.DataObject) -> None:
    with zipfile.ZipFile(io.BytesIO(FILES["zip"])) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    for _ in range(data.draw(st.integers(1, 3))):
        if not entries:
            break
        at = data.draw(st.integers(0, len(entries) - 1))
        name, content = entries[at]
        match data.draw(st.sampled_from(["drop", "double", "rename", "content", "move", "edit"])):
            case "drop":
                del entries[at]
            case "double":
                entries.append((name, data.draw(st.binary(max_size=40))))
            case "rename":
                names = [*(name for name, _ in entries), "../x", "/etc/x", "/", "a" * 300, "archive/data.pkl"]
                entries[at] = data.draw(st.sampled_from(names)), content
            case "content":
                entries[at] = name, data.draw(st.binary(max_size=40))
            case "move":
                entries.append(entries.pop(at))
            case "edit":
                entries[at] = name, edited(content, data.draw(EDITS), len(content))
    file = io.BytesIO()
    compression = data.draw(st.sampled_from([zipfile.ZIP_STORED] * 5 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]))
    with zipfile.ZipFile(file, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        archive.comment = data.draw(st.sampled_from([b""] * 5 + [b"PK\5\6", bytes(22)]))
        for name, content in entries:
            archive.writestr(name, content)
    attempt_bytes(folder, file.getvalue(), exact=False)


def with_pickle(pickled: bytes, kind: str) -> bytes:
    """GOOD's file with another pickle, and all checksums right."""
    if kind == "legacy":
        whole = FILES["legacy"]
        begin, end = (whole.index(part) for part in (b"\x80\x02}q\x00(X\x0a\x00\x00\x00state_dict", b"\x80\x02]"))
        return whole[:begin] + pickled + whole[end:]
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(FILES["zip"])) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return file.getvalue()


def good_pickle(kind: str) -> bytes:
    if kind == "legacy":
        whole = FILES["legacy"]
        begin, end = (whole.index(part) for part in (b"\x80\x02}q\x00(X\x0a\x00\x00\x00state_dict", b"\x80\x02]"))
        return whole[begin:end]
    with zipfile.ZipFile(io.BytesIO(FILES["zip"])) as archive:
        return archive.read("archive/data.pkl")


FORBIDDEN_NAMES = ["os system", "posix mkdir", "builtins eval", "builtins exec", "subprocess Popen", "shutil rmtree"]
FORBIDDEN_NAMES += ["builtins __import__", "torch.hub load", "torch load", "builtins bytearray"]
FORBIDDEN_NAMES += [
    "builtins set",
    "torch.sparse FloatTensor",
    "torch._utils _rebuild_sparse_tensor",
    "builtins getattr",
]
ALLOWED_NAMES = ["torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor", "torch._utils _rebuild_parameter"]
ALLOWED_NAMES += ["torch FloatStorage", "torch.storage UntypedStorage", "torch ComplexFloatStorage", "torch float32"]
ALLOWED_NAMES += ["torch Size", "torch device", "collections OrderedDict", "collections Counter", "_codecs encode"]
ALLOWED_NAMES += ["numpy dtype", "numpy.core.multiarray scalar", "torch Tensor", "torch.nn.parameter Parameter"]
WORDS = ["storage", "0", "cpu", "latin1", "hex", "f8", "O8", "state_dict", "_metadata", "items", *GOOD]
OPCODES = [bytes([code]) for code in b"()]}RbQsuaetN012ilopVST.\x81\x85\x86\x87\x88\x89\x90\x93\x94\x95\x96"]
OPCODES += [b"q\0", b"q\1", b"h\0", b"h\1", b"r\xff\xff\xff\xff", b"j\xff\xff\xff\xff"]


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


FRAGMENTS = st.one_of(
    st.sampled_from(ALLOWED_NAMES + FORBIDDEN_NAMES).map(lambda name: f"c{name}\n".replace(" ", "\n").encode()),
    st.sampled_from(OPCODES),
    st.sampled_from(WORDS).map(text),
    st.integers(0, 255).map(lambda n: b"K" + bytes([n])),
    st.integers(-(2**63), 2**63 - 1).map(lambda n: b"\x8a\x08" + struct.pack("<q", n)),
    st.floats().map(lambda x: b"G" + struct.pack(">d", x)),
    st.binary(max_size=4),
    st.just(b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K0tQ"),
)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@HOSTILE
@given(fragments=st.lists(FRAGMENTS, max_size=30))
def test_pickles_of_any_opcodes(folder: Path, kind: str, fragments: list[bytes]) -> None:
    body = b"\x80\x02}" + text("state_dict") + b"".join(fragments)
    attempt_bytes(folder, with_pickle(body + b"s.", kind), exact=False)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@HOSTILE
@given(fragments=st.lists(FRAGMENTS, min_size=1, max_size=3), where=st.floats(0, 1), removed=st.integers(0, 12))
def test_a_good_pickle_with_opcodes_put_in(
    folder: Path, kind: str, fragments: list[bytes], where: float, removed: int
) -> None:
    pickled = good_pickle(kind)
    at = int(where * len(pickled))
    content = pickled[:at] + b"".join(fragments) + pickled[at + removed :]
    attempt_bytes(folder, with_pickle(content, kind), exact=False)


@pytest.mark.parametrize("function", [os.system, os.mkdir, eval, exec, __import__])
@pytest.mark.parametrize("kind", ["zip", "legacy", "bare"])
def test_a_call_in_a_pickle_is_not_made(folder: Path, kind: str, function: Callable) -> None:
    class Call:
        def __reduce__(self) -> tuple:
            return function, (f"touch {folder}/sprung",)

    pickled = pickle.dumps({"state_dict": Call()}, protocol=2)
    attempt_bytes(folder, pickled if kind == "bare" else with_pickle(pickled, kind))
    assert not (folder / "sprung").exists()


def test_the_watch_sees_code_and_memory(folder: Path) -> None:
    for code in ("1 + 1", f"os.chmod({str(folder)!r}, 0o755)"):
        with pytest.raises(AssertionError), watched():
            eval(code)
    if sys.platform == "linux":
        with pytest.raises(RuntimeError, match="alloc"), watched():
            torch.empty(2**33, dtype=torch.uint8)  # more than what this process has had and given back


# Headers of safetensors

NUMBERS = st.one_of(st.integers(-3, 200), st.sampled_from([2**31, 2**62, 2**63, 2**64, -(2**63), 1.5, None, "3", True]))
TENSORS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(
            ["F32", "F16", "BF16", "F64", "I64", "I8", "BOOL", "C64", "F8_E4M3", "F4", "X", 3, None]
        ),
        "shape": st.one_of(st.lists(NUMBERS, max_size=4), NUMBERS),
        "data_offsets": st.one_of(st.tuples(NUMBERS, NUMBERS), st.lists(NUMBERS, max_size=3)),
    }
)


@HOSTILE
@given(st.data())
def test_headers_of_safetensors(folder: Path, data: st.DataObject) -> None:
    (length,) = struct.unpack("<Q", FILES["safetensors"][:8])
    header, values = json.loads(FILES["safetensors"][8 : 8 + length]), FILES["safetensors"][8 + length :]
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from([*header, "x", "\x1b[31m\n", "é" * 300]))
        field = data.draw(st.sampled_from(["drop", "new", "dtype", "shape", "data_offsets", "metadata"]))
        entry = data.draw(TENSORS)
        if field == "drop":
            header.pop(key, None)
        elif field == "metadata":
            header["__metadata__"] = data.draw(st.sampled_from([{}, {"a": 3}, [], None, {"a": {}}, 7]))
        elif field == "new" or not isinstance(header.get(key), dict):
            header[key] = data.draw(st.sampled_from([entry, [], 3, None, {}]))
        else:
            header[key][field] = entry[field]
    text = json.dumps(header).encode()
    lie = data.draw(st.sampled_from([0] * 5 + [1, -1, 8, 2**40, 2**62]))
    attempt_bytes(folder, struct.pack("<Q", max(0, len(text) + lie)) + text + values, exact=False)


# State dicts

DTYPES = [torch.float32, torch.float64, torch.half, torch.bfloat16, torch.int8, torch.int64, torch.uint16, torch.bool]
DTYPES += [torch.complex64, torch.float8_e5m2]


@st.composite
def tensors(draw: st.DrawFn, shape: tuple | None = None) -> torch.Tensor:
    """A tensor of any kind, about half of them of the right shape."""
    shape = draw(st.sampled_from([shape, (), (0,), (10**9, 0), (3, 4), (3,)])) if shape is not None else (3, 4)
    value = draw(st.sampled_from([0.0, 1.5, -2.0, float("nan"), float("inf"), 1e30]))
    tensor = torch.full(shape, value, dtype=torch.float64).to(draw(st.sampled_from(DTYPES)))
    match draw(st.sampled_from(["plain"] * 5 + ["meta", "sparse", "expanded", "grad", "parameter", "huge"])):
        case "meta":
            return tensor.to("meta")
        case "sparse" if tensor.dtype == torch.float32 and tensor.ndim == 2:
            return tensor.to_sparse()
        case "expanded" if tensor.ndim:
            return tensor[:1].expand(shape)
        case "grad" if tensor.is_floating_point() and tensor.dtype != torch.float8_e5m2:
            return tensor.clone().requires_grad_() * 2
        case "parameter":
            return nn.Parameter(tensor, requires_grad=False)
        case "huge":
            return torch.zeros(1).expand(2**40)
    return tensor


KEYS = st.one_of(st.sampled_from([*GOOD, "state_dict", "model", "module.", "\n"]), st.text(max_size=5), st.integers())
LEAVES = st.one_of(tensors(), st.none(), st.integers(), st.text(max_size=5))
VALUES = st.one_of(LEAVES, st.lists(LEAVES, max_size=3), st.dictionaries(KEYS, LEAVES, max_size=3))


@HOSTILE
@given(st.data())
def test_state_dicts_of_any_kind(folder: Path, data: st.DataObject) -> None:
    state: dict = dict(GOOD)
    for _ in range(data.draw(st.integers(0, 3))):
        key = data.draw(KEYS)
        match data.draw(st.sampled_from(["tensor", "tensor", "drop", "any", "itself"])):
            case "tensor":
                state[key] = data.draw(tensors(tuple(GOOD[key].shape) if key in GOOD else (3,)))
            case "drop":
                state.pop(key, None)
            case "any":
                state[key] = data.draw(VALUES)
            case "itself":
                state[key] = state
    for wrapper in data.draw(st.lists(st.sampled_from(["state_dict", "model", "net", "other"]), max_size=10)):
        state = {wrapper: state}
    if data.draw(st.booleans()):
        state = {data.draw(st.sampled_from(["module.", "_orig_mod.", ""])) + str(key): v for key, v in state.items()}
    attempt(state, exact=False)


@pytest.mark.parametrize("kind", FILES)
def test_the_files_that_are_damaged_here_are_good(folder: Path, kind: str) -> None:
    (folder / "weights").write_bytes(FILES[kind])
    attempt(folder / "weights", exact=True)
    state = read_state_dict(folder / "weights")
    assert all(torch.equal(tensor, GOOD[key]) for key, tensor in state.items())
    assert len(state) == len(GOOD)
