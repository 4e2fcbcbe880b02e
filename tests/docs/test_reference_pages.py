"""docs/reference says what the code says."""

import json
import re

import pytest

from docs.generate.markdown import explained
from docs.generate.pages import FOLDER, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_that_of_the_code_of_now(name: str) -> None:
    assert (FOLDER / name).read_text() == PAGES[name](), "run `make reference` and commit"


def test_there_is_no_other_page() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(PAGES)


def test_a_name_without_an_explanation_is_refused_and_so_is_one_that_is_gone() -> None:
    for about in ({"a": "x"}, {"a": "x", "b": "y", "c": "z"}):
        with pytest.raises(KeyError, match="explain these"):
            explained(["a", "b"], about)


def test_openapi_has_a_parameter_for_every_name_in_a_path_and_a_schema_for_every_reference() -> None:
    tree = json.loads((FOLDER / "openapi.json").read_text())
    for path, item in tree["paths"].items():
        named = {f"{{{p['name']}}}" for p in item.get("parameters", []) if p["in"] == "path"}
        assert named == {"{" + part.split("}")[0] + "}" for part in path.split("{")[1:]}
    assert "#/components/schemas/Error" in json.dumps(tree)
    for name in re.findall(r"#/components/schemas/(\w+)", json.dumps(tree)):
        assert name in tree["components"]["schemas"]
