import pytest

from mllm4d.curate.describe import describe
from mllm4d.qa.judge import Margins


class Keeps:
    def __init__(self, root: str, sizes: tuple[int, int] = (1, 2), inner: object = None) -> None:
        self.root, self.sizes, self.inner = root, sizes, inner


class Forgets:
    def __init__(self, root: str) -> None:
        self.path = root


def test_an_object_becomes_its_configuration():
    assert describe({"source": Keeps("a", inner=Keeps("b"))}) == {
        "source": {
            "class_path": f"{__name__}.Keeps",
            "init_args": {
                "root": "a",
                "sizes": [1, 2],
                "inner": {
                    "class_path": f"{__name__}.Keeps",
                    "init_args": {"root": "b", "sizes": [1, 2], "inner": None},
                },
            },
        }
    }


def test_tuples_become_lists_as_json_has_them():
    assert describe(Margins())["init_args"]["distance"] == [0.2, 40.0]


def test_an_object_that_forgets_an_argument_is_named():
    with pytest.raises(ValueError, match=r"Forgets must keep its argument 'root'"):
        describe(Forgets("a"))
