"""Handler for Hugging Face pipelines."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, StrEnum
from typing import Any

from kit.checks import check_function, check_mapping
from kit.errors import InvalidSetting
from kit.handlers import devices, hf_common, paths, results
from kit.handlers.lengths import text_tokens


class PipelineTask(StrEnum):
    """Names of pipeline tasks. Which of them work depends on the installed transformers."""

    AnyToAny = "any-to-any"
    AudioClassification = "audio-classification"
    AutomaticSpeechRecognition = "automatic-speech-recognition"
    Conversational = "conversational"
    DepthEstimation = "depth-estimation"
    DocumentQuestionAnswering = "document-question-answering"
    FeatureExtraction = "feature-extraction"
    FillMask = "fill-mask"
    ImageClassification = "image-classification"
    ImageFeatureExtraction = "image-feature-extraction"
    ImageSegmentation = "image-segmentation"
    ImageTextToText = "image-text-to-text"
    ImageToText = "image-to-text"
    MaskGeneration = "mask-generation"
    NER = "ner"
    ObjectDetection = "object-detection"
    QuestionAnswering = "question-answering"
    SentimentAnalysis = "sentiment-analysis"
    Summarization = "summarization"
    TableQuestionAnswering = "table-question-answering"
    Text2TextGeneration = "text2text-generation"
    TextClassification = "text-classification"
    TextGeneration = "text-generation"
    TextToAudio = "text-to-audio"
    TokenClassification = "token-classification"
    Translation = "translation"
    Translation_XX_to_YY = "translation_XX_to_YY"
    VQA = "vqa"
    VideoClassification = "video-classification"
    VisualQuestionAnswering = "visual-question-answering"
    ZeroShotAudioClassification = "zero-shot-audio-classification"
    ZeroShotClassification = "zero-shot-classification"
    ZeroShotImageClassification = "zero-shot-image-classification"
    ZeroShotObjectDetection = "zero-shot-object-detection"


#: Tasks on texts: batches are padded, so they are planned in tokens.
TEXT_TASKS = frozenset({
    "feature-extraction", "fill-mask", "ner", "question-answering", "sentiment-analysis", "summarization",
    "text-classification", "text-generation", "text2text-generation", "token-classification", "translation",
    "zero-shot-classification",
})  # fmt: skip
#: Other tasks whose inputs stack to one tensor.
_STACKING_TASKS = frozenset({"audio-classification", "image-classification", "image-feature-extraction"})
_CHAT = "text-generation with an instruct model, a chat such as [{'role': 'user', 'content': '%s ...'}] as example"
#: What to use in place of a task that the installed transformers lacks and says nothing about.
_REPLACEMENTS = {
    "summarization": _CHAT % "Summarize:",
    "translation": _CHAT % "Translate into French:",
    "text2text-generation": _CHAT % "Answer:",
    "question-answering": _CHAT % "Answer from this text:",
    "conversational": _CHAT % "Hello",
    "image-to-text": "image-text-to-text with a vision-language model",
    "visual-question-answering": "image-text-to-text with a vision-language model",
    "vqa": "image-text-to-text with a vision-language model",
}


def check_task(task: str) -> None:
    """Raise unless the installed transformers has the pipeline `task`.

    Raises:
        InvalidSetting: it hasn't; the message names the replacement.
        MissingExtra: transformers isn't installed.
    """
    transformers = hf_common.need_transformers()
    from transformers import pipelines

    registry = pipelines.PIPELINE_REGISTRY
    try:
        registry.check_task(task)
        return
    except Exception as error:
        # Its own message lists the tasks too; what it says of a task of a known name is kept.
        said = "" if "available tasks are" in str(error) else f" ({str(error).strip()})"
    installed = f"the installed transformers {transformers.__version__}"
    replacement = _REPLACEMENTS.get("translation" if task.lower().startswith("translation") else task)
    if replacement:
        raise InvalidSetting(f"task={task!r}: {installed} has no such pipeline. Use {replacement}.")
    known = ", ".join(sorted(registry.get_supported_tasks()))
    raise InvalidSetting(f"task={task!r}: {installed} has no such pipeline{said}. It has: {known}.")


class HuggingFacePipelineModelHandler(paths.WithModelPath):
    """A transformers pipeline: raw examples in (texts, chats, images ...), the pipeline's answers out.

    Args:
        task: the pipeline's task, a string or `PipelineTask`; may be empty when the model is one of the hub.
        model: local folder, name on the hub, or the fsspec URL of a folder; empty for the task's default.
        device: "auto" (None, the default), "cpu", "cuda", "cuda:1", "mps" or Beam's "CPU" and "GPU".
        inference_fn: ``fn(batch, pipeline, inference_args)`` that returns one answer for each example.
        load_pipeline_args: keyword arguments for ``transformers.pipeline``, such as ``model_kwargs``.
        inference_args: keyword arguments for each call of the pipeline, such as ``max_new_tokens``;
            those given to RunInference come on top.
        options: those of `kit.ModelHandler`. For tasks on texts ``batch_length_fn`` is an estimate of
            tokens and ``max_batch_tokens`` is 2048 unless given.

    Raises:
        InvalidSetting: neither a task nor a model; a device given twice; a task that transformers
            lacks (here if transformers is imported already, else in ``load_model``).
    """

    # Tokenizers are set to pad and truncate in each call, which two threads can't do at once.
    thread_safe = False

    def __init__(
        self,
        task: str | PipelineTask = "",
        model: str | os.PathLike[str] = "",
        *,
        device: Any = None,
        inference_fn: Callable[..., Iterable[Any]] | None = None,
        load_pipeline_args: Mapping[str, Any] | None = None,
        inference_args: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        name = task.value if isinstance(task, Enum) else str(task)
        if not name and not model:
            raise InvalidSetting(f"{type(self).__name__}: give a task, a model, or both.")
        if name in TEXT_TASKS:
            options.setdefault("batch_length_fn", text_tokens)
            options.setdefault("max_batch_tokens", 2048)
        super().__init__(**options)
        check_mapping("load_pipeline_args", load_pipeline_args)
        check_mapping("inference_args", inference_args)
        self._task = name
        self._model_path = paths.checked("model", model)
        self._load_pipeline_args = dict(load_pipeline_args or {})
        if device is not None and "device" in self._load_pipeline_args:
            raise InvalidSetting(
                f"device={device!r} is given, and load_pipeline_args has device="
                f"{self._load_pipeline_args['device']!r} too: give one of them."
            )
        self._device = devices.check(self._load_pipeline_args.pop("device", device))
        check_function("inference_fn", inference_fn)
        self._inference_fn = inference_fn
        self._inference_args = dict(inference_args or {})
        self.preload = hf_common.preload(self._model_path, "transformers.pipelines", *_own_module(name))
        if name and "transformers.pipelines" in sys.modules:
            check_task(name)

    @property
    def model_id(self) -> str:
        """The path or hub name given, or the task for its default model."""
        return self._model_path or self._task

    def load_model(self) -> Any:
        """The pipeline on its device, with a padding token where the tokenizer has none.

        Raises:
            InvalidSetting: a task that the installed transformers lacks; names the replacement.
            WeightsFileError: the model is neither a local folder nor on the hub, or can't be loaded.
            DeviceUnavailable: a GPU asked for and missing.
            MissingExtra: transformers isn't installed.
        """
        hf_common.need_transformers()
        from transformers import pipeline

        if self._task:
            check_task(self._task)
        arguments = dict(self._load_pipeline_args)
        if "device_map" not in arguments:
            arguments["device"] = devices.resolve(self._device)
        with hf_common.opened(self._model_path or f"(default of {self._task})") as name:
            if not self._task and hf_common.is_folder(name) and hf_common.names_no_task(name):
                raise InvalidSetting(
                    f"model={self._model_path!r} is a folder, and only the model hub tells which task a model is for: "
                    "give task=, such as task='text-classification'."
                )
            loaded = pipeline(task=self._task or None, model=name if self._model_path else None, **arguments)
        if getattr(loaded, "model", None) is not None:
            loaded.model.requires_grad_(False).eval()
        _set_padding(loaded)
        return loaded

    def infer_batch(self, batch: Sequence[Any], model: Any, inference_args: Mapping[str, Any] | None = None) -> Any:
        """The pipeline's answers, one for each example, as a list."""
        arguments = {**self._inference_args, **(inference_args or {})}
        if self._inference_fn is not None:
            return results.bare(self._inference_fn(batch, model, arguments))
        arguments.setdefault("batch_size", len(batch) if _can_batch(model) else 1)
        # One message each would be read as one chat of them all.
        examples = [[example] if _is_message(example) else example for example in batch]
        return [_on_cpu(answer) for answer in model(examples, **arguments)]

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        """A PredictionResult for each example.

        Args:
            batch: whatever the pipeline takes as single inputs.
            model: the pipeline.
            inference_args: keyword arguments for the pipeline's call, on top of the handler's.

        Raises:
            WrongPredictionCount: not one answer for each example.
        """
        return results.wrap(batch, self.infer_batch(batch, model, inference_args), self.model_id)


def _own_module(task: str) -> tuple[str, ...]:
    name = {"sentiment-analysis": "text-classification", "ner": "token-classification"}.get(task, task)
    return paths.modules("transformers", (f"transformers.pipelines.{name.replace('-', '_')}",))[1:] if name else ()


def _set_padding(pipeline: Any) -> None:
    """Let texts of different length share a batch; generated text must follow its prompt, so pad on the left."""
    tokenizer = getattr(pipeline, "tokenizer", None)
    if tokenizer is None:
        return
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    if pipeline.task == "text-generation":
        tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        return
    for config in (pipeline.model.config, getattr(pipeline.model, "generation_config", None)):
        if config is not None and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
    own = getattr(pipeline, "generation_config", None)
    if own is not None and own.pad_token_id is None:
        own.pad_token_id = tokenizer.pad_token_id


def _can_batch(pipeline: Any) -> bool:
    task = getattr(pipeline, "task", None)  # Beam's stand-in for a shared one has nothing but its call
    if task in _STACKING_TASKS:
        return True
    tokenizer = getattr(pipeline, "tokenizer", None)
    return task in TEXT_TASKS and tokenizer is not None and tokenizer.pad_token_id is not None


def _is_message(example: Any) -> bool:
    return isinstance(example, Mapping) and "role" in example and "content" in example


def _on_cpu(answer: Any) -> Any:
    if hasattr(answer, "unbind"):
        return answer.cpu()
    if isinstance(answer, dict):
        return {name: _on_cpu(value) for name, value in answer.items()}
    return answer
