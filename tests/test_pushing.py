"""Functions, classes and instances of a notebook, as its ranks get them."""

from __future__ import annotations

import linecache
import sys
import traceback
import types
from typing import Any

import pytest

from nbdist.errors import TransferError
from nbdist.packing import TensorBytes, pack, unpack
from nbdist.pushing import Definitions

Namespace = dict[str, Any]


class Both:
    """A notebook and a rank, each of which is ``__main__`` while it is its turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._notebook, self._rank = types.ModuleType("__main__"), types.ModuleType("__main__")

    @property
    def rank(self) -> Namespace:
        """The variables of the rank."""
        return self._rank.__dict__

    def define(self, code: str) -> None:
        """Run *code* in the notebook, as cell 5."""
        self._patch.setitem(sys.modules, "__main__", self._notebook)
        name = "/tmp/ipykernel_7/5.py"
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        exec(compile(code, name, "exec", dont_inherit=True), self._notebook.__dict__)

    def push(self, *names: str) -> None:
        """Send variables of the notebook to the rank."""
        self._patch.setitem(sys.modules, "__main__", self._notebook)
        values = {name: self._notebook.__dict__[name] for name in names}
        definitions = Definitions(
            values.values(), lambda name: "In[5]" if "ipykernel" in name else name
        )
        packed = pack(values, None, definitions=definitions)
        self._patch.setitem(sys.modules, "__main__", self._rank)
        buffers = [memoryview(buffer) for buffer in packed.buffers]
        self.rank.update(unpack(packed.header, buffers, None, no_tensor, namespace=self.rank))

    def there(self, expression: str) -> Any:
        """Evaluate *expression* on the rank."""
        self._patch.setitem(sys.modules, "__main__", self._rank)
        return eval(expression, self.rank)


def no_tensor(source: TensorBytes) -> Any:
    raise AssertionError("no tensor was sent")


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Both:
    return Both(monkeypatch)


def test_a_function_reads_the_globals_of_the_rank(both: Both) -> None:
    both.rank["scale"] = 10
    both.define("scale = 2\ndef work(x, *, plus=scale): return scale * x + plus")

    both.push("work")

    assert both.there("work(3)") == 32
    assert both.there("work.__globals__ is globals()")


def test_a_function_brings_what_it_closes_over(both: Both) -> None:
    both.define(
        "def counter(n):\n    def up():\n        nonlocal n\n        n += 1\n        return n\n"
        "    return up\nup = counter(5)\nadd = lambda x: x + 1"
    )

    both.push("up", "add")

    assert both.there("(up(), up(), add(1))") == (6, 7, 2)


def test_a_class_comes_with_all_its_parts(both: Both) -> None:
    both.define(
        "class A:\n    count = 0\n    def __init__(self, x): self.x = x\n"
        "    def f(self): return self.x\n    @property\n    def twice(self): return 2 * self.x\n"
        "class B(A):\n    def f(self): return super().f() + 1"
    )

    both.push("B")

    assert both.there("(B(3).f(), B(3).twice, B.__module__)") == (4, 6, "__main__")
    assert both.there("B.__mro__[1] is A")


def test_an_instance_brings_a_class_that_is_not_there(both: Both) -> None:
    both.define(
        "import dataclasses\n@dataclasses.dataclass\nclass Run:\n    lr: float\nrun = Run(0.1)"
    )

    both.push("run")
    both.push("run")

    assert both.there("run == Run(0.1)")
    pickle_there = "__import__('pickle').loads(__import__('pickle').dumps(run)) == run"
    assert both.there(pickle_there)


def test_an_instance_takes_the_class_that_the_rank_has_of_that_name(both: Both) -> None:
    both.rank["__name__"] = "__main__"
    exec("class Point:\n    where = 'rank'\n    class Part: pass", both.rank)
    both.define(
        "class Point:\n    where = 'notebook'\n    class Part: pass\n"
        "p = Point()\np.x = 1\npart = Point.Part()"
    )

    both.push("p", "part")

    assert both.there("(p.where, p.x, type(p) is Point)") == ("rank", 1, True)
    assert both.there("type(part) is Point.Part")


def test_a_class_that_is_pushed_itself_takes_the_place_of_the_old_one(both: Both) -> None:
    both.define("class Net:\n    version = 1\nold = Net()")
    both.push("Net", "old")

    both.define("class Net:\n    version = 2\nnew = Net()")
    both.push("Net", "new")

    assert both.there("(Net.version, new.version, old.version)") == (2, 2, 1)
    assert both.there("type(new) is Net")


def test_a_variable_of_a_rank_is_not_lost_to_a_class(both: Both) -> None:
    both.rank["Run"] = "a text"
    both.define("class Run: pass\nrun = Run()")

    both.push("run")

    assert both.there("(Run, type(run).__name__)") == ("a text", "Run")


def test_what_can_be_imported_goes_by_its_name(both: Both) -> None:
    both.define("from fractions import Fraction\nimport math\nhalf = Fraction(1, 2)")

    both.push("half", "Fraction", "math")

    assert both.there("(half, math.pi > 3)") == (half_there(), True)


def half_there() -> Any:
    from fractions import Fraction

    return Fraction(1, 2)


def test_a_traceback_shows_the_cell_and_its_line(both: Both) -> None:
    both.define("def fail():\n    return [1 / 0 for _ in 'x']\n")

    both.push("fail")
    with pytest.raises(ZeroDivisionError) as caught:
        both.there("fail()")

    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert last.filename.startswith("In[5]")
    assert (last.lineno, last.line) == (2, "return [1 / 0 for _ in 'x']")
    assert both.there("__import__('inspect').getsource(fail)").startswith("def fail")


def test_what_cannot_be_sent_is_said(both: Both) -> None:
    both.define("def numbers(): yield 1\nmine = numbers()")

    with pytest.raises(TransferError, match="cannot be sent: cannot pickle 'generator' object"):
        both.push("mine")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12 has brought this syntax")
def test_generics_of_cells_come_with_their_type_variables(both: Both) -> None:
    both.define(
        "class Box[T]:\n    def __init__(self, value: T): self.value = value\n"
        "def first[T: int, *Ts, **P](x: T) -> T: return x\n"
        "type Pair[T] = tuple[T, T]\nbox = Box[int](3)"
    )

    both.push("Box", "first", "Pair", "box")

    assert both.there("(box.value, type(box) is Box, first(2))") == (3, True, 2)
    assert both.there("[str(t) for t in first.__type_params__]") == ["T", "Ts", "P"]
    assert both.there("first.__type_params__[0].__bound__ is int")
    assert both.there("first.__annotations__['x'] is first.__type_params__[0]")
    assert both.there("Box[int].__args__ == (int,) and Box.__type_params__[0].__name__ == 'T'")
    assert both.there("(Pair.__value__[int], Pair.__module__)") == (tuple[int, int], "__main__")


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are lazy from Python 3.14 on")
def test_annotations_are_evaluated_on_the_rank_when_somebody_asks(both: Both) -> None:
    both.define(
        "def work(x: Later) -> int: return 1\nclass A:\n    x: Later\n    def f(self) -> Later: ..."
    )

    both.push("work", "A")
    both.rank["Later"] = float

    assert both.there("work(1)") == 1
    assert both.there("(work.__annotations__, A.__annotations__)") == (
        {"x": float, "return": int},
        {"x": float},
    )
