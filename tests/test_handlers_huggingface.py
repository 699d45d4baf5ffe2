"""Hugging Face handlers: pipelines and tensor models, with MiniLM and with small models made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModel, AutoTokenizer, pipelines

import kit.assets
from kit import errors
from kit.handlers import (
    HuggingFaceModelHandlerKeyedTensor,
    HuggingFaceModelHandlerTensor,
    HuggingFacePipelineModelHandler,
    PipelineTask,
)

TEXTS = ["A short one.", "The printer on the second floor is out of toner again, and nobody has ordered any.", "Why?"]


@pytest.fixture(scope="module")
def minilm() -> Path:
    return kit.assets.path("minilm")


@pytest.fixture(scope="module")
def tokenizer(minilm: Path) -> Any:
    return AutoTokenizer.from_pretrained(minilm)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A tiny generator with random weights, whose tokenizer has no padding token."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("writer")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=101, eos_token_id=102, pad_token_id=None,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    own = AutoTokenizer.from_pretrained(kit.assets.path("minilm"))
    own.eos_token = "[SEP]"
    own.pad_token = None
    own.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, minilm: Path, tokenizer: Any) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("judge")
    config = transformers.AutoConfig.from_pretrained(minilm, num_labels=3)
    transformers.BertForSequenceClassification.from_pretrained(minilm, config=config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_embeddings_pipeline_equals_single_calls(minilm: Path) -> None:
    handler = HuggingFacePipelineModelHandler(
        PipelineTask.FeatureExtraction, minilm, device="CPU", inference_args={"return_tensors": True}
    )
    pipe = handler.load_model()
    results = list(handler.run_inference(TEXTS, pipe))
    for text, result in zip(TEXTS, results, strict=True):
        alone = pipe(text, return_tensors=True)[0]
        assert result.example == text
        assert result.model_id == str(minilm)
        assert torch.allclose(result.inference[0, : len(alone)], alone, atol=1e-5)


def test_text_generation_in_a_batch_equals_one_at_a_time(writer: Path) -> None:
    handler = HuggingFacePipelineModelHandler(
        "text-generation", writer, device="cpu", inference_args={"max_new_tokens": 8, "do_sample": False}
    )
    pipe = handler.load_model()
    assert pipe.tokenizer.padding_side == "left"
    assert pipe.tokenizer.pad_token == "[SEP]"
    together = handler.infer_batch(TEXTS, pipe)
    assert together == [handler.infer_batch([text], pipe)[0] for text in TEXTS]
    assert all(len(answer[0]["generated_text"]) > len(text) / 2 for text, answer in zip(TEXTS, together, strict=True))
    longer = handler.infer_batch(TEXTS, pipe, {"max_new_tokens": 20})
    assert all(len(a[0]["generated_text"]) > len(b[0]["generated_text"]) for a, b in zip(longer, together, strict=True))


def test_a_real_instruct_model_answers_chats_and_messages() -> None:
    handler = HuggingFacePipelineModelHandler(
        "text-generation", kit.assets.path("smollm2"), device="cpu",
        inference_args={"max_new_tokens": 6, "do_sample": False, "return_full_text": False},
    )  # fmt: skip
    pipe = handler.load_model()
    message = {"role": "user", "content": "What is the capital of France? One word."}
    chat = [{**message, "content": message["content"].replace("France", "Italy")}]
    answers = handler.infer_batch([message, chat], pipe)
    assert "Paris" in answers[0][0]["generated_text"]
    assert "Rome" in answers[1][0]["generated_text"]
    assert len(handler.infer_batch([chat], pipe)) == 1


def test_classification_gives_one_answer_an_example(judge: Path) -> None:
    handler = HuggingFacePipelineModelHandler("text-classification", judge, device="cpu")
    pipe = handler.load_model()
    for count in (1, 3):
        results = list(handler.run_inference(TEXTS[:count], pipe))
        for text, result in zip(TEXTS, results, strict=False):
            assert result.inference["label"] == pipe(text)[0]["label"]
            assert abs(result.inference["score"] - pipe(text)[0]["score"]) < 1e-5
    every = handler.infer_batch(TEXTS, pipe, {"top_k": None})
    assert [len(answer) for answer in every] == [3, 3, 3]


def test_zero_shot_classification(judge: Path) -> None:
    handler = HuggingFacePipelineModelHandler(
        "zero-shot-classification", judge, device="cpu", inference_args={"candidate_labels": ["office", "sport"]}
    )
    pipe = handler.load_model()
    for count in (1, 3):
        answers = handler.infer_batch(TEXTS[:count], pipe)
        assert [answer["sequence"] for answer in answers] == TEXTS[:count]


def test_own_pipeline_function(judge: Path) -> None:
    handler = HuggingFacePipelineModelHandler(
        "text-classification", judge, device="cpu", inference_fn=lambda batch, pipe, args: [len(text) for text in batch]
    )
    assert [r.inference for r in handler.run_inference(TEXTS, None)] == [len(text) for text in TEXTS]


def test_text_tasks_are_batched_by_tokens(minilm: Path) -> None:
    options = HuggingFacePipelineModelHandler("feature-extraction", minilm).batching_options()
    assert options["max_batch_tokens"] == 2048
    assert options["batch_length_fn"]("word " * 100) > options["batch_length_fn"]("word") == 3
    chat = [{"role": "user", "content": "word " * 100}]
    assert 100 < options["batch_length_fn"](chat) < 200
    own = HuggingFacePipelineModelHandler("feature-extraction", minilm, max_batch_tokens=99, batch_length_fn=len)
    assert own.batching_options() == {"max_batch_tokens": 99, "batch_length_fn": len}
    assert HuggingFacePipelineModelHandler("image-classification", "x").batching_options() == {}


@pytest.mark.parametrize("task", [PipelineTask.Summarization, "translation_en_to_fr", "text2text-generation", "vqa"])
def test_tasks_that_transformers_lacks_name_the_replacement(task: str) -> None:
    name = str(task)
    registry = pipelines.PIPELINE_REGISTRY
    try:
        registry.check_task(name)
    except Exception:
        with pytest.raises(errors.InvalidSetting, match=r"Use (text-generation|image-text-to-text)") as caught:
            HuggingFacePipelineModelHandler(task, "any/model")
        assert transformers.__version__ in str(caught.value)
    else:
        pytest.skip(f"the installed transformers {transformers.__version__} has {name}")


def test_pipeline_settings_that_cannot_work(minilm: Path) -> None:
    with pytest.raises(errors.InvalidSetting, match=r"model='.*minilm.*' is a folder.*: give task=, such as"):
        HuggingFacePipelineModelHandler(model=minilm).load_model()
    with pytest.raises(errors.InvalidSetting, match="give a task, a model"):
        HuggingFacePipelineModelHandler()
    with pytest.raises(errors.InvalidSetting, match="give one of them"):
        HuggingFacePipelineModelHandler(
            "feature-extraction", minilm, device="CPU", load_pipeline_args={"device": "cpu"}
        )
    with pytest.raises(errors.InvalidSetting, match="feature-extraction"):
        HuggingFacePipelineModelHandler("no-such-task", minilm)
    by_args = HuggingFacePipelineModelHandler("feature-extraction", minilm, load_pipeline_args={"device": "cpu"})
    assert by_args.load_model().device == torch.device("cpu")


def test_models_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minilm: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "config.json").write_text((minilm / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    for make in (
        lambda name: HuggingFacePipelineModelHandler("feature-extraction", name, device="cpu"),
        lambda name: HuggingFaceModelHandlerTensor(name, AutoModel),
    ):
        with pytest.raises(errors.WeightsFileError, match="neither a folder here"):
            make("nobody/has-this-model").load_model()
        with pytest.raises(errors.WeightsFileError, match="doesn't exist"):
            make(str(tmp_path / "gone")).load_model()
        with pytest.raises(errors.WeightsFileError, match="can't be loaded"):
            make(str(tmp_path)).load_model()


def test_keyed_tensors(minilm: Path, tokenizer: Any) -> None:
    model = AutoModel.from_pretrained(minilm)
    handler = HuggingFaceModelHandlerKeyedTensor(minilm, AutoModel, "pt")
    handler = cloudpickle.loads(cloudpickle.dumps(handler))
    rows = tokenizer(TEXTS, padding=True, return_tensors="pt")
    batch = [{name: rows[name][i] for name in ("input_ids", "attention_mask")} for i in range(3)]
    loaded = handler.load_model()
    results = list(handler.run_inference(batch, loaded))
    with torch.no_grad():
        expected = model(rows["input_ids"], rows["attention_mask"])
    for i, result in enumerate(results):
        assert torch.allclose(result.inference["last_hidden_state"], expected.last_hidden_state[i], atol=1e-5)
        assert torch.allclose(result.inference["pooler_output"], expected.pooler_output[i], atol=1e-5)
    layers = handler.infer_batch(batch, loaded, {"output_hidden_states": True})[1]["hidden_states"]
    assert len(layers) == 7
    assert torch.allclose(layers[-1], expected.last_hidden_state[1], atol=1e-5)


def test_tensors_and_caches(writer: Path) -> None:
    handler = HuggingFaceModelHandlerTensor(writer, "AutoModelForCausalLM")
    batch = list(torch.randint(5, 1000, (3, 6)))
    results = list(handler.run_inference(batch, handler.load_model()))
    assert [tuple(result.inference["logits"].shape[:1]) for result in results] == [(6,)] * 3
    assert "past_key_values" not in results[0].inference  # a cache can't be split by example
    with pytest.raises(errors.InvalidSetting, match="NoSuchModel"):
        HuggingFaceModelHandlerTensor(writer, "NoSuchModel").load_model()
    with pytest.raises(errors.InvalidSetting, match="needed together"):
        HuggingFaceModelHandlerTensor("", AutoModel)
    with pytest.raises(errors.InvalidSetting, match="framework='tf'"):
        HuggingFaceModelHandlerKeyedTensor(writer, AutoModel, "tf")


def test_a_model_folder_may_be_a_url(minilm: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for file in minilm.rglob("*"):
        if file.is_file():
            memory.pipe_file(f"/hub/minilm/{file.relative_to(minilm)}", file.read_bytes())
    url = "memory://hub/minilm"
    handler = HuggingFaceModelHandlerTensor(url, AutoModel)
    found = handler.infer_batch([torch.tensor([101, 7592, 102])], handler.load_model())
    expected = AutoModel.from_pretrained(minilm)(torch.tensor([[101, 7592, 102]]))
    assert np.allclose(found[0]["last_hidden_state"], expected.last_hidden_state[0].detach(), atol=1e-5)
    memory.rm("/hub", recursive=True)
