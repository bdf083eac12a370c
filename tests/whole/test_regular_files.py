"""Every passage that reads a file by a path takes regular files only: pipes, devices, folders and NULs are refused."""

import os
import signal
import socket

import pytest
from processes import HANG_SECONDS

from gsb_vit.data.pictures import open_picture
from gsb_vit.errors import InputError
from gsb_vit.export.architecture import find_architecture, is_trained_model
from gsb_vit.files import MOST_TEXT, as_path, read_json, read_text, write_atomically
from gsb_vit.runtime import packed_file
from gsb_vit.runtime.classifier import load

pytest.importorskip("torch", reason="PyTorch is not installed")
native = pytest.importorskip("gsb_vit._native", reason="the native extension is not built")

from gsb_vit.models.trained import load_model, read_tensors  # noqa: E402
from gsb_vit.study.plan import load_study  # noqa: E402
from gsb_vit.study.tables import replace_between_markers  # noqa: E402
from gsb_vit.train.recipe_io import load_recipe  # noqa: E402
from gsb_vit.train.weights import read_weights  # noqa: E402

# What reads a file, and the ending it wants.
PASSAGES = {
    "load, native": (lambda path: load(path), ""),
    "load, reference": (lambda path: load(path, engine="reference"), ""),
    "packed_file.read": (packed_file.read, ""),
    "_native.Model": (lambda path: native.Model(str(path)), ""),
    "open_picture": (open_picture, ".jpg"),
    "load_model": (load_model, ".safetensors"),
    "read_tensors": (lambda path: read_tensors(as_path(path, "a model")), ".safetensors"),
    "read_weights, safetensors": (lambda path: read_weights(str(path)), ".safetensors"),
    "read_weights, pth": (lambda path: read_weights(str(path)), ".pth"),
    "load_recipe": (load_recipe, ".toml"),
    "load_study": (load_study, ".toml"),
    "find_architecture": (lambda path: find_architecture(str(path)), ".safetensors"),
    "replace_between_markers": (lambda path: replace_between_markers(as_path(path, "a file"), "x", ""), ".md"),
    "read_json": (lambda path: read_json(as_path(path, "a file"), {}, "delete it"), ".json"),
}
KINDS = ("pipe", "socket", "folder", "link to a pipe", "link to a device", "nothing", "NUL", "NUL behind a file")


@pytest.fixture
def hangs_are_failures():
    """What opens a pipe waits for ever."""

    def stop(*_):
        raise TimeoutError("it waits for the pipe's other end")

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


def make(kind, ending, folder, monkeypatch):
    """A path of that kind."""
    path = folder / f"file{ending}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(folder)  # a socket's name is short
        socket.socket(socket.AF_UNIX).bind(path.name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a pipe":
        os.mkfifo(folder / "target")
        path.symlink_to(folder / "target")
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "NUL":
        return f"{folder}/\0{ending}"
    elif kind == "NUL behind a file":
        path.write_bytes(b"would be read")
        return f"{path}\0.exe{ending}"
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("passage", PASSAGES)
def test_only_regular_files_are_read(passage, kind, tmp_path, monkeypatch, hangs_are_failures):
    action, ending = PASSAGES[passage]
    path = make(kind, ending, tmp_path, monkeypatch)
    with pytest.raises((InputError, native.NativeError)) as caught:
        action(path)
    (line,) = str(caught.value).splitlines()
    assert line.isprintable()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "NUL" not in kind])
def test_what_is_no_file_is_no_trained_model(kind, tmp_path, monkeypatch, hangs_are_failures):
    assert is_trained_model(make(kind, ".safetensors", tmp_path, monkeypatch)) is False


def test_texts_are_bounded_and_utf_8(tmp_path):
    path = tmp_path / "text"
    path.write_text("ä" * (MOST_TEXT // 2), encoding="utf-8")
    assert len(read_text(path, "a text")) == MOST_TEXT // 2
    path.write_text("ä" * (MOST_TEXT // 2) + "a", encoding="utf-8")
    with pytest.raises(InputError, match=r"has more than 1,000,000 bytes\); give a text"):
        read_text(path, "a text")
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="give a text in UTF-8"):
        read_text(path, "a text")


def test_no_file_takes_the_place_of_a_device_pipe_or_socket(tmp_path):
    """A file that is written whole is renamed, and root may rename over a device."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    before = [os.lstat(path) for path in ("/dev/null", tmp_path / "pipe", tmp_path / "link")]
    for path in ("/dev/null", "/dev/stdout", tmp_path / "pipe", tmp_path / "link"):
        with pytest.raises(InputError, match="which a file would replace"):
            write_atomically(as_path(path, "a file"), b"x")
    after = [os.lstat(path) for path in ("/dev/null", tmp_path / "pipe", tmp_path / "link")]
    assert [(one.st_ino, one.st_mode) for one in after] == [(one.st_ino, one.st_mode) for one in before]
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "name").symlink_to("old")
    write_atomically(tmp_path / "name", b"new")
    assert (tmp_path / "name").read_bytes() == b"new" and (tmp_path / "old").read_bytes() == b"old"


def test_a_file_is_not_written_over_a_folder_and_the_message_names_what_was_asked_for(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"out cannot be written: it is a folder; name a file$"):
        write_atomically(tmp_path / "out", b"x")
    with pytest.raises(OSError, match="No such file") as caught:
        write_atomically(tmp_path / "nothing" / "a.html", b"x")
    assert caught.value.filename == str(tmp_path / "nothing" / "a.html")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
