"""scikit-learn handlers with real estimators."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from kit import RunInference, errors
from kit.handlers import ModelFileType, SklearnModelHandlerNumpy, SklearnModelHandlerPandas

X, Y = load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def forest(tmp_path_factory: pytest.TempPathFactory) -> tuple[RandomForestClassifier, Path]:
    model = RandomForestClassifier(5, random_state=0).fit(X, Y)
    path = tmp_path_factory.mktemp("sk") / "forest.pkl"
    path.write_bytes(pickle.dumps(model))
    joblib.dump(model, path.with_suffix(".joblib"))
    return model, path


def test_numpy_rows(forest: tuple[RandomForestClassifier, Path]) -> None:
    model, path = forest
    for handler in (
        SklearnModelHandlerNumpy(path),
        SklearnModelHandlerNumpy(path.with_suffix(".joblib"), ModelFileType.JOBLIB),
        cloudpickle.loads(cloudpickle.dumps(SklearnModelHandlerNumpy(f"file://{path}"))),
    ):
        loaded = handler.load_model()
        batch = list(X[40:60])
        results = list(handler.run_inference(batch, loaded))
        assert [result.inference for result in results] == list(model.predict(X[40:60]))
        assert all(result.example is row for result, row in zip(results, batch, strict=True))
        assert results[0].model_id == handler.model_id
        assert (handler.infer_stacked(X[40:60], loaded) == model.predict(X[40:60])).all()
        assert handler.get_num_bytes(batch) == 20 * 4 * 8


def test_labels_that_are_text(tmp_path: Path) -> None:
    names = np.array(["setosa", "versicolor", "virginica"])[Y]
    model = RandomForestClassifier(3, random_state=0).fit(X, names)
    path = tmp_path / "names.pkl"
    path.write_bytes(pickle.dumps(model))
    handler = SklearnModelHandlerNumpy(path)
    assert [r.inference for r in handler.run_inference(list(X[:4]), handler.load_model())] == list(names[:4])
    assert handler.infer_stacked(X[:4], handler.load_model()) is None


def test_own_inference_fn(forest: tuple[RandomForestClassifier, Path]) -> None:
    def probabilities(model: Any, batch: Any, inference_args: Any) -> Any:
        return model.predict_proba(np.stack(batch))

    handler = SklearnModelHandlerNumpy(forest[1], inference_fn=probabilities)
    assert not handler.can_infer_stacked
    found = [r.inference for r in handler.run_inference(list(X[:3]), handler.load_model())]
    assert np.allclose(found, forest[0].predict_proba(X[:3]))
    short = SklearnModelHandlerNumpy(forest[1], inference_fn=lambda model, batch, args: [1])
    with pytest.raises(errors.WrongPredictionCount, match="1 prediction for a batch of 3"):
        short.run_inference(list(X[:3]), short.load_model())


def test_dataframes_keep_their_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame({"city": ["Rome", "Oslo", "Rome", "Bern"], "rooms": [1, 2, 3, 4], "price": [10.0, 40, 30, 80]})
    pipe = make_pipeline(
        ColumnTransformer([("city", OneHotEncoder(), ["city"])], remainder="passthrough"), LinearRegression()
    ).fit(frame[["city", "rooms"]], frame["price"])
    path = tmp_path / "pipe.joblib"
    joblib.dump(pipe, path)
    handler = SklearnModelHandlerPandas(path, ModelFileType.JOBLIB)
    loaded = handler.load_model()
    frame = frame[["city", "rooms"]]
    expected = pipe.predict(frame)
    single = [frame.iloc[[i]] for i in range(4)]
    series = [frame.iloc[i] for i in range(4)]
    for batch in (single, series):
        results = list(handler.run_inference(batch, loaded))
        assert np.allclose([r.inference for r in results], expected)
        assert results[2].example is batch[2]
    assert np.allclose(handler.infer_stacked(frame, loaded), expected)
    assert handler.get_num_bytes(single) > 0
    beam_like = SklearnModelHandlerPandas(
        path, ModelFileType.JOBLIB, inference_fn=lambda model, batch, args: (model.predict(pd.concat(batch)), batch)
    )
    assert np.allclose([r.inference for r in beam_like.run_inference(single, loaded)], expected)
    with pytest.raises(errors.UnsupportedInput, match=r"example 1 of the batch is a DataFrame of 4 rows"):
        handler.run_inference([single[0], frame], loaded)


def test_dataframes_for_arrays_are_told_the_right_handler(forest: tuple[RandomForestClassifier, Path]) -> None:
    handler = SklearnModelHandlerNumpy(forest[1])
    frame = pd.DataFrame(X[:3])
    with pytest.raises(errors.KitError, match=r"DataFrames of one row\. Use SklearnModelHandlerPandas, or give frame"):
        frame | RunInference(handler)
    assert len(frame.to_numpy() | RunInference(handler)) == 3


def test_bad_files_and_settings(forest: tuple[RandomForestClassifier, Path], tmp_path: Path) -> None:
    whole = forest[1].read_bytes()
    (tmp_path / "empty.pkl").touch()
    (tmp_path / "cut.pkl").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.pkl").write_bytes(b"noise")
    (tmp_path / "dict.pkl").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "module.pkl").write_bytes(b"cno_such_module_here\nThing\n.")
    for name, words in {
        "gone.pkl": "doesn't exist",
        "cut.pkl": "corrupt",
        "empty.pkl": "is empty, it has 0 bytes",
        ".": "is a folder, which holds ",
        "noise.pkl": "corrupt",
        "dict.pkl": "holds a dict, which has no predict",
        "module.pkl": "needs the module 'no_such_module_here'",
    }.items():
        with pytest.raises(errors.WeightsFileError, match=words) as caught:
            SklearnModelHandlerNumpy(tmp_path / name).load_model()
        assert name in str(caught.value)
    (tmp_path / "noise.joblib").write_bytes(b"noise")
    with pytest.raises(errors.WeightsFileError, match="as joblib"):
        SklearnModelHandlerNumpy(tmp_path / "noise.joblib", ModelFileType.JOBLIB).load_model()
    with pytest.raises(errors.InvalidSetting, match="model_uri=''"):
        SklearnModelHandlerNumpy("")
    with pytest.raises(errors.InvalidSetting, match="model_file_type='pickle'"):
        SklearnModelHandlerNumpy("a.pkl", "pickle")  # type: ignore[arg-type]
