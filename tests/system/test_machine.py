from __future__ import annotations

from hvd_async.system.machine import available_memory, model_in, processor_name


def test_the_processor_has_a_name() -> None:
    assert model_in("processor\t: 0\nmodel name\t: A  processor\nmodel name\t: B\n") == "A processor"
    assert model_in("processor: 0\n") == ""


def test_this_machine_has_a_processor_and_memory() -> None:
    assert processor_name()
    memory = available_memory()
    assert memory is None or memory > 0
