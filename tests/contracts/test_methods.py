"""Every method that the registry finds holds the contract."""

import pytest

from autopeft.methods import method_names
from autopeft.testing import PeftMethodContract

for _name in method_names():
    _class_name = f"TestContractOf{_name.capitalize()}"
    globals()[_class_name] = type(_class_name, (PeftMethodContract,), {"method_name": _name})


def test_the_registry_is_not_empty() -> None:
    assert set(method_names()) >= {"lora", "rslora", "dora", "loftq", "adalora", "full"}


def test_unknown_method_is_told_with_the_known_and_the_closest() -> None:
    from autopeft.errors import UnknownNameError
    from autopeft.methods import get_method

    with pytest.raises(
        UnknownNameError, match=r"unknown PEFT method 'lroa'; known: adalora, dora.*Did you mean 'lora'"
    ):
        get_method("lroa")
