"""Devices, paths and what importing and preloading the handlers costs."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import kit.assets
from kit import errors
from kit.handlers import devices, paths

CUDA = torch.cuda.is_available()


def test_names_of_devices() -> None:
    assert devices.check(None) == "auto"
    assert devices.check("GPU") == "gpu"
    assert devices.check("cuda:1") == "cuda:1"
    assert devices.check(torch.device("cuda", 2)) == "cuda:2"
    assert devices.check(-1) == devices.check("CPU") == devices.check(torch.device("cpu", 0)) == "cpu"
    assert devices.check(1) == "cuda:1"
    for wrong in ("tpu", "cuda:", "cuda:x", "cpu:3", "auto:1", "", True, 1.5):
        with pytest.raises(errors.InvalidSetting, match='"auto", "cpu", "cuda"'):
            devices.check(wrong)


def test_the_cpu_is_always_there() -> None:
    assert devices.resolve("CPU") == torch.device("cpu")
    assert devices.resolve("auto").type == ("cuda" if CUDA else "cpu")


@pytest.mark.skipif(CUDA, reason="this machine has a CUDA GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:1", "GPU", torch.device("cuda")])
def test_a_missing_gpu_is_said_plainly(name: object) -> None:
    if name == "GPU" and torch.backends.mps.is_available():
        pytest.skip("this machine has an Apple GPU")
    with pytest.raises(errors.DeviceUnavailable, match="no CUDA GPU") as caught:
        devices.resolve(name)
    assert f'device="{name}"' in str(caught.value)
    assert 'device="auto"' in str(caught.value)


def test_a_hidden_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(errors.DeviceUnavailable, match="CUDA_VISIBLE_DEVICES=''"):
        devices.resolve("cuda")
    with pytest.raises(errors.DeviceUnavailable, match="no Apple GPU"):
        devices.resolve("mps")


def test_a_gpu_number_that_is_too_high(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.resolve("cuda:1") == torch.device("cuda:1")
    with pytest.raises(errors.DeviceUnavailable, match=r"2 CUDA GPU\(s\)"):
        devices.resolve("cuda:2")


def test_auto_passes_over_a_gpu_that_does_not_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("driver too old")

    monkeypatch.setattr(torch, "empty", broken)
    assert devices.resolve("auto") == torch.device("cpu")
    assert "driver too old" in caplog.text


def test_local_paths_and_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    file = tmp_path / "a.bin"
    file.write_bytes(b"abc")
    with paths.local(file) as path:
        assert path == str(file)
    with paths.local(f"file://{file}") as path:
        assert path == str(file)
    memory = fsspec.filesystem("memory")
    memory.pipe({"/kit/one.bin": b"1", "/kit/folder/x": b"x", "/kit/folder/deep/y": b"y"})
    with paths.local("memory://kit/one.bin") as path:
        assert path.endswith("one.bin")
        assert Path(path).read_bytes() == b"1"
    assert not Path(path).exists()
    with paths.local("memory://kit/folder") as path:
        assert sorted(str(p.relative_to(path)) for p in Path(path).rglob("*")) == ["deep", "deep/y", "x"]
    for gone in ("memory://kit/gone", tmp_path / "gone", "gone"):
        with pytest.raises(errors.WeightsFileError, match="gone' doesn't exist"), paths.local(gone):
            pass
    with pytest.raises(errors.WeightsFileError, match="no file system is known for nosuch://"):
        with paths.local("nosuch://x/y"):
            pass


def test_a_missing_package_for_a_protocol_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for url, package in (("s3://bucket/w.pt", "s3fs"), ("gs://path/to/model.pt", "gcsfs")):
        with pytest.raises(errors.MissingExtra, match=f"pip install {package}"), paths.local(url):
            pass


def run_fresh(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=120, check=False,
        env={"PATH": "", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HOME": str(Path.home())},
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_making_handlers_imports_no_library() -> None:
    run_fresh("""
        import sys
        import kit.handlers as h
        handlers = [
            h.PytorchModelHandlerTensor("a.pt", dict), h.PytorchModelHandlerKeyedTensor("a.safetensors", dict),
            h.HuggingFacePipelineModelHandler("text-generation", "some/model", device="GPU"),
            h.HuggingFaceModelHandlerTensor("some/model", "AutoModel"), h.SentenceTransformerModelHandler("some/model"),
            h.SklearnModelHandlerNumpy("a.pkl"), h.SklearnModelHandlerPandas("a.pkl"),
        ]
        heavy = {"torch", "transformers", "sklearn", "sentence_transformers", "pandas", "safetensors", "fsspec"}
        assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
        import cloudpickle
        for handler in handlers:
            assert type(cloudpickle.loads(cloudpickle.dumps(handler))) is type(handler)
            assert handler.preload, handler
        assert set(h.__all__) <= set(dir(h))
    """)


@pytest.mark.parametrize(
    "make",
    [
        'h.SentenceTransformerModelHandler(kit.assets.path("minilm"), device="cpu")',
        'h.HuggingFacePipelineModelHandler("feature-extraction", kit.assets.path("minilm"), device="cpu")',
        'h.HuggingFaceModelHandlerTensor(kit.assets.path("minilm"), "AutoModel")',
    ],
)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
def test_preloading_leaves_little_to_import_and_starts_no_thread(make: str) -> None:
    kit.assets.path("minilm")
    # jemalloc inside pyarrow, which pandas imports, has a background thread of its own that survives forks.
    code = f"""
        import os
        os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
        import importlib, sys
        import kit.assets
        import kit.handlers as h
        handler = {make}
        for name in handler.preload:
            importlib.import_module(name)
        assert len(os.listdir("/proc/self/task")) == 1, os.listdir("/proc/self/task")
        before = set(sys.modules)
        model = handler.load_model()
        if "Pipeline" in type(handler).__name__ or "Sentence" in type(handler).__name__:
            handler.infer_batch(["a text", "another"], model)
        else:
            import torch
            handler.infer_batch([torch.tensor([101, 102])], model)
        late = sorted(name for name in set(sys.modules) - before)
        print(*late)
    """
    late = run_fresh(code).split()
    assert len(late) <= 8, late
