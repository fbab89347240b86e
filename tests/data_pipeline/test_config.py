import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from data_pipeline.config import AugmentConfig, DataConfig


def data(**values: object) -> DataConfig:
    return DataConfig.model_validate_json(json.dumps({"train": "a", "batch": 8, **values}), strict=True)


def augment(**values: object) -> AugmentConfig:
    return AugmentConfig.model_validate_json(json.dumps(values), strict=True)


def test_one_folder_or_several() -> None:
    assert data().train == Path("a")
    assert data(train=["a", "b"]).train == (Path("a"), Path("b"))
    assert data(val=["a"], skip_steps=[3, 9]).skip_steps == (3, 9)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch", 0),
        ("batch", "8"),
        ("batch", 8.5),
        ("lanes", 0),
        ("workers", -1),
        ("threads", 0),
        ("skip_steps", [-1]),
        ("train", []),
        ("shuffle", True),
    ],
)
def test_a_wrong_value_of_data_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=rf"{key}"):
        data(**{key: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop": "random"}, "'inception' or 'none'"),
        ({"area": [0, 1]}, "greater than 0"),
        ({"area": [0.5, 1.5]}, "less than or equal to 1"),
        ({"area": [0.5, 0.1]}, r"area = \[0.5, 0.1\]: the first number is the lower end; swap them"),
        ({"aspect": [2, 1]}, r"aspect = \[2.0, 1.0\]: the first number is the lower end"),
    ],
)
def test_a_wrong_value_of_augment_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        augment(**values)


def test_only_the_place_of_the_sets_and_the_loading_may_change_on_resume() -> None:
    free = {
        name
        for name, field in DataConfig.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("on_resume") == "free"
    }
    assert free == {"train", "val", "workers", "threads"}
    assert all(field.json_schema_extra is None for field in AugmentConfig.model_fields.values())
