"""SentenceTransformerModelHandler gives what ``encode`` gives, on every way through it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import kit.assets
from kit import errors
from kit.handlers import SentenceTransformerModelHandler
from kit.handlers import sentence_transformers as home

TEXTS = [
    *kit.assets.texts("tickets")[:20],
    *kit.assets.texts("articles")[:3],
    "",
    " ",
    "ÄÖÜ naïve\tTab\nline",
    "日本語の文 with English",
    "x" * 500,
]


@pytest.fixture(scope="module")
def minilm() -> Path:
    return kit.assets.path("minilm")


@pytest.fixture(scope="module")
def model(minilm: Path) -> Any:
    return SentenceTransformer(str(minilm), device="cpu")


@pytest.fixture(scope="module")
def expected(model: Any) -> Any:
    return model.encode(TEXTS, show_progress_bar=False)


def test_equals_encode(minilm: Path, expected: Any) -> None:
    handler = cloudpickle.loads(cloudpickle.dumps(SentenceTransformerModelHandler(minilm, device="cpu")))
    loaded = handler.load_model()
    assert home._encoder(loaded).direct
    results = list(handler.run_inference(TEXTS, loaded))
    for text, result, vector in zip(TEXTS, results, expected, strict=True):
        assert result.example is text
        assert result.inference.dtype == np.float32
        assert result.inference.shape == (384,)
        assert np.abs(result.inference - vector).max() < 1e-6
        assert result.model_id == str(minilm)
    block = handler.infer_batch(TEXTS[:5], loaded)
    assert block.shape == (5, 384)
    assert np.abs(block - expected[:5]).max() < 1e-6


def test_threads_share_a_model(minilm: Path, model: Any, expected: Any) -> None:
    handler = SentenceTransformerModelHandler(minilm, device="cpu")
    worst: list[float] = []

    def run() -> None:
        for start in range(0, len(TEXTS), 7):
            found = handler.infer_batch(TEXTS[start : start + 7], model)
            worst.append(float(np.abs(found - expected[start : start + 7]).max()))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 16
    assert max(worst) < 1e-6


def test_arguments_of_encode_go_through_encode(minilm: Path, model: Any, expected: Any) -> None:
    handler = SentenceTransformerModelHandler(minilm, device="cpu")
    found = handler.infer_batch(TEXTS[:3], model, {"prompt": "query: "})
    assert np.abs(found - model.encode(TEXTS[:3], prompt="query: ")).max() < 1e-6
    assert np.abs(found - expected[:3]).max() > 1e-3
    small = handler.infer_batch(TEXTS[:3], model, {"truncate_dim": 8})
    assert small.shape == (3, 8)


def test_models_that_are_not_plain_go_through_encode(minilm: Path) -> None:
    handler = SentenceTransformerModelHandler(minilm, device="cpu", load_model_args={"truncate_dim": 16})
    loaded = handler.load_model()
    assert not home._encoder(loaded).direct
    assert np.abs(handler.infer_batch(TEXTS, loaded) - loaded.encode(TEXTS)).max() < 1e-6
    prompted = SentenceTransformerModelHandler(
        minilm, device="cpu", load_model_args={"prompts": {"q": "query: "}, "default_prompt_name": "q"}
    )
    loaded = prompted.load_model()
    assert not home._encoder(loaded).direct
    assert np.abs(prompted.infer_batch(TEXTS[:4], loaded) - loaded.encode(TEXTS[:4])).max() < 1e-6


def test_normalize_embeddings(minilm: Path, tmp_path: Path) -> None:
    bare = SentenceTransformer(str(minilm), device="cpu")
    del bare[2]  # the model's own Normalize
    bare.save(str(tmp_path / "bare"))
    plain = SentenceTransformerModelHandler(tmp_path / "bare", device="cpu")
    loaded = plain.load_model()
    assert home._encoder(loaded).direct
    assert np.abs(np.linalg.norm(plain.infer_batch(TEXTS[:4], loaded), axis=1) - 1).max() > 0.1
    unit = SentenceTransformerModelHandler(tmp_path / "bare", device="cpu", normalize_embeddings=True)
    found = unit.infer_batch(TEXTS[:4], loaded)
    assert np.abs(found - loaded.encode(TEXTS[:4], normalize_embeddings=True)).max() < 1e-6


def test_batching_is_planned_in_tokens(minilm: Path, model: Any) -> None:
    options = SentenceTransformerModelHandler(minilm).batching_options()
    assert options["max_batch_tokens"] == 2048
    length = options["batch_length_fn"]
    texts = kit.assets.texts("tickets")
    ratio = sum(map(length, texts)) / sum(len(model.tokenizer.encode(text)) for text in texts)
    assert 0.8 < ratio < 1.3
    assert SentenceTransformerModelHandler(minilm, max_batch_tokens=64).batching_options()["max_batch_tokens"] == 64


def test_models_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(errors.WeightsFileError, match="doesn't exist"):
        SentenceTransformerModelHandler(tmp_path / "gone").load_model()
    with pytest.raises(errors.WeightsFileError, match="neither a folder here"):
        SentenceTransformerModelHandler("nobody/has-this-model").load_model()
    (tmp_path / "config.json").write_text("{ broken")
    with pytest.raises(errors.WeightsFileError, match="can't be loaded"):
        SentenceTransformerModelHandler(tmp_path).load_model()
    with pytest.raises(errors.InvalidSetting, match="model_name_or_path=''"):
        SentenceTransformerModelHandler("")
