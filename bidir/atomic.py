"""Files written whole or not at all, where they are, and what they hold."""

import hashlib
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from bidir.checked import WeightsError


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside ``path``, then replace it: a reader, a kill or a full disk never meets half a file. The draft's name
    cannot be guessed, and what has that name already, a link say, is not written to.
    Errors: ``OSError`` naming the path; what was there before is left intact."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(draft, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        why = f"{os.strerror(error.errno or 5)}; the previous file is intact"
        raise OSError(error.errno, why, str(path)) from error
    finally:
        with suppress(OSError):  # not there, or in no folder: the error above says more
            draft.unlink()


def write_text(path: Path, content: str) -> None:
    """``write_bytes`` for text."""
    write_bytes(path, content.encode())


def remove_drafts(folder: Path, age: float = 0) -> None:
    """Remove what killed writers left in ``folder``, if ``age`` seconds old: a younger one may be at work."""
    for draft in folder.glob("*.part"):
        with suppress(OSError):
            if time.time() - draft.stat().st_mtime >= age:
                draft.unlink()


def files_digest(*files: Path) -> str:
    """Hex SHA-256 of what files hold, one after another. Errors: ``OSError``."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def content_digest(path: str | Path) -> str:
    """Digest of a model to start from: a checkpoint, or what ``export_model`` wrote. Errors: ``WeightsError``."""
    found = resolve(path)
    try:
        return files_digest(*([found / "model.safetensors", found / "config.json"] if found.is_dir() else [found]))
    except OSError as error:
        raise WeightsError(f"initial = {path}: no checkpoint nor a folder by bidir export ({error})") from error


def resolve(path: str | Path) -> Path:
    """A path as given if absolute, else below the project (the nearest folder with notebooks/ and bidir/)."""
    here = Path.cwd()
    roots = (p for p in (here, *here.parents) if (p / "notebooks").is_dir() and (p / "bidir").is_dir())
    return next(roots, here) / os.path.expanduser(path)
