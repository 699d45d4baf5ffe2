"""Model files and folders by local path or any fsspec URL."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from typing import Any

from kit.errors import InvalidSetting, KitError, MissingExtra, WeightsFileError
from kit.handler import ModelHandler

#: The package that brings a protocol, where its name isn't in fsspec's own message.
_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs",
    "http": "aiohttp", "https": "aiohttp", "sftp": "paramiko", "ssh": "paramiko", "hf": "huggingface_hub",
}  # fmt: skip


class WithModelPath(ModelHandler):
    """A handler that loads its model from one path or hub name, kept in ``_model_path``."""

    _model_path: str = ""

    @property
    def model_id(self) -> str:
        """The path or hub name given."""
        return self._model_path

    def update_model_path(self, model_path: str | os.PathLike[str] | None = None) -> None:
        """Load from `model_path` next time; None leaves the path as it is."""
        if model_path:
            self._model_path = checked("model_path", model_path)


def checked(name: str, path: Any) -> str:
    """A path or hub name as text.

    Raises:
        InvalidSetting: it is neither text nor a path.
    """
    if isinstance(path, (str, os.PathLike)) and isinstance(text := os.fspath(path), str):
        return text
    raise InvalidSetting(f"{name}={path!r}: give a path or a name as text.")


def is_url(path: str | os.PathLike[str]) -> bool:
    """True for ``scheme://...``; a plain path or a model's name on the hub isn't one."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def local(path: str | os.PathLike[str], what: str = "weights file") -> Iterator[str]:
    """A local path with the contents of `path`, which may be a file or a folder.

    A local path is given as it is. What a URL names is copied into a temporary folder, which is
    removed on exit.

    Raises:
        WeightsFileError: it doesn't exist or can't be read.
        MissingExtra: the URL's protocol needs a package that isn't installed.
    """
    name = os.fspath(path)
    if name.startswith("file://"):
        name = name[len("file://") :]
    if not is_url(name):
        name = os.path.expanduser(name)
        if not os.path.exists(name):
            raise WeightsFileError(_missing(os.fspath(path), name, what))
        yield name
        return
    with tempfile.TemporaryDirectory(prefix="kit-") as folder:
        yield _download(name, folder, what)


@contextlib.contextmanager
def local_file(path: str | os.PathLike[str], what: str = "weights file") -> Iterator[str]:
    """As `local`, of what has to be a file that isn't empty.

    Raises:
        WeightsFileError, MissingExtra: as `local`; it is a folder, or has 0 bytes.
    """
    with local(path, what) as name:
        if os.path.isdir(name):
            found = sorted(entry.name for entry in os.scandir(name) if entry.is_file())
            holds = f"which holds {', '.join(found[:5])}{', ...' * (len(found) > 5)}" if found else "without files"
            raise WeightsFileError(f"The {what} {os.fspath(path)!r} is a folder, {holds}: give the path of a file.")
        if os.path.getsize(name) == 0:
            raise WeightsFileError(f"The {what} {os.fspath(path)!r} is empty, it has 0 bytes: copy or save it again.")
        yield name


def _download(url: str, folder: str, what: str) -> str:
    filesystem, remote = _filesystem(url)
    target = os.path.join(folder, os.path.basename(remote.rstrip("/")) or "model")
    try:
        if not filesystem.exists(remote):
            private = (
                " What lies in memory:// is known to the process alone that wrote it, and workers are others: give a "
                "file's path."
            )
            raise WeightsFileError(f"The {what} {url!r} doesn't exist.{private * url.startswith('memory://')}")
        if filesystem.isdir(remote):
            # Without the slash a folder that exists would get the files in a sub-folder.
            filesystem.get(remote.rstrip("/") + "/", target + "/", recursive=True)
        else:
            filesystem.get_file(remote, target)
    except KitError:
        raise
    except Exception as error:
        raise WeightsFileError(f"The {what} {url!r} can't be read: {type(error).__name__}: {error}") from error
    return target


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtra(f"{url!r} needs fsspec: pip install fsspec") from error
    protocol = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        advice = f"pip install {package}" if package else str(error)
        raise MissingExtra(f"{url!r} needs a package for {protocol}://: {advice}") from error
    except ValueError as error:
        raise WeightsFileError(f"{url!r}: no file system is known for {protocol}://. {error}") from error


def _missing(given: str, name: str, what: str) -> str:
    looked = os.path.abspath(name)
    where = "" if looked == given else f" (looked for {looked})"
    return f"The {what} {given!r} doesn't exist{where}."


def modules(package: str, names: tuple[str, ...] = ()) -> tuple[str, ...]:
    """`package` and those of its modules `names` that are installed, found without importing any.

    Empty when the package isn't installed: then ``load_model`` says what to install.
    """
    spec = importlib.util.find_spec(package)
    if spec is None:
        return ()
    roots = list(spec.submodule_search_locations or ())

    def exists(name: str) -> bool:
        stems = [os.path.join(root, *name.split(".")[1:]) for root in roots]
        return any(os.path.isfile(stem + ".py") or os.path.isdir(stem) for stem in stems)

    return (package, *(name for name in names if exists(name)))


def needs(package: str, pip_name: str = "") -> MissingExtra:
    """The error for a handler whose library isn't installed."""
    return MissingExtra(
        f"This handler needs {package}: pip install {pip_name or package} (or 'serving-kit[demo]' for all libraries)."
    )
