"""Handler for sentence-transformers: texts in, embeddings out."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kit.errors import InvalidSetting
from kit.handlers import devices, hf_common, paths, results
from kit.handlers.lengths import text_tokens

#: Padded tokens of one forward pass on a CPU: more don't fit its caches and run slower (measured on MiniLM).
CPU_TOKENS = 1024
#: On a GPU small passes leave it idle.
GPU_TOKENS = 65536


class SentenceTransformerModelHandler(paths.WithModelPath):
    """A SentenceTransformer: each prediction is a float32 numpy array [dimension], equal to ``encode``'s.

    Texts of a batch are sorted by their true length in tokens and padded in small groups, which is
    faster than ``encode``. Models that aren't a plain text encoder (with prompts, images, several
    routes) go through ``encode``.

    Args:
        model_name_or_path: local folder, name on the hub, or the fsspec URL of a folder.
        device: "auto" (default), "cpu", "cuda", "cuda:1", "mps" or "GPU"; looked for in ``load_model``.
        normalize_embeddings: scale each embedding to length 1, also where the model doesn't.
        load_model_args: keyword arguments for ``SentenceTransformer``.
        options: those of `kit.ModelHandler`; ``batch_length_fn`` is an estimate of tokens and
            ``max_batch_tokens`` is 2048 unless given.

    Raises:
        InvalidSetting: no model, or a device of no known name.
    """

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        *,
        device: Any = "auto",
        normalize_embeddings: bool = False,
        load_model_args: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        options.setdefault("batch_length_fn", text_tokens)
        options.setdefault("max_batch_tokens", 2048)
        super().__init__(**options)
        if not model_name_or_path:
            raise InvalidSetting(f"model_name_or_path={model_name_or_path!r}: give a model's folder or name.")
        self._model_path = paths.checked("model_name_or_path", model_name_or_path)
        self._device = devices.check(device)
        self._normalize = bool(normalize_embeddings)
        self._load_model_args = dict(load_model_args or {})
        self.preload = (
            *paths.modules("sentence_transformers", ("sentence_transformers.models",)),
            *hf_common.preload(self._model_path),
        )

    def load_model(self) -> Any:
        """The SentenceTransformer in eval mode on its device.

        Raises:
            WeightsFileError: it's neither a local folder nor on the hub, or it can't be loaded.
            DeviceUnavailable: a GPU asked for and missing.
            MissingExtra: sentence-transformers isn't installed.
        """
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise paths.needs("sentence_transformers", "sentence-transformers") from error
        device = devices.resolve(self._device)
        with hf_common.opened(self._model_path) as name:
            model = SentenceTransformer(name, device=str(device), **self._load_model_args)
        return model.requires_grad_(False).eval()

    def infer_batch(self, batch: Sequence[Any], model: Any, inference_args: Mapping[str, Any] | None = None) -> Any:
        """Embeddings as one float32 array [n, dimension]."""
        args = {"normalize_embeddings": self._normalize, **(inference_args or {})}
        encoder = _encoder(model)
        if encoder.direct and args.keys() == {"normalize_embeddings"} and all(isinstance(text, str) for text in batch):
            return encoder.embed(batch, model, bool(args["normalize_embeddings"]))
        return encoder.encode(list(batch), model, args)

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        """A PredictionResult for each text, its inference a float32 array [dimension].

        Args:
            batch: texts, or whatever else the model's ``encode`` takes.
            model: the SentenceTransformer.
            inference_args: keyword arguments of ``encode``, such as ``prompt_name``.
        """
        return results.wrap(batch, self.infer_batch(batch, model, inference_args), self.model_id)


class _Encoder:
    """How to embed texts with one model in this process; found out by looking at the model once."""

    #: Letters of both cases, punctuation, other scripts, white space, nothing, and more than any model takes.
    PROBES = ("Hello, World!  It's 3.50\tand\nÀ naïve Œuvre", "", " ", "日本語 текст", "the Long Text " * 3000)

    def __init__(self, model: Any) -> None:
        self.lock = threading.Lock()
        self.constants: dict[str, Any] = {}
        self.names: tuple[str, ...] = ()
        self.tokenizer: Any = None
        self.pad = 0
        self.direct = self._is_plain(model) and self._tokenizes_alike(model)

    def _is_plain(self, model: Any) -> bool:
        import torch

        if not isinstance(model, torch.nn.Module):  # Beam's stand-in for a shared one has nothing but its methods
            return False
        first, *others = list(model)
        return (
            type(first).__name__ == "Transformer"
            and getattr(first, "backend", "torch") == "torch"
            and getattr(model, "default_prompt_name", None) is None
            and getattr(model, "truncate_dim", None) is None
            and {type(module).__name__ for module in others} <= {"Pooling", "Normalize", "Dense"}
            and hasattr(getattr(model, "tokenizer", None), "backend_tokenizer")
            and model.tokenizer.padding_side == "right"
        )

    def _tokenizes_alike(self, model: Any) -> bool:
        """Take a tokenizer of our own that never pads, and check that it gives what the model's does.

        The model's own is set anew in each call, which two threads can't do at once.
        """
        import torch
        from tokenizers import Tokenizer

        preprocess = getattr(model, "preprocess", None) or model.tokenize
        theirs = preprocess(list(self.PROBES))
        tensors = {name for name, value in theirs.items() if isinstance(value, torch.Tensor)}
        if not {"input_ids", "attention_mask"} <= tensors <= {"input_ids", "attention_mask", "token_type_ids"}:
            return False
        self.names = tuple(tensors)
        self.constants = {name: value for name, value in theirs.items() if name not in tensors}
        self.tokenizer = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        longest = theirs["input_ids"].shape[1]
        if longest < len(self.tokenizer.encode(self.PROBES[-1])):
            self.tokenizer.enable_truncation(longest)
        self.pad = model.tokenizer.pad_token_id or 0
        ours = self._features([self.tokenizer.encode(text) for text in self.PROBES])
        return all(torch.equal(ours[name], theirs[name]) for name in tensors)

    def _features(self, encodings: Sequence[Any]) -> dict[str, Any]:
        """Padded input_ids, attention_mask and token_type_ids, each int64 [n, longest]."""
        import numpy as np
        import torch

        longest = max(len(encoding) for encoding in encodings)
        ids = np.full((len(encodings), longest), self.pad, np.int64)
        mask = np.zeros((len(encodings), longest), np.int64)
        for row, encoding in enumerate(encodings):
            tokens = encoding.ids
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        arrays = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self.names:
            arrays["token_type_ids"] = np.zeros_like(ids)
        return {**self.constants, **{name: torch.from_numpy(array) for name, array in arrays.items()}}

    def embed(self, texts: Sequence[str], model: Any, normalize: bool) -> Any:
        """float32 array [n, dimension]."""
        import numpy as np
        import torch

        device = next(model.parameters()).device
        budget = CPU_TOKENS if device.type == "cpu" else GPU_TOKENS
        # One by one: a batch call would start a pool of threads.
        encodings = [self.tokenizer.encode(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda index: -len(encodings[index]))
        out: Any = None
        start = 0
        with torch.no_grad():
            while start < len(order):
                rows = order[start : start + max(1, budget // max(1, len(encodings[order[start]])))]
                features = self._features([encodings[row] for row in rows])
                if device.type != "cpu":
                    features = {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in features.items()}
                vectors = model(features)["sentence_embedding"]
                if normalize:
                    vectors = torch.nn.functional.normalize(vectors, p=2, dim=1)
                vectors = vectors.float().cpu().numpy()
                if out is None:
                    out = np.empty((len(texts), vectors.shape[1]), np.float32)
                out[rows] = vectors
                start += len(rows)
        return out

    def encode(self, examples: list[Any], model: Any, args: Mapping[str, Any]) -> Any:
        """What the model's own ``encode`` gives, as an array [n, ...]."""
        import numpy as np

        with self.lock:
            found = model.encode(examples, **{"show_progress_bar": False, "convert_to_numpy": True, **args})
        if isinstance(found, np.ndarray):
            return found
        return [value.cpu().numpy() if hasattr(value, "cpu") else value for value in found]


_encoders: weakref.WeakKeyDictionary[Any, _Encoder] = weakref.WeakKeyDictionary()
_encoders_lock = threading.Lock()


def _encoder(model: Any) -> _Encoder:
    encoder = _encoders.get(model)
    if encoder is None:
        with _encoders_lock:
            encoder = _encoders.get(model)
            if encoder is None:
                encoder = _encoders[model] = _Encoder(model)
    return encoder
