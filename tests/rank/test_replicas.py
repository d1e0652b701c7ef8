"""What a fresh rank gets: what is equal, what is chosen, and that a copy works as the original."""

from __future__ import annotations

import linecache
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.hooks import RemovableHandle

from nbdist.errors import TransferError
from nbdist.rank import by_value
from nbdist.rank.parcels import RANDOM_STATES, read, write
from nbdist.rank.placed import Place
from nbdist.rank.replicas import Digest, Kind, choose, survey
from nbdist.runtime import tensor_bytes

CPU = torch.device("cpu")
Namespace = dict[str, Any]


class Ranks:
    """Two namespaces, each of which is ``__main__`` while one of its cells runs."""

    def __init__(self, folder: Path) -> None:
        self.modules = [types.ModuleType("__main__"), types.ModuleType("__main__")]
        self.file = folder / "copy"

    def names(self, rank: int) -> Namespace:
        return self.modules[rank].__dict__

    def run(self, code: str, rank: int = 0, label: str = "In[1]") -> Namespace:
        sys.modules["__main__"] = self.modules[rank]
        if rank == 0:
            linecache.cache[label] = (len(code), None, code.splitlines(keepends=True), label)
        exec(compile(code, label, "exec", dont_inherit=True), self.names(rank))
        return self.names(rank)

    def value(self, expression: str, rank: int = 0) -> Any:
        sys.modules["__main__"] = self.modules[rank]
        return eval(expression, self.names(rank))

    def survey(self, rank: int = 0) -> dict[str, Digest]:
        sys.modules["__main__"] = self.modules[rank]
        return survey(self.names(rank), {}, Place(rank, CPU))

    def copy(self, *names: str) -> Namespace:
        """Copy *names* to the second one, which has nothing before."""
        sys.modules["__main__"] = self.modules[0]
        wrote = write(self.names(0), names, self.file, Place(0, CPU))
        assert wrote.names == names, wrote
        for label in [label for label in linecache.cache if label.startswith("In[")]:
            del linecache.cache[label]
        sys.modules["__main__"] = self.modules[1]
        took = read(self.file, self.names(1), Place(1, CPU))
        self.file.unlink()
        assert took.names == names, took
        return self.names(1)


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.chdir(Path.cwd())
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield Ranks(tmp_path)
    for label in [label for label in linecache.cache if label.startswith("In[")]:
        del linecache.cache[label]


# What a variable is -------------------------------------------------------------------------------


def test_variables_are_told_apart(ranks: Ranks) -> None:
    names = ranks.run(
        "import numpy as np\nfrom math import sqrt\nx = 1\ndef f(): pass\nclass A: pass\n_y = 2"
    )
    names |= {"In": [], "get_ipython": print}

    found = {name: digest.kind for name, digest in ranks.survey().items()}

    assert found == {
        "np": "module",
        "sqrt": "definition",
        "x": "data",
        "f": "definition",
        "A": "definition",
        **dict.fromkeys(RANDOM_STATES, "random"),
    }


def at(rank: int = 0) -> Place:
    return Place(rank, CPU)


def digest_of(value: Any, rank: int = 0) -> Digest:
    return survey({"value": value}, {}, at(rank))["value"]


def test_a_base_name_counts_only_with_another_value() -> None:
    base = {"rank": 0, "device": CPU}

    found = survey({"rank": 0, "device": torch.device("meta")}, base, at())

    assert [name for name in found if name not in RANDOM_STATES] == ["device"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.ones(2, 3), torch.ones(3, 2).t()),
        (torch.ones(4)[1:3], torch.ones(2)),
        (["ab", "ab"], ["ab", "".join(["a", "b"])]),
        ({"b", "a", "c"}, {"c", "a", "b"}),
        ({("x", 1), ("y", 2)}, {("y", 2), ("x", 1)}),
        ([frozenset({1, 2})], [frozenset({2, 1})]),
        (np.arange(4.0), np.arange(4.0)),
        (float("nan"), float("nan")),
        ({"a": torch.ones(2), "b": [1.5, None]}, {"a": torch.ones(2), "b": [1.5, None]}),
    ],
)
def test_equal_values_have_equal_hashes(one: Any, other: Any) -> None:
    assert digest_of(one).digest == digest_of(other).digest != ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        (torch.ones(2), torch.ones(2, 1)),
        (torch.ones(2), torch.nn.Parameter(torch.ones(2))),
        (torch.zeros(2), torch.tensor([0.0, 1e-30])),
        (np.ones(2), np.ones(2, dtype=np.float32)),
        ([1], (1,)),
        (1, True),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)),
    ],
)
def test_other_values_have_other_hashes(one: Any, other: Any) -> None:
    assert digest_of(one).digest != digest_of(other).digest


def test_code_counts_by_what_it_does_not_by_where_it_stands(ranks: Ranks) -> None:
    code = "def f(x):\n    return x in {1, 2} and x + 1\nK = 3\nclass A:\n    k = K\n"
    ranks.run(code, 0)
    ranks.run("\n\n" + code, 1, "In[7]")

    one, other = ranks.survey(0), ranks.survey(1)
    ranks.run(code.replace("x + 1", "x + 2"), 1)

    assert (one["f"].digest, one["A"].digest) == (other["f"].digest, other["A"].digest)
    assert ranks.survey(1)["f"].digest != one["f"].digest


def test_a_class_is_another_once_it_was_patched(ranks: Ranks) -> None:
    ranks.run("class A:\n    def f(self): return 1")
    before = ranks.survey()["A"].digest

    ranks.run("A.f = lambda self: 2")

    assert ranks.survey()["A"].digest != before


def test_buffers_of_modules_have_a_hash_of_their_own() -> None:
    one, other = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    other(torch.ones(3, 2))

    mine, theirs = digest_of(one), digest_of(other)

    assert mine.digest == theirs.digest
    assert mine.buffers != theirs.buffers
    assert digest_of(torch.ones(2)).buffers == ""


def test_what_names_its_own_rank_is_alike_on_all(ranks: Ranks) -> None:
    code = (
        "from torch.utils.data import DataLoader, DistributedSampler, TensorDataset\n"
        "import torch\ndata = TensorDataset(torch.ones(4))\n"
        "loader = DataLoader(data, sampler=DistributedSampler(data, num_replicas=2, rank={}))"
    )
    ranks.run(code.format(0), 0)
    ranks.run(code.format(1), 1)

    assert ranks.survey(0)["loader"].digest == ranks.survey(1)["loader"].digest


def test_each_tensor_is_read_once_for_all_names(monkeypatch: pytest.MonkeyPatch) -> None:
    model, hash_elements, seen = torch.nn.Linear(2, 2), tensor_bytes.hash_elements, []

    def watched(tensor: torch.Tensor) -> str:
        seen.append(tensor)
        return hash_elements(tensor)

    monkeypatch.setattr(by_value, "hash_elements", watched)

    survey({"a": model, "b": model, "weight": model.weight}, {}, at())

    assert sum(tensor is model.weight for tensor in seen) == 1


class Raises:
    def __reduce__(self) -> Any:
        raise RuntimeError("two\nlines")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda: (n for n in range(3)), "a generator cannot be copied", id="generator"),
        pytest.param(threading.Lock, "a lock cannot be copied", id="lock"),
        pytest.param(lambda: [{"deep": threading.RLock()}], "a lock cannot be copied", id="deep"),
        pytest.param(
            lambda: Path(os.devnull).open(),  # noqa: SIM115 - closed below
            "an open file cannot be copied",
            id="file",
        ),
        pytest.param(Raises, "it cannot be pickled: RuntimeError: two", id="raises"),
        pytest.param(lambda: nested(100_000), "it is nested too deeply", id="nested"),
        pytest.param(
            lambda: iter(DataLoader(TensorDataset(torch.ones(2)))),
            "the iterator of a DataLoader cannot be copied",
            id="iterator",
        ),
        pytest.param(
            lambda: types.ModuleType("made"),
            "module made cannot be imported by its name",
            id="module",
        ),
        pytest.param(threading.local, "a _thread._local cannot be copied", id="local"),
    ],
)
def test_what_cannot_be_copied_has_a_reason(make: Callable[[], Any], reason: str) -> None:
    value = make()

    found = digest_of(value)

    assert (found.kind, found.digest, found.reason) == ("refused", "", reason)
    if hasattr(value, "close"):
        value.close()


def test_a_set_that_leads_back_to_itself_ends(ranks: Ranks) -> None:
    ranks.run(
        "class Node: pass\none, other = Node(), Node()\none.peers, other.peers = {other}, {one}"
    )

    found = ranks.survey()

    assert found["one"].digest == found["other"].digest != ""


# What is chosen -----------------------------------------------------------------------------------


def data(content: str, kind: Kind = "data", **fields: Any) -> Digest:
    return Digest(kind, content, **fields)


def test_what_is_equal_on_all_survivors_is_copied() -> None:
    surveys = {0: {"model": data("a"), "x": data("b")}, 2: {"model": data("a"), "x": data("c")}}

    plan = choose(surveys, [1])

    assert (plan.source, plan.copied) == (0, ("model",))
    assert plan.left == (("x", "differs between ranks"),)


@pytest.mark.parametrize(
    ("mine", "theirs", "reason"),
    [
        (data("a"), data("b"), "differs between ranks"),
        (data("a"), None, "only on rank 2"),
        (None, data("a"), "only on rank 3"),
        (data("", "sharded", reason="DTensor"), data("a"), "DTensor: its part on rank 0 is lost"),
        (data("a"), data("", "refused", reason="a lock"), "a lock"),
        (
            data("a", "random"),
            data("b", "random"),
            "differs between ranks; the fresh rank starts from its seed",
        ),
    ],
)
def test_why_something_is_left(mine: Digest | None, theirs: Digest | None, reason: str) -> None:
    surveys = {rank: {"x": found} if found else {} for rank, found in ((2, mine), (3, theirs))}

    assert choose(surveys, [0]).left == (("x", reason),)


def test_several_dead_ranks_are_named() -> None:
    surveys = {0: {"x": data("", "sharded", reason="FSDPModule")}}

    assert choose(surveys, [3, 1]).left == (("x", "FSDPModule: its part on ranks 1, 3 is lost"),)


def test_the_source_is_the_first_that_lives() -> None:
    assert choose({3: {"x": data("a")}, 1: {"x": data("a")}}).source == 1


def test_one_survivor_keeps_what_looks_its_own() -> None:
    names = {"x": data("a"), "my_rank": data("b", is_own=True)}
    names["random state of torch"] = data("c", "random", is_own=True)

    plan = choose({0: names}, [1])

    assert plan.copied == ("x",)
    assert dict(plan.left) == {
        "my_rank": "looks like the rank's own",
        "random state of torch": "each rank has its own; the fresh rank starts from its seed",
    }
    assert "(no other rank was left to compare with)" in plan.report()


def test_a_number_called_rank_looks_like_the_ranks_own() -> None:
    found = survey({"my_rank": 1, "ranking": [1], "rank": "one"}, {}, at())

    assert [name for name, digest in found.items() if digest.is_own] == ["my_rank", *RANDOM_STATES]


def test_random_states_that_are_equal_are_copied() -> None:
    names = {"random state of torch": data("c", "random", is_own=True)}

    assert choose({0: names, 1: names}).copied == ("random state of torch",)


def test_other_buffers_do_not_keep_a_model_from_being_copied() -> None:
    plan = choose({0: {"net": data("a", buffers="1")}, 1: {"net": data("a", buffers="2")}})

    assert (plan.copied, plan.mixed) == (("net",), ("net",))
    assert plan.report().splitlines()[1] == "buffers differ between ranks, as on rank 0: net"


def test_the_user_may_copy_what_differs_and_name_the_rank() -> None:
    one = {"model": data("a"), "batch": data("b"), "it": data("", "refused", reason="no")}
    other = {name: data(f"{found.digest}2", found.kind, reason="no") for name, found in one.items()}

    plan = choose({0: one, 2: {**other, "it": one["it"]}}, [1], source=2, also=["model", "it", "x"])

    assert (plan.source, plan.copied) == (2, ("model",))
    assert plan.left == (("batch", "differs between ranks"), ("it", "no"))


def test_the_report_names_what_says_it_is_on_the_source() -> None:
    mine = {"tr": data("a", identities=(".gpu_id = 0",)), "x": data("b", identities=(".rank = 0",))}
    other = {**mine, "tr": data("a2")}

    alone, chosen, alike = (
        choose({0: mine}),
        choose({0: mine, 2: other}, also=["tr"]),
        choose({0: mine, 2: mine}),
    )

    assert "\nsays it is on rank 0, look at it: tr.gpu_id = 0, x.rank = 0" in alone.report()
    assert "says it is on rank 0, look at it: tr.gpu_id = 0" in chosen.report().splitlines()
    assert "look at it" not in alike.report()
    assert "tr" not in alone.report({"tr": "gone", "x": "gone"}).partition("not copied")[0]


def test_the_report_is_grouped_by_reason() -> None:
    one = {name: data(name) for name in ("model", "optimizer", "batch", "loss")}
    one |= {"np": data("n", "module"), "train": data("t", "definition")}
    one |= {"it": data("", "refused", reason="a generator cannot be copied")}
    other = {**one, "batch": data("other"), "loss": data("other")}

    plan = choose({0: one, 2: other}, [1])

    assert plan.report().splitlines() == [
        "copied from rank 0: model, optimizer and 2 imports, functions and classes",
        "not copied: batch, loss (differs between ranks), it (a generator cannot be copied)",
    ]


def test_the_report_counts_what_failed_afterwards() -> None:
    plan = choose({0: {"a": data("a"), "f": data("f", "definition"), "b": data("b")}})

    text = plan.report({"b": "ValueError: not here", "f": "it is gone"})

    assert text.splitlines() == [
        "copied from rank 0: a (no other rank was left to compare with)",
        "not copied: b (ValueError: not here), f (it is gone)",
    ]


def test_a_report_of_nothing_says_so() -> None:
    assert choose({0: {}, 1: {}}).report() == "copied from rank 0: nothing"


# What a copy can do -------------------------------------------------------------------------------

IMPORTS = """
import abc, collections, dataclasses, enum, functools, typing
import numpy as np
import torch
from torch import nn
"""

# name of the case -> (what the first rank runs, what must be true on the second)
COPIES: dict[str, tuple[str, list[str]]] = {
    "a function and the globals it reads": (
        "K = 3\ndef f(x, y=K): return g(x) * y\ndef g(x): return x + K\nK = 4",
        ["f(1) == 15", "f.__globals__ is globals()", "f.__defaults__ == (3,)"],
    ),
    "a lambda, and an attribute of a function": (
        "f = lambda x: x + 1\nf.tag = 'yes'",
        ["f(1) == 2", "f.tag == 'yes'"],
    ),
    "closures that share a cell": (
        "def make(n):\n    def up():\n        nonlocal n\n        n += 1\n        return n\n"
        "    def get(): return n\n    return up, get\nup, get = make(5)\nup()",
        ["get() == 6", "up() == 7", "get() == 7", "make(1)[0]() == 2"],
    ),
    "a closure that holds itself": (
        "def make():\n    def fact(n): return 1 if n < 2 else n * fact(n - 1)\n    return fact\n"
        "fact = make()",
        ["fact(5) == 120"],
    ),
    "decorated functions": (
        "@torch.no_grad()\ndef f(x): return x * 2\n@functools.lru_cache(maxsize=3)\n"
        "def c(x): return x + 1\ndef loud(f):\n    @functools.wraps(f)\n"
        "    def inner(*a): return f(*a) + '!'\n    return inner\n@loud\ndef hi(): return 'hi'\n"
        "p = functools.partial(c, 1)",
        [
            "not f(torch.ones(1, requires_grad=True)).requires_grad",
            "c(1) == 2 and c.cache_info().maxsize == 3",
            "hi() == 'hi!' and hi.__name__ == 'hi'",
            "p() == 2",
        ],
    ),
    "generator and async functions": (
        "def g(): yield 1\nasync def a(): return 2\nimport asyncio",
        ["list(g()) == [1]", "asyncio.run(a()) == 2"],
    ),
    "a class, its subclass and their instances": (
        'class A:\n    "An A."\n    count = 0\n    def __init__(self): self.x = 1\n'
        "    def f(self): return self.x\nclass B(A):\n    def f(self): return super().f() + 1\n"
        "a, b = A(), B()\nA.count = 5",
        [
            "b.f() == 2 and type(b) is B and B.__mro__[1] is A",
            "A.__doc__ == 'An A.' and B.count == 5 and A().f() == 1",
            "A.__module__ == '__main__' and B.f.__qualname__ == 'B.f'",
        ],
    ),
    "an instance of a class that was defined again since": (
        "class A:\n    def f(self): return 1\nold = A()\nclass A:\n    def f(self): return 2",
        ["old.f() == 1", "A().f() == 2", "type(old) is not A"],
    ),
    "everything that a class may hold": (
        "class A:\n    @property\n    def p(self): return 1\n    @staticmethod\n"
        "    def s(): return 2\n    @classmethod\n    def c(cls): return cls.__name__\n"
        "    @functools.cached_property\n    def q(self): return 3\n"
        "    class Inner:\n        pass\na = A()\ninner = A.Inner()",
        ["(a.p, a.s(), a.c(), a.q) == (1, 2, 'A', 3)", "type(inner) is A.Inner"],
    ),
    "slots": (
        "class A:\n    __slots__ = ('x',)\na = A()\na.x = 1",
        ["a.x == 1", "not hasattr(a, '__dict__')"],
    ),
    "dataclasses": (
        "@dataclasses.dataclass\nclass A:\n    x: int = 1\n"
        "    names: list = dataclasses.field(default_factory=list, metadata={'k': 1})\n"
        "@dataclasses.dataclass(frozen=True, slots=True)\nclass F:\n    y: int = 2\n"
        "a, f = A(names=['n']), F()",
        [
            "a == A(1, ['n']) and A().names == [] and A().names is not A().names",
            "[field.name for field in dataclasses.fields(a)] == ['x', 'names']",
            "dataclasses.replace(f, y=3).y == 3 and f == F(2)",
            "dataclasses.asdict(a) == {'x': 1, 'names': ['n']}",
        ],
    ),
    "enumerations": (
        "class C(enum.Enum):\n    RED = 1\n    BLUE = 'b'\n    CRIMSON = 1\n"
        "    def loud(self): return self.name + '!'\n    @property\n"
        "    def low(self): return self.name.lower()\n"
        "class F(enum.IntFlag):\n    A = 1\n    B = 2\nc, f = C.RED, F.A | F.B",
        [
            "c is C.RED and C('b') is C.BLUE and C.CRIMSON is C.RED",
            "c.loud() == 'RED!' and c.low == 'red'",
            "f == F(3) and F.B in f and list(C) == [C.RED, C.BLUE]",
        ],
    ),
    "named tuples": (
        "P = collections.namedtuple('P', 'x y', defaults=[5])\n"
        "class Q(typing.NamedTuple):\n    u: int\n    v: str = 'v'\n"
        "    def both(self): return self.u, self.v\np, q = P(1), Q(2)",
        ["p == P(1, 5) and p._replace(x=2).x == 2", "q.both() == (2, 'v') and Q(1).v == 'v'"],
    ),
    "abstract, generic and error classes": (
        "class A(abc.ABC):\n    @abc.abstractmethod\n    def f(self): ...\n"
        "class B(A):\n    def f(self): return 1\nT = typing.TypeVar('T')\n"
        "class Box(typing.Generic[T]):\n    def __init__(self, v): self.v = v\n"
        "class Oops(ValueError): pass\nb, box, oops = B(), Box(3), Oops('x')",
        [
            "b.f() == 1 and isinstance(b, A) and A.__abstractmethods__ == {'f'}",
            "box.v == 3 and Box[int] and T.__name__ == 'T'",
            "isinstance(oops, ValueError) and oops.args == ('x',)",
        ],
    ),
    "type variables of every kind": (
        "P, Ts = typing.ParamSpec('P'), typing.TypeVarTuple('Ts')\n"
        "C = typing.TypeVar('C', contravariant=True)\nB = typing.TypeVar('B', bound=int)\n"
        "class Sink(typing.Generic[C]): ...\n"
        "def call(f: typing.Callable[P, B], *a: P.args, **k: P.kwargs) -> B: return f(*a, **k)",
        [
            "(P.__name__, Ts.__name__, C.__contravariant__, B.__bound__) == ('P', 'Ts', True, int)",
            "call(int, '3') == 3 and call.__annotations__['return'] is B and Sink[int]",
        ],
    ),
    "an autograd function": (
        "class Double(torch.autograd.Function):\n    @staticmethod\n"
        "    def forward(ctx, x): return x * 2\n    @staticmethod\n"
        "    def backward(ctx, g): return g * 3\n"
        "def slope():\n    x = torch.ones(1, requires_grad=True)\n"
        "    Double.apply(x).sum().backward()\n    return x.grad.item()",
        ["slope() == 3"],
    ),
    "a model with its optimizer and scheduler": (
        "class Net(nn.Module):\n    def __init__(self, n=4):\n        super().__init__()\n"
        "        self.a = nn.Linear(2, n)\n        self.tied = self.a\n"
        "    def forward(self, x): return self.a(x).relu().sum()\nnet = Net()\n"
        "opt = torch.optim.AdamW(net.parameters(), lr=0.1)\n"
        "sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda e: 0.5**e)\n"
        "def step():\n    opt.zero_grad()\n    loss = net(torch.ones(1, 2))\n"
        "    loss.backward()\n    opt.step()\n    sched.step()\n    return loss.item()\nstep()",
        [
            "opt.param_groups[0]['params'][0] is net.a.weight and sched.optimizer is opt",
            "net.tied is net.a and net.a.weight.requires_grad and net.a.weight.grad is None",
            "opt.state[net.a.weight]['step'] == 1 and opt.param_groups[0]['lr'] == 0.05",
            "isinstance(step(), float) and opt.param_groups[0]['lr'] == 0.025",
        ],
    ),
    "hooks": (
        "calls = []\nnet = nn.Linear(1, 1)\n"
        "net.register_forward_hook(lambda m, i, o: calls.append('forward'))\n"
        "net.weight.register_hook(lambda g: calls.append('grad'))\n"
        "net.weight.register_post_accumulate_grad_hook(lambda p: calls.append('after'))\n"
        "def run():\n    net(torch.ones(1, 1)).sum().backward()\n    return calls",
        [
            "run() == ['forward', 'grad', 'after']",
            "net.register_forward_hook(lambda m, i, o: calls.append('new')) is not None",
            "calls.clear() or run() == ['forward', 'new', 'grad', 'after']",
        ],
    ),
    "tensors of every kind": (
        "base = torch.arange(10.0)\nview = base[2:5]\nhalf = torch.ones(3, dtype=torch.bfloat16)\n"
        "turned = torch.arange(6).reshape(2, 3).t()\nconj = torch.tensor([1 + 2j]).conj()\n"
        "empty, scalar = torch.empty(0, 3), torch.tensor(2.5)\nsparse = torch.eye(3).to_sparse()\n"
        "mask = torch.tensor([True, False])\nweight = nn.Parameter(torch.ones(2))\n"
        "weight.tag = 'decay'\nmeta = torch.ones(2, device='meta')",
        [
            "base.mul_(0).sum() == 0 and view.tolist() == [0, 0, 0]",
            "half.dtype is torch.bfloat16 and turned.tolist() == [[0, 3], [1, 4], [2, 5]]",
            "conj.tolist() == [1 - 2j] and empty.shape == (0, 3) and scalar.item() == 2.5",
            "sparse.to_dense().sum() == 3 and mask.tolist() == [True, False]",
            "type(weight) is nn.Parameter and weight.requires_grad and weight.tag == 'decay'",
            "meta.is_meta and meta.shape == (2,)",
        ],
    ),
    "arrays, which can be written to": (
        "a = np.arange(6.0).reshape(2, 3)\nb = a.T[::2]\nc = np.array(['x', None], dtype=object)\n"
        "n = np.float32(1.5)",
        [
            "a[0, 0] == 0 and a.flags.writeable and b.tolist() == [[0, 3], [2, 5]]",
            "c.tolist() == ['x', None] and n == 1.5",
        ],
    ),
    "loaders": (
        "from torch.utils.data import DataLoader, DistributedSampler, TensorDataset\n"
        "data = TensorDataset(torch.arange(8.0))\n"
        "parts = DataLoader(data, sampler=DistributedSampler(data, 2, 0, shuffle=False), "
        "collate_fn=lambda items: items[0][0].item())\n"
        "seeded = DataLoader(data, 8, shuffle=True, generator=torch.Generator().manual_seed(3))\n"
        "next(iter(seeded))",
        [
            "list(parts) == [1, 3, 5, 7]",
            "len(next(iter(seeded))[0]) == 8 and seeded.generator is not torch.default_generator",
        ],
    ),
    "containers that hold each other and themselves": (
        "x = [1]\nd = {'x': x}\nx.append(d)\nalso = x\nhere = globals()",
        ["d['x'] is x and x[1] is d and also is x", "here is globals()"],
    ),
    "modules, and what only their import brings": (
        "import xml.etree.ElementTree\nimport numpy.linalg as la",
        ["xml.etree.ElementTree.fromstring('<a/>').tag == 'a'", "la.norm([3, 4]) == 5"],
    ),
    "a function with globals of its own": (
        "own = {'k': 7, '__name__': 'elsewhere'}\nexec('def f(): return k', own)\nf = own['f']",
        ["f() == 7 and f.__globals__ is own"],
    ),
}

if sys.version_info >= (3, 12):
    COPIES["generics and aliases"] = (
        "class Box[T]:\n    def __init__(self, value: T): self.value = value\n"
        "def first[T: int, **P](x: T) -> T: return x\ntype Pair[T] = tuple[T, T]\nbox = Box(3)",
        [
            "box.value == 3 and type(box) is Box and Box[int]",
            "first(2) == 2 and first.__annotations__['x'] is first.__type_params__[0]",
            "Pair.__value__[int] == tuple[int, int]",
        ],
    )


@pytest.mark.parametrize("case", COPIES)
def test_a_copy_works_as_the_original(ranks: Ranks, case: str) -> None:
    code, truths = COPIES[case]
    before = {*ranks.names(0), "__builtins__"}
    ranks.run(IMPORTS + code)

    ranks.copy(*(name for name in ranks.names(0) if name not in before))

    assert [truth for truth in truths if not ranks.value(truth, 1)] == []


def test_tracebacks_and_inspect_find_the_text_of_the_cell(ranks: Ranks) -> None:
    ranks.run("def f():\n    return 1 / 0\n", label="In[4]")

    ranks.copy("f")

    assert ranks.value("__import__('inspect').getsource(f)", 1) == "def f():\n    return 1 / 0\n"
    with pytest.raises(ZeroDivisionError) as caught:
        ranks.value("f()", 1)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.filename, last.lineno, last.line) == ("In[4]", 2, "return 1 / 0")


def test_the_own_device_becomes_the_own_device_there(ranks: Ranks) -> None:
    places = [Place(rank, torch.device("cuda", rank)) for rank in (0, 1)]
    names = [{"here": place.device, "host": CPU} for place in places]
    mine, theirs = (survey(n, {}, place) for n, place in zip(names, places, strict=True))

    write(names[0], ["here", "host"], ranks.file, places[0])
    read(ranks.file, ranks.names(1), places[1])

    assert mine["here"].digest == theirs["here"].digest
    assert (
        mine["here"].digest
        != survey({"here": torch.device("cuda", 1)}, {}, places[0])["here"].digest
    )
    assert ranks.value("(str(here), str(host))", 1) == ("cuda:1", "cpu")


def test_the_random_states_are_copied_when_asked_for(ranks: Ranks) -> None:
    ranks.run("import random, torch, numpy\nrandom.seed(5), torch.manual_seed(5)")
    ranks.run("numpy.random.seed(5)")
    draw = "(random.random(), torch.rand(1).item(), numpy.random.rand())"
    write(ranks.names(0), RANDOM_STATES, ranks.file, at(0))
    expected = ranks.value(draw)

    read(ranks.file, ranks.names(1), at(1))

    assert ranks.value(draw) == expected
    assert RANDOM_STATES[0] not in ranks.names(1)


def test_new_hooks_do_not_take_the_place_of_copied_ones(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemovableHandle, "next_id", 40)
    ranks.run("import torch\nnet = torch.nn.Linear(1, 1)\nnet.register_forward_hook(print)")
    write(ranks.names(0), ["net"], ranks.file, at(0))
    RemovableHandle.next_id = 40  # a fresh process counts anew

    read(ranks.file, ranks.names(1), at(1))
    ranks.run("net.register_forward_hook(max)", 1)

    assert ranks.value("len(net._forward_hooks)", 1) == 2


def test_the_surroundings_come_with_the_variables(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("def answer(): return 42")
    ranks.run(f"import os, sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport beside")
    ranks.run(f"os.chdir({str(tmp_path)!r})")
    write(ranks.names(0), ["beside"], ranks.file, at(0))
    sys.path.remove(str(tmp_path))
    del sys.modules["beside"]
    os.chdir("/")

    took = read(ranks.file, ranks.names(1), at(1))
    sys.modules.pop("beside", None)

    assert took.failed == {}
    assert ranks.value("beside.answer()", 1) == 42
    assert Path.cwd() == tmp_path


# When it does not work ----------------------------------------------------------------------------


def test_what_became_impossible_since_the_survey_is_left_out(ranks: Ranks) -> None:
    ranks.run("x, bad, also = [1], (n for n in range(3)), 3")

    wrote = write(ranks.names(0), ["x", "bad", "gone", "also"], ranks.file, at(0))
    took = read(ranks.file, ranks.names(1), at(1))

    assert wrote.names == took.names == ("x", "also")
    assert wrote.failed == {"bad": "a generator cannot be copied", "gone": "it is gone"}


def test_nothing_is_set_where_one_thing_cannot_be_made(ranks: Ranks) -> None:
    ranks.run("class A:\n    def __setstate__(self, s): raise ValueError('not here')\n")
    ranks.run("x, a, y = 1, A(), 2\na.z = 1")
    write(ranks.names(0), ["x", "a", "y"], ranks.file, at(0))

    took = read(ranks.file, ranks.names(1), at(1))

    assert took.names == ()
    assert took.failed == {"a": "ValueError: not here"}
    assert not {"x", "a", "y"} & ranks.names(1).keys()


def test_the_file_is_private_and_never_another_ones(ranks: Ranks) -> None:
    ranks.run("x = 1")

    write(ranks.names(0), ["x"], ranks.file, at(0))

    assert ranks.file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        write(ranks.names(0), ["x"], ranks.file, at(0))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_no_room_is_an_error_that_leaves_no_file(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = os.open
    ranks.run("import torch\nx = torch.ones(100_000)")
    ranks.file.touch()
    monkeypatch.setattr(os, "open", lambda *_: open_file("/dev/full", os.O_WRONLY))

    with pytest.raises(TransferError, match="no room for the copy of the variables: No space"):
        write(ranks.names(0), ["x"], ranks.file, at(0))

    assert not ranks.file.exists()


def test_a_file_that_ends_early_is_an_error(ranks: Ranks) -> None:
    ranks.run("import torch\nx = torch.ones(100)")
    write(ranks.names(0), ["x"], ranks.file, at(0))
    ranks.file.write_bytes(ranks.file.read_bytes()[:-10])

    with pytest.raises(TransferError, match="ends too early"):
        read(ranks.file, ranks.names(1), at(1))
