"""Files that are either the old ones or the new ones, never half of each.

Everything the package writes goes through :func:`atomic_write`; everything it reads back as weights
goes through :func:`read_safetensors`, which says what is wrong with a file that is not ours.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch

METADATA_KEY = "dit_edu"  # safetensors writes several keys in random order: ours is one JSON string


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``; a clean exit puts it in the place of ``path``.

    Whatever goes wrong before that (an exception, Ctrl-C, a full disk), the temporary file is
    removed and an earlier ``path`` is left as it was. A symbolic link is followed, not replaced.

    Args:
        path: The file to write; its folder must exist.
        mode: ``"wb"`` for bytes or ``"w"`` for UTF-8 text.

    Yields:
        The open file. Closing it is not the caller's work.

    Raises:
        ValueError: ``mode`` is neither ``"wb"`` nor ``"w"``.
        OSError: The file cannot be written; the message names ``path`` and the reason, and the
            subclass (``PermissionError``, ``FileNotFoundError`` …) is that of the cause.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode={mode!r} is unknown; allowed: 'wb', 'w'.")
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    created = False
    try:
        if target.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        encoding = None if mode == "wb" else "utf-8"
        with open(temporary, mode.replace("w", "x"), encoding=encoding) as file:
            created = True
            yield file
            file.flush()
            os.fsync(file.fileno())  # the bytes are on the disk before the name points at them
        os.replace(temporary, target)
    except BaseException as error:
        if created:
            with suppress(OSError):
                temporary.unlink()
        ours = isinstance(error, OSError) and error.filename in (None, str(temporary))
        if ours and error.errno is not None:
            kept = "; the file that was there is unchanged" if target.is_file() else ""
            reason = error.strerror or type(error).__name__
            raise OSError(error.errno, f"cannot write {path}: {reason}{kept}") from error
        raise


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content`` as readable JSON (indented, UTF-8, final newline), atomically.

    Raises:
        ValueError: A number is NaN or infinite, which JSON does not have.
        TypeError: Something in ``content`` is not a JSON type.
        OSError: See :func:`atomic_write`.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path, "w") as file:
        file.write(text)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: The file is not JSON; the message says where it stops being so.
        OSError: The file cannot be read.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of named tensors: of their names, types, shapes and numbers, in any order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write named tensors and a JSON-able ``metadata`` as one safetensors file, atomically.

    The same tensors and metadata give the same bytes, hence the same :func:`sha256`.

    Raises:
        OSError: See :func:`atomic_write`.
    """
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {METADATA_KEY: json.dumps(dict(metadata or {}), sort_keys=True, allow_nan=False)}
    content = safetensors_torch.save(flat, header)
    with atomic_write(path) as file:
        file.write(content)


def read_safetensors(
    path: str | os.PathLike[str], expected_sha256: str | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what :func:`write_safetensors` wrote, as CPU tensors.

    Args:
        path: The file.
        expected_sha256: If given, the file's hash must be this one.

    Returns:
        The tensors by name, and the metadata (empty for a safetensors file that is not ours).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, is no safetensors file, or has another hash.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(2, f"no file {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no __iter__)
            header = (file.metadata() or {}).get(METADATA_KEY, "{}")
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({path.stat().st_size} bytes): {error}"
        ) from error
    if expected_sha256 is not None and (found := sha256(path)) != expected_sha256:
        raise ValueError(
            f"{path} is not the file its card describes: sha256 {found[:12]}…, "
            f"expected {expected_sha256[:12]}…"
        )
    return tensors, json.loads(header)


def provenance() -> dict[str, Any]:
    """What a card says of the software behind a result: ``versions`` and ``commit``.

    ``commit`` is that of the source tree, followed by ``+`` where tracked files were changed, or
    ``None`` where the package does not lie in a git tree.
    """
    packages = ("torch", "numpy", "scikit-learn", "torchmetrics", "diffusers", "accelerate")
    versions = {"python": platform.python_version()}
    versions |= {package: version(package) for package in packages}
    git = ["git", "-C", str(Path(__file__).parent), "describe"]
    git += ["--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {"versions": versions, "commit": commit}
