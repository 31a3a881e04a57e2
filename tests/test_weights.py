"""Published weights by name, and their download, from a server on this computer."""

import hashlib
import json
import re
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import reidlib
from reidlib import models, paths
from reidlib.models import CheckpointError, checkpoints, download, weights, zoo
from reidlib.models.download import DownloadError, fetch
from reidlib.models.printed.published import LATER, Published, published
from reidlib.models.weights import find_weights, published_weights
from reidlib.training import record
from reidlib.workbook import batch
from reidlib.workbook.runs import Run

CONTENT = bytes(range(256)) * 4000  # a mebibyte, about


class Server(ThreadingHTTPServer):
    """Serves `content` at every path but /none. How it misbehaves is set by the test."""

    content, validator, ranges, sized, page = CONTENT, '"one"', True, True, False
    cut_after: int | None = None  # bytes of a body after which the connection ends
    cuts = 10**9  # how many answers end so
    slow = 0.0  # seconds before each answer
    stall_after: int | None = None  # bytes of a body after which nothing comes any more
    status: int | None = None  # of every answer, in place of 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []  # the Range of each request
        self.headers: dict[str, str | None] = {}  # in place of those that would be sent; None for no such header
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        pass  # a client that has gone

    @property
    def link(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/files/small.pth"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server: Server = self.server
        asked = self.headers["Range"]
        server.asked.append(asked)
        threading.Event().wait(server.slow)
        if self.path == "/none":
            return self.send_error(404)
        begin = 0
        if asked and server.ranges and self.headers["If-Range"] == server.validator:
            begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if begin >= len(server.content):
                return self.send_error(416)
        body = server.content[begin:]
        self.send_response(server.status or (206 if begin else 200))
        size = len(server.content)
        headers = {
            "Content-Range": f"bytes {begin}-{size - 1}/{size}" if begin else None,
            "Content-Type": "text/html; charset=utf-8" if server.page else "application/octet-stream",
            "Content-Length": str(len(body)) if server.sized else None,
            "ETag": server.validator,
        }
        for name, value in (headers | server.headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if server.stall_after is not None:
            self.wfile.write(body[: server.stall_after])
            self.wfile.flush()
            threading.Event().wait(5)
            return None
        if server.cut_after is not None and server.cuts > 0:
            server.cuts -= 1
            body = body[: server.cut_after]
        self.wfile.write(body)
        return None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0)
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


# The download


def test_a_file_comes_whole_with_its_hash_and_is_fetched_once(server, tmp_path):
    path = tmp_path / "cache" / "small.pth"
    digest = fetch(server.link, path)
    assert path.read_bytes() == CONTENT
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    record = json.loads((tmp_path / "cache" / "small.pth.json").read_text())
    assert (record["link"], record["size"]) == (server.link, len(CONTENT))
    assert "sha256" not in record  # not before it has been loaded
    assert files(path.parent) == {"small.pth", "small.pth.json"}
    assert fetch(server.link, path) == digest
    assert server.asked == [None]


def test_progress_is_shown_when_asked_for(server, tmp_path, capsys):
    fetch(server.link, tmp_path / "a.pth", progress=True)
    assert "a.pth: " in capsys.readouterr().err
    fetch(server.link, tmp_path / "b.pth")  # no terminal
    assert capsys.readouterr().err == ""


def test_a_cut_connection_is_continued_at_once_and_later(server, tmp_path):
    path = tmp_path / "small.pth"
    server.cut_after, server.cuts = 300_000, 2
    fetch(server.link, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=600000-"]
    path.unlink()
    (tmp_path / "small.pth.json").unlink()
    server.asked.clear()
    server.cut_after, server.cuts = 100_000, download.TRIES
    with pytest.raises(DownloadError, match=r"was cut off 5 times, at 500,000 of 1,024,000 bytes: try again later"):
        fetch(server.link, path)
    assert files(tmp_path) == {"small.pth.part", "small.pth.json"}
    server.asked.clear()
    fetch(server.link, path)  # another day
    assert server.asked == ["bytes=500000-"]
    assert path.read_bytes() == CONTENT


def test_a_server_that_cannot_continue_begins_anew(server, tmp_path):
    path = tmp_path / "small.pth"
    server.ranges, server.cut_after, server.cuts = False, 300_000, 1
    fetch(server.link, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-"]


@pytest.mark.parametrize("validator", ['"two"', None, 'W/"one"'])
def test_what_came_of_another_file_is_never_continued(server, tmp_path, validator):
    path = tmp_path / "small.pth"
    server.cut_after, server.cuts = 300_000, download.TRIES
    server.ranges = False
    with pytest.raises(DownloadError, match="cut off 5 times"):
        fetch(server.link, path)
    server.ranges, server.content, server.validator = True, CONTENT[::-1], validator
    fetch(server.link, path)
    assert path.read_bytes() == CONTENT[::-1]


def test_a_server_that_says_no_size_is_believed(server, tmp_path):
    server.sized = False
    assert fetch(server.link, tmp_path / "small.pth") == hashlib.sha256(CONTENT).hexdigest()


def test_a_part_that_is_too_long_is_thrown_away(server, tmp_path):
    path = tmp_path / "small.pth"
    (tmp_path / "small.pth.part").write_bytes(CONTENT * 2)
    (tmp_path / "small.pth.json").write_text(json.dumps({"link": server.link, "validator": '"one"'}))
    fetch(server.link, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == ["bytes=2048000-", None]


def test_a_wrong_size_is_no_file(server, tmp_path):
    server.ranges, server.cut_after = False, len(CONTENT) - 1
    with pytest.raises(DownloadError, match=r"at 1,023,999 of 1,024,000 bytes"):
        fetch(server.link, tmp_path / "small.pth")
    assert not (tmp_path / "small.pth").exists()


def test_a_changed_file_is_refused(server, tmp_path):
    path = tmp_path / "small.pth"
    download.record_hash(path, server.link, fetch(server.link, path))
    path.write_bytes(b"other")
    with pytest.raises(DownloadError, match=r"small\.pth has changed since its first use \(sha256 .{12}… then"):
        fetch(server.link, path)
    path.unlink()
    server.content = CONTENT[::-1]  # the same link gives another file now
    with pytest.raises(DownloadError, match="has changed since its first use"):
        fetch(server.link, path)
    (tmp_path / "small.pth.json").unlink()  # the way out that the sentence names
    assert fetch(server.link, path) == hashlib.sha256(CONTENT[::-1]).hexdigest()


@pytest.mark.parametrize("length", ["abc", "-5", "1e6", "9" * 30, "١٢", ""])
def test_a_length_that_is_none_is_one_sentence(server, tmp_path, length):
    server.headers = {"Content-Length": length.encode().decode("latin1")}
    refused(server.link, tmp_path, r"answers with the length '.*', which is none$")


def refused(link: str, folder: Path, reason: str, **options: float) -> None:
    """Downloading raises one sentence with `reason`, and leaves no file."""
    with pytest.raises(DownloadError, match=reason) as error:
        fetch(link, folder / "small.pth", **options)
    assert "\n" not in str(error.value)
    assert str(error.value).isprintable()
    assert not (folder / "small.pth").exists()


def test_a_part_that_nobody_asked_for_is_no_file(server, tmp_path):
    server.status, server.headers = 206, {"Content-Range": "bytes 0-1023999/2048000"}
    refused(server.link, tmp_path, "answers with a part of a file, though all of it was asked for$")


@pytest.mark.parametrize("range_", [None, "bytes 0-1023999/1024000", "bytes 300000-1023999/9999999", "lines 1-2/3"])
def test_a_part_of_something_else_is_thrown_away(server, tmp_path, range_):
    server.cut_after, server.cuts = 300_000, download.TRIES
    server.ranges = False
    with pytest.raises(DownloadError, match="cut off 5 times"):
        fetch(server.link, tmp_path / "small.pth")
    server.ranges, server.headers = True, {"Content-Range": range_}
    (tmp_path / "small.pth.part").write_bytes(CONTENT[:300_000])
    fetch(server.link, tmp_path / "small.pth")
    assert (tmp_path / "small.pth").read_bytes() == CONTENT
    assert server.asked[-2:] == ["bytes=300000-", None]


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "/etc/hostname", "http://[", ""])
def test_a_redirect_leads_to_no_file_of_this_computer(server, tmp_path, target):
    server.status, server.headers = 302, {"Location": target, "Content-Type": None}
    refused(server.link, tmp_path, r"cannot be reached|answers 302 .*is not allowed|answers 404|answers 302")
    assert not files(tmp_path)


@pytest.mark.parametrize("link", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x", "/etc/hostname", "http://["])
def test_a_link_leads_to_no_file_of_this_computer(tmp_path, link):
    refused(link, tmp_path, "cannot be reached")


def test_an_endless_redirect_is_one_sentence(server, tmp_path):
    server.status, server.headers = 302, {"Location": server.link}
    refused(server.link, tmp_path, "answers 302 .* infinite loop")


def test_a_redirect_to_the_file_is_followed(server, tmp_path):
    moved = Server()
    try:
        moved.status, moved.headers = 301, {"Location": server.link}
        fetch(moved.link, tmp_path / "small.pth")
        assert (tmp_path / "small.pth").read_bytes() == CONTENT
    finally:
        moved.shutdown()
        moved.server_close()


def test_a_connection_that_stalls_is_cut_and_continued(server, tmp_path):
    server.stall_after = 100_000
    refused(server.link, tmp_path, r"was cut off 5 times, the last time by timed out", timeout=0.05)
    server.stall_after = None
    fetch(server.link, tmp_path / "small.pth")
    assert (tmp_path / "small.pth").read_bytes() == CONTENT


def test_an_error_of_many_lines_is_one(server, tmp_path, monkeypatch):
    monkeypatch.setitem(Handler.responses, 503, ("Busy\x07\x1b[31m " * 100, ""))
    server.status = 503
    refused(server.link, tmp_path, r"answers 503 Busy\\x07")


@pytest.mark.parametrize("content", ["[]", "[[", '"text"', "null", "[" * 100_000, "\xff"])
def test_a_record_that_is_no_object_is_one_sentence(server, tmp_path, content):
    (tmp_path / "small.pth.json").write_text(content, encoding="latin1")
    refused(server.link, tmp_path, r"small\.pth\.json (holds no JSON object|is not valid JSON \(.*\)): delete it$")


@pytest.mark.parametrize(
    ("content", "page", "said"),
    [
        (CONTENT, True, "gives a web page, not a file: open it in a browser"),
        (b"\n<!DOCTYPE html><html>sign in</html>", False, "gives a web page, not a file"),
        (b"", False, "gives nothing, not a file"),
    ],
)
def test_a_page_in_place_of_a_file_is_said(server, tmp_path, content, page, said):
    server.content, server.page = content, page
    with pytest.raises(DownloadError, match=said):
        fetch(server.link, tmp_path / "small.pth")
    assert not files(tmp_path) & {"small.pth", "small.pth.part"}


def test_a_missing_file_and_no_network_are_one_sentence(server, tmp_path):
    with pytest.raises(DownloadError, match=r"/none answers 404 Not Found: no file is available"):
        fetch(server.link.replace("/files/small.pth", "/none"), tmp_path / "small.pth")
    with socket.socket() as free:  # bound, but nobody listens
        free.bind(("127.0.0.1", 0))
        link = f"http://127.0.0.1:{free.getsockname()[1]}/small.pth"
        with pytest.raises(DownloadError, match=rf"{link} cannot be reached \(Connection refused\): is this computer"):
            fetch(link, tmp_path / "small.pth")
    server.slow = 1.0
    with pytest.raises(DownloadError, match="timed out"):
        fetch(server.link, tmp_path / "small.pth", timeout=0.1)


def test_a_cache_that_takes_nothing_is_said(server, tmp_path):
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(DownloadError, match=r"nothing can be written to .*checkpoints .*: set TORCH_HOME to a folder"):
        fetch(server.link, tmp_path / "checkpoints" / "small.pth")
    assert server.asked == []


def test_a_full_disk_is_said_and_keeps_what_came(server, tmp_path):
    (tmp_path / "small.pth.part").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=r"small\.pth\.part cannot be written \(No space left on device\)"):
        fetch(server.link, tmp_path / "small.pth")


def test_of_two_processes_one_fetches_and_the_other_waits(server, tmp_path):
    server.slow = 2.0  # both have asked for the lock by then
    code = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("download", sys.argv[1])  # alone: its package brings torch
download = importlib.util.module_from_spec(spec)
spec.loader.exec_module(download)
print(download.fetch(*sys.argv[2:]))
"""
    call = [sys.executable, "-c", code, download.__file__, server.link, str(tmp_path / "small.pth")]
    pair = [subprocess.Popen(call, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert [process.communicate(timeout=120)[0].split() for process in pair] == [[digest]] * 2
    assert server.asked == [None]


# Names


def row(table: str, trained_on: str, link: str, **others: object) -> Published:
    fields = {"table": table, "trained_on": trained_on, "tested_on": "market1501", "link": link, "combineall": False}
    return published("osnet_x0_25")[0]._replace(**fields | others)


@pytest.fixture
def table(server, tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Three tables of one small model, links to this computer and to hosts that nothing asks."""
    rows = (
        row("old", "market1501", server.link.replace("small", "older")),
        row("old", "msmt17", server.link.replace("small", "msmt")),
        row("hand", "dukemtmcreid", "https://mega.nz/#!abc"),
        row("new", "market1501", server.link),
        row("new", "msmt17", server.link.replace("small", "all"), combineall=True),
        row("new", "imagenet", "https://drive.google.com/open?id=1", tested_on="", rank1=None),
        row("new", "dukemtmcreid", ""),  # a result without weights
    )
    monkeypatch.setattr(weights, "published", lambda model: rows if model == "osnet_x0_25" else ())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    (tmp_path / "data_paths.yaml").write_text("weights: mine\nsynthetic: data\nmarket1501: toy\n")
    monkeypatch.setenv("REID_DATA_PATHS", str(tmp_path / "data_paths.yaml"))
    return rows


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("market1501", "new:market1501"),
        ("old:market1501", "old:market1501"),
        ("msmt17", "old:msmt17"),
        ("msmt17-combineall", "new:msmt17-combineall"),
        ("imagenet", "new:imagenet"),
        ("dukemtmcreid", "hand:dukemtmcreid"),
    ],
)
def test_a_data_set_is_a_name_and_the_newest_is_meant(table, name, means):
    assert find_weights("osnet_x0_25", name).name == means


def test_an_unknown_name_lists_what_there_is_nearest_first(table, tmp_path):
    with pytest.raises(
        ValueError, match=r"osnet_x0_25 has no weights 'market': published are market1501, .*old:msmt17"
    ):
        find_weights("osnet_x0_25", "market")
    with pytest.raises(
        ValueError, match=r"has no weights 'new:msmt17': published are msmt17, old:msmt17, new:msmt17-comb"
    ):
        find_weights("osnet_x0_25", "new:msmt17")
    with pytest.raises(ValueError, match=r"mlfn has no weights 'market1501': none are published; or name a file or a"):
        find_weights("mlfn", "market1501")
    with pytest.raises(ValueError, match=r"unknown model 'osnet_x025': did you mean"):
        find_weights("osnet_x025", "market1501")
    for path in (tmp_path / "none.pth", "none.pth"):
        with pytest.raises(
            FileNotFoundError, match=r"no weights at .*none\.pth: neither a file nor the folder of a run"
        ):
            find_weights("osnet_x0_25", path)


def test_links_that_need_a_browser_say_what_to_do_and_find_it_there(table, tmp_path):
    one = find_weights("osnet_x0_25", "dukemtmcreid")
    said = (
        r"weights hand:dukemtmcreid of osnet_x0_25 need a browser: open https://mega\.nz/#!abc and save the file as "
        r".*/mine/osnet_x0_25-hand-dukemtmcreid\.pth"
    )
    with pytest.raises(FileNotFoundError, match=said):
        one.fetch()
    there = paths.weights_root() / "osnet_x0_25-hand-dukemtmcreid.pth.tar"  # as that project calls its files
    there.parent.mkdir()
    there.write_bytes(CONTENT)
    assert one.fetch() == (there, hashlib.sha256(CONTENT).hexdigest())
    there.write_bytes(b"<html>sign in</html>")  # what one gets by the wrong button: no weights, and not held to them
    with pytest.raises(CheckpointError, match=r"dukemtmcreid\.pth\.tar is a web page, not weights"):
        reidlib.create_model("osnet_x0_25", weights="dukemtmcreid")
    torch.save(reidlib.create_model("osnet_x0_25").state_dict(), there)
    reidlib.create_model("osnet_x0_25", weights="dukemtmcreid")
    there.write_bytes(b"other")
    with pytest.raises(DownloadError, match="has changed since its first use"):
        one.fetch()
    assert "weights" not in paths.data_names()
    with pytest.raises(ValueError, match=r"unknown dataset in .* 'weights'"):
        paths.data_path("weights")


def test_the_weights_folder_serves_plain_links_too(table, server):
    paths.weights_root().mkdir()
    (paths.weights_root() / "small.pth").write_bytes(b"put here by hand")
    path, _ = find_weights("osnet_x0_25", "market1501").fetch()
    assert path == paths.weights_root() / "small.pth"
    assert server.asked == []


def test_every_published_link_has_a_name_and_a_file_of_its_own():
    found = [one for name in reidlib.list_models() for one in published_weights(name).values()]
    assert (
        len(found)
        == len({(one.model, one.name) for one in found})
        == (49 * 3 + 10 + 12 + 33 + 18 + 41 + 30 + 6 + 17 + 14 + 10 + 8)
    )
    by_hand = [one for one in found if one.by_hand]
    assert {one.row.table for one in by_hand} == {"torchreid-2019-05", "torchreid-2020-03", *LATER}
    assert len({one.file_name for one in found}) == len(found)
    assert not any("/" in one.file_name or ":" in one.file_name for one in found)


# Into a model


@pytest.fixture
def trained(server, tmp_path):
    """A model with its state dict on the server, as torchreid publishes one: for 5 classes, in a file of torch."""
    model = reidlib.create_model("osnet_x0_25", num_classes=5).eval()
    file = tmp_path / "trained.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}, "epoch": 3}, file)
    server.content = file.read_bytes()
    return model, file


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_model_comes_with_published_weights(table, trained, server, tmp_path):
    model = reidlib.create_model("osnet_x0_25", weights="market1501")
    assert same(model, trained[0])
    assert (model.num_classes, model.input_size) == (5, (256, 128))  # what the file was trained for
    assert (tmp_path / "hub" / "hub" / "checkpoints" / "small.pth").is_file()
    assert reidlib.create_model("osnet_x0_25", weights="market1501", num_classes=0).report.dropped
    other = reidlib.create_model("osnet_x0_25", weights="new:market1501", num_classes=7)  # to be trained on others
    assert other.num_classes == 7
    assert "classifier (5, 512), (7, 512) in the model" in str(other.report)
    assert server.asked == [None]


def test_a_model_comes_with_a_file_or_a_run(trained, monkeypatch):
    model, file = trained
    assert same(reidlib.create_model("osnet_x0_25", weights=file), model)
    record.save_model(
        Run.create("mine", {}),
        reidlib.create_model("osnet_x0_25", num_classes=3, input_size=(64, 32)),
        trained_on="x",
        epoch=1,
    )
    for name in ("mine", "runs/mine", str(Run.folder("mine"))):
        net = reidlib.create_model("osnet_x0_25", weights=name)
        assert (net.num_classes, net.input_size) == (3, (64, 32))
    monkeypatch.setattr("reidlib.models._layouts", tuple)  # what else it might fit takes seconds to build
    with pytest.raises(CheckpointError, match=r"trained\.pth does not fit mlfn: "):
        reidlib.create_model("mlfn", weights=file)


def trained_for(state: dict, name: str) -> checkpoints.Training:
    spec = zoo.MODELS[name]
    at = lambda size: models._shapes(replace(spec, family="", input_size=size))  # noqa: E731
    return checkpoints.trained_for(state, spec.family, at, spec.input_size)


def on_meta(name: str, **sizes: object) -> dict:
    with torch.device("meta"):
        return reidlib.create_model(name, **sizes).state_dict()


def test_what_weights_were_trained_for_is_read_off_their_shapes():
    own = on_meta("deit_transreid", num_classes=4, num_cameras=8)
    assert trained_for(own, "deit_transreid") == (4, 8, (256, 128))
    upstream = {"base.sie_embed": torch.empty(15, 1, 768), "base.fc.weight": torch.empty(1000, 768)}
    assert trained_for(upstream, "deit_transreid") == (None, 15, None)
    fastreid = {"heads.weight": torch.empty(751, 2048), "heads.bottleneck.0.weight": torch.empty(2048)}
    assert trained_for(fastreid, "bagtricks_R50_fastreid") == (751, None, None)
    assert trained_for(on_meta("v2018_SqueezeNet", num_classes=6), "v2018_SqueezeNet") == (6, None, None)


@pytest.mark.parametrize("shape", [(10**8, 0), (10**6, 1), ()])
def test_a_classifier_that_no_feature_reaches_tells_no_classes(shape):
    assert trained_for({"heads.weight": torch.empty(shape, device="meta")}, "bagtricks_R50_fastreid")[0] is None


# Input sizes


@pytest.mark.parametrize("name", ["vit_transreid", "deit_transreid"])
@pytest.mark.parametrize("size", checkpoints._SIZES)
def test_a_vision_transformer_tells_its_input_size_by_its_positions(name, size):
    assert trained_for(on_meta(name, input_size=size), name).input_size == size


def test_an_unusual_number_of_positions_tells_no_input_size():
    state = {"base.pos_embed": torch.empty(1, 1 + 17 * 3, 768, device="meta")}
    assert trained_for(state, "vit_transreid").input_size is None


def test_the_report_says_at_which_size_weights_are_used_and_what_for(table, trained, tmp_path, monkeypatch):
    def reported(weights: object, **sizes: object) -> str:
        return str(reidlib.create_model("osnet_x0_25", weights=weights, **sizes).report).partition("; input size ")[2]

    file = trained[1]
    assert reported(file) == "256 × 128 of the model, not known from the weights"
    assert reported(file, input_size=(128, 64)) == "128 × 64 as given"
    small = reidlib.create_model("osnet_x0_25", num_classes=3, input_size=(64, 32))
    record.save_model(Run.create("mine", {}), small, trained_on="x", epoch=1)
    assert reported("mine") == "64 × 32 as trained"
    assert reported("mine", input_size=(64, 64)) == "64 × 64 as given, trained at 64 × 32"
    published = table[3]._replace(input="160x64")
    monkeypatch.setattr(weights, "published", lambda model: (published,))
    assert reported("market1501") == "160 × 64 as trained"
    assert reidlib.create_model("osnet_x0_25", weights="market1501").input_size == (160, 64)


@pytest.mark.parametrize("size", ["256x128", [256], [256, "128"], [0, 128], [10**9, 10**9], {}, [True, 64]])
def test_a_run_whose_input_size_is_none_is_one_sentence(trained, size):
    run = Run.create("mine", {}).begin()
    record.save_model(run, trained[0])
    run.write_json("model.json", run.read_json("model.json") | {"input_size": size})
    with pytest.raises(ValueError, match=r"model\.json: input_size is .*, not \[height, width\]$"):
        reidlib.create_model("osnet_x0_25", weights="mine")
    (run.path / "model.json").write_text("[1, 2")
    with pytest.raises(ValueError, match=r"model\.json is not valid JSON \("):
        reidlib.create_model("osnet_x0_25", weights="mine")


# What a download is worth


def test_a_download_counts_once_it_has_loaded(table, trained, server, tmp_path):
    good, server.content = server.content, b"\x80\x02 no weights at all"
    there = tmp_path / "hub" / "hub" / "checkpoints" / "small.pth"
    with pytest.raises(CheckpointError, match=r"small\.pth .* \(deleted here, so the next call downloads it anew\)$"):
        reidlib.create_model("osnet_x0_25", weights="market1501")
    assert not there.exists()
    server.content = good
    assert same(reidlib.create_model("osnet_x0_25", weights="market1501"), trained[0])
    recorded = json.loads(there.with_name("small.pth.json").read_text())
    assert recorded["sha256"] == hashlib.sha256(good).hexdigest()
    assert recorded["link"] == server.link
    there.write_bytes(b"other")  # a file that was good once is not thrown away
    with pytest.raises(DownloadError, match="has changed since its first use"):
        reidlib.create_model("osnet_x0_25", weights="market1501")
    assert there.read_bytes() == b"other"


def test_weights_of_another_model_are_kept_but_not_recorded(table, trained, server, tmp_path, monkeypatch):
    monkeypatch.setattr("reidlib.models._layouts", tuple)
    torch.save(reidlib.create_model("osnet_x0_5").state_dict(), trained[1])
    server.content = trained[1].read_bytes()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"small\.pth does not fit osnet_x0_25"):
            reidlib.create_model("osnet_x0_25", weights="market1501")
    assert server.asked == [None]
    assert "sha256" not in json.loads((tmp_path / "hub" / "hub" / "checkpoints" / "small.pth.json").read_text())


def test_a_file_that_was_put_there_by_hand_is_never_deleted(table, server):
    paths.weights_root().mkdir()
    mine = paths.weights_root() / "small.pth"
    mine.write_bytes(b"\x80\x02 no weights at all")
    with pytest.raises(CheckpointError, match=r"small\.pth .*[^)]$"):
        reidlib.create_model("osnet_x0_25", weights="market1501")
    assert mine.is_file()


# As a run


def test_published_weights_stand_as_a_run(table, trained, server):
    run = Run.open(model="osnet_x0_25", weights="market1501")
    assert run.name == "osnet_x0_25-new-market1501"
    about = run.read_json("model.json")
    assert (about["name"], about["trained_on"], about["tested_on"]) == ("osnet_x0_25", "market1501", "market1501")
    said = {key: about["weights"][key] for key in ("name", "link", "file", "sha256")}
    digest = hashlib.sha256(server.content).hexdigest()
    assert said == {"name": "new:market1501", "link": server.link, "file": "small.pth", "sha256": digest}
    assert f"weights new:market1501 from small.pth, sha256 {digest[:12]}…" == run.origin
    assert run.metric == "euclidean"  # as osnet_x0_25 was published
    assert same(run.load_model("cpu"), trained[0])
    server.content = b"gone"
    again = Run.open("osnet_x0_25-new-market1501")
    assert again.path == Run.open(model="osnet_x0_25", weights="new:market1501").path == run.path
    assert Run.open("named", model="osnet_x0_25", weights="market1501").path == Run.folder("named")
    assert server.asked == [None]  # the file of the first download served


def test_a_file_of_ones_own_stands_as_a_run_and_is_read_again_when_it_changes(trained, tmp_path):
    model, file = trained
    run = Run.open(model="osnet_x0_25", weights=str(file))
    assert run.name == f"osnet_x0_25-{tmp_path.name}-trained"
    with pytest.raises(ValueError, match=rf"weights of {run.name} are to be tested on is not known: name a"):
        _ = run.tested_on
    other = reidlib.create_model("osnet_x0_25", num_classes=2)
    save_file(other.state_dict(), file)
    assert same(Run.open(model="osnet_x0_25", weights=str(file)).load_model("cpu"), other)
    elsewhere = tmp_path / "elsewhere" / tmp_path.name / "trained.pth"
    elsewhere.parent.mkdir(parents=True)
    save_file(model.state_dict(), elsewhere)
    with pytest.raises(FileExistsError, match=rf"the run {run.name} holds other weights than these: choose"):
        Run.open(model="osnet_x0_25", weights=str(elsewhere))


@pytest.mark.parametrize(
    ("file", "label"),
    [
        ("log/osnet_market/model/model.pth.tar-60", "osnet_x0_25-osnet_market-model.pth.tar-60"),  # torchreid's
        ("log/osnet_duke/model/model.pth.tar-60", "osnet_x0_25-osnet_duke-model.pth.tar-60"),
        ("logs/bagtricks_R50/model_final.pth", "osnet_x0_25-bagtricks_R50-model_final"),  # fast-reid's
        ("logs/../best run (2)/x.safetensors", "osnet_x0_25-best-run-2-x"),
        ("model/log/best.pt", "osnet_x0_25-best"),
        ("best.pt", "osnet_x0_25-best"),  # in the home folder, whose name is nobody's business
    ],
)
def test_a_file_gives_its_run_a_name_by_its_folder(tmp_path, monkeypatch, file, label):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / file
    path.parent.resolve().mkdir(parents=True, exist_ok=True)
    (tmp_path / "logs").mkdir(exist_ok=True)
    path.write_bytes(CONTENT)
    assert find_weights("osnet_x0_25", path).label == label
    monkeypatch.chdir(tmp_path)
    assert find_weights("osnet_x0_25", file).label == label  # however it is named


def test_two_experiments_with_files_of_one_name_are_two_runs(trained, tmp_path):
    for experiment in ("one", "two"):
        folder = tmp_path / experiment / "model"
        folder.mkdir(parents=True)
        torch.save(trained[0].state_dict(), folder / "model.pth.tar-2")
        run = Run.open(model="osnet_x0_25", weights=str(folder / "model.pth.tar-2"))
        assert run.name == f"osnet_x0_25-{experiment}-model.pth.tar-2"


def test_a_run_is_opened_by_its_model_and_a_trained_one_is_never_overwritten(table, trained):
    mine = Run.create("osnet_x0_25-new-market1501", {"epochs": 3}).begin()
    record.save_model(mine, trained[0], trained_on="market1501", epoch=3)
    with pytest.raises(FileExistsError, match="holds other weights than these"):
        Run.open(model="osnet_x0_25", weights="market1501")
    assert Run.open(model="osnet_x0_25").path == mine.path
    assert Run.open(model="osnet_x0_25", weights="osnet_x0_25-new-market1501").path == mine.path
    assert mine.origin == "trained from random weights on market1501 for 3 epochs"
    with pytest.raises(ValueError, match=r"the run osnet_x0_25-new-market1501 holds no mlfn: choose another `run`"):
        Run.open(mine.name, model="mlfn")
    with pytest.raises(FileNotFoundError, match=r"no run in .* holds a mlfn: name its `weights`, or train it"):
        Run.open(model="mlfn")
    with pytest.raises(ValueError, match=r"`weights` 'market1501' need a `model` to go into"):
        Run.open(weights="market1501")


def test_batch_makes_the_run_that_weights_stand_for(table, trained, capsys):
    names, values = ["test", "ranklist"], {"test": {"model": "osnet_x0_25", "weights": "market1501"}, "ranklist": {}}
    assert batch._new_name(names, values) == str(Run.folder("osnet_x0_25-new-market1501"))
    assert Run.open("osnet_x0_25-new-market1501").tested_on == "market1501"
    assert batch.main(["test", "-p", "model", "osnet_x0_25", "-p", "weights", "dukemtmcreid"]) == 2
    assert "error: the weights hand:dukemtmcreid of osnet_x0_25 need a browser" in capsys.readouterr().err
    assert not Run.folder("osnet_x0_25-hand-dukemtmcreid").exists()


@pytest.mark.slow
def test_the_test_notebook_takes_weights_in_place_of_a_run(tiny, tmp_path, capsys):
    small = reidlib.create_model("osnet_x0_25", num_classes=5, input_size=(64, 32))
    save_file(small.state_dict(), tmp_path / "own.safetensors")
    own = ["-p", "model", "osnet_x0_25", "-p", "weights", str(tmp_path / "own.safetensors")]
    scoring = ["-p", "flip", "true", "-p", "multi_query", "mean"]
    assert batch.main(["test", *own, *scoring, "-p", "datasets", "synthetic-tiny"]) == 0
    run = Run.folder(f"osnet_x0_25-{tmp_path.name}-own")
    assert str(run) in capsys.readouterr().out
    result = json.loads((run / "result.json").read_text())["results"]["synthetic-tiny"]
    assert (result["metric"], result["flip"], result["multi_query"]) == ("euclidean", True, "mean")
    assert {p.name for p in (run / "features").iterdir()} == {"synthetic-tiny-flip.safetensors"}
    assert result["images"] == {split: len(samples) for split, samples in tiny.splits.items()}
    page = (run / "notebooks" / "test.ipynb").read_text()
    assert "Nothing is published for osnet_x0_25 on synthetic-tiny (weights " in page
