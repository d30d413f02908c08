"""Atomic writes keep the old file whatever fails; reading back says what is wrong."""

from __future__ import annotations

import errno
import os
import pickle

import pytest
import torch

from dit_edu.lab import files

FULL = "/dev/full"  # Linux: every write to it fails with "no space left on device"


def left_over(folder):
    return sorted(p.name for p in folder.iterdir())


def test_atomic_write_replaces_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with files.atomic_write(path, "w") as file:
        file.write("μ new")
        assert path.read_text() == "old"  # not before the end
    assert path.read_text(encoding="utf-8") == "μ new"
    assert left_over(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_any_interruption_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), files.atomic_write(path) as file:
        file.write(b"half of the new")
        raise error
    assert path.read_bytes() == b"old"
    assert left_over(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file_and_says_so(tmp_path, monkeypatch, call):
    path = tmp_path / "a.safetensors"
    files.write_safetensors(path, {"w": torch.ones(3)})
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    message = r"cannot write .*a\.safetensors: No space left.*unchanged"
    with pytest.raises(OSError, match=message) as caught:
        files.write_safetensors(path, {"w": torch.zeros(3)})
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert left_over(tmp_path) == ["a.safetensors"]


@pytest.mark.skipif(not os.path.exists(FULL), reason="/dev/full is a Linux device")
def test_a_really_full_device(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with open(FULL, "wb") as full:
        monkeypatch.setattr(files, "open", lambda *_, **__: full, raising=False)
        with pytest.raises(OSError, match="No space left"), files.atomic_write(path) as file:
            file.write(b"x" * 100_000)
    assert path.read_bytes() == b"old"


def test_unwritable_places(tmp_path):
    nowhere = tmp_path / "nowhere" / "a"
    with (
        pytest.raises(FileNotFoundError, match=r"cannot write .*nowhere"),
        files.atomic_write(nowhere),
    ):
        pass
    with pytest.raises(IsADirectoryError, match="folder"), files.atomic_write(tmp_path):
        pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError), files.atomic_write(tmp_path / "file" / "a"):
        pass
    with pytest.raises(ValueError, match="mode='a'"), files.atomic_write(tmp_path / "a", "a"):
        pass


def test_an_error_about_another_file_keeps_its_own_message(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"other\.file"),
        files.atomic_write(tmp_path / "a"),
        open(tmp_path / "other.file"),
    ):
        pass
    assert left_over(tmp_path) == []


def test_a_symbolic_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with files.atomic_write(tmp_path / "link", "w") as file:
        file.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_permissions_follow_the_umask(tmp_path):
    with files.atomic_write(tmp_path / "a") as file:
        file.write(b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_safetensors_round_trip_and_same_bytes(tmp_path):
    tensors = {"w": torch.randn(3, 4), "n": torch.arange(5), "t": torch.randn(4, 3).T}
    metadata = {"step": 7, "name": "é", "nested": {"b": [1, 2.5], "a": None}, "z": 1, "y": 2}
    files.write_safetensors(tmp_path / "a", tensors, metadata)
    files.write_safetensors(tmp_path / "b", tensors, dict(reversed(metadata.items())))
    assert files.sha256(tmp_path / "a") == files.sha256(tmp_path / "b")
    found, found_metadata = files.read_safetensors(tmp_path / "a", files.sha256(tmp_path / "b"))
    assert found_metadata == metadata
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], tensors[k]) for k in tensors)


def test_truncated_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    files.write_safetensors(path, {"w": torch.randn(100)})
    whole = path.read_bytes()
    for size in (0, 4, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"is truncated or not .*\({size} bytes\)"):
            files.read_safetensors(path)
    path.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(ValueError, match="not a safetensors file"):
        files.read_safetensors(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit flipped: only the hash can tell
    files.read_safetensors(path)
    with pytest.raises(ValueError, match="not the file its card describes"):
        files.read_safetensors(path, "0" * 64)
    with pytest.raises(FileNotFoundError, match=r"nothing\.here"):
        files.read_safetensors(tmp_path / "nothing.here")


def test_json(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"μ": [1, 0.5, None]})
    assert files.read_json(path) == {"μ": [1, 0.5, None]}
    with pytest.raises(ValueError):
        files.write_json(path, {"x": float("nan")})
    with pytest.raises(TypeError):
        files.write_json(path, {"x": object()})
    assert files.read_json(path) == {"μ": [1, 0.5, None]}
    path.write_text('{"cut": ')
    with pytest.raises(ValueError, match=r"a\.json is not a JSON file"):
        files.read_json(path)
